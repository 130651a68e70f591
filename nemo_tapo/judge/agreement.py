"""Measure how well the judge agrees with human labels: Cohen's kappa for each label."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
from rich.console import Console
from rich.table import Table

from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.datasets.field_text import parse_text
from nemo_tapo.evaluation.bootstrap import DRAWS
from nemo_tapo.judge.judging import JudgeItem, Judgement, judge_all, print_counts
from nemo_tapo.judge.prompt import LABELS
from nemo_tapo.judge.rates import Interval
from nemo_tapo.utils import jsonl
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.seeding import seed_from

VerdictPair = tuple[bool, bool]  # (human, judge)


@dataclass(frozen=True)
class LabelledResponse:
    """One response with a person's labels."""

    id: str
    item: JudgeItem
    labels: dict[str, bool]  # some or all of LABELS


@dataclass(frozen=True)
class Agreement:
    """The agreement on one label. The four counts sum up to the responses that have both verdicts.

    >>> Agreement(both=3, neither=2, human_only=1, judge_only=0, kappa=0.67, interval95=None).responses
    6
    """

    both: int  # human true, judge true
    neither: int  # human false, judge false
    human_only: int  # human true, judge false
    judge_only: int  # human false, judge true
    kappa: float | None  # None: both used only one and the same class, so chance alone explains full agreement
    interval95: Interval | None  # of kappa, bootstrap over responses; draws whose kappa is None are left out

    @property
    def responses(self) -> int:
        """The number of responses that have both verdicts."""
        return self.both + self.neither + self.human_only + self.judge_only


def read_labels(path: Path) -> list[LabelledResponse]:
    """Read rows of {id, question, answer, response} and at least one of LABELS.

    Raises ValueError, naming the row and what is wrong with it, if a row is not of this form. Raises it also if the
    file is missing, damaged or empty.
    """
    if not path.is_file():
        raise ValueError(f"--agreement {path}: there is no such file.")
    lines = jsonl.read_lines(path)
    if lines.notes:  # a person wrote this file, so no row of it is silently left out
        raise ValueError(f"--agreement {path}: {lines.notes[0]}")
    labelled = [_parse_row(row, f"{path}, row {number}") for number, row in enumerate(lines.rows, start=1)]
    if not labelled:
        raise ValueError(f"{path} has no rows.")
    return labelled


def _parse_row(row: jsonl.Record, where: str) -> LabelledResponse:
    missing = [name for name in ("id", "question", "answer", "response") if name not in row]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}: want id, question, answer, response and labels.")
    item = JudgeItem(*(_require_text(row[name], name, where) for name in ("question", "answer", "response")))
    labels = {name: row[name] for name in LABELS if row.get(name) is not None}
    if not labels:
        raise ValueError(f"{where} has no label: want at least one of {', '.join(LABELS)}.")
    wrong = [name for name, value in labels.items() if not isinstance(value, bool)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} is {labels[wrong[0]]!r}; a label is true or false.")
    return LabelledResponse(str(row["id"]), item, labels)


def _require_text(value: Any, name: str, where: str) -> str:
    """Return `value` if it is text; a gold answer may also be a number. Raises ValueError for anything else."""
    if name == "answer" and value is not None:
        gold = parse_text(value)
        if isinstance(gold, str):
            return gold
        if gold.reason != "not_text":
            raise ValueError(f"{where}: answer is no gold answer ({gold.reason}: {gold.detail}).")
    if isinstance(value, str):
        return value
    raise ValueError(f"{where}: {name} is {value!r}, not text.")


def measure_agreement(pairs: Sequence[VerdictPair], name: str) -> Agreement:
    """Count the cells and compute kappa with its 95% interval; `name` seeds the bootstrap.

    >>> measure_agreement([(True, True), (False, False), (True, False), (True, True)], "located").kappa
    0.5
    """
    cells = np.array([sum(p == cell for p in pairs) for cell in _CELLS])
    interval = None
    if len(pairs) > 1:
        generator = np.random.default_rng(seed_from("kappa", name))
        drawn = generator.multinomial(len(pairs), cells / len(pairs), DRAWS)
        kappas = [k for k in (compute_kappa(*(int(c) for c in row)) for row in drawn) if k is not None]
        interval = (float(np.percentile(kappas, 2.5)), float(np.percentile(kappas, 97.5))) if kappas else None
    both, neither, human_only, judge_only = (int(c) for c in cells)
    value = compute_kappa(both, neither, human_only, judge_only)
    return Agreement(both, neither, human_only, judge_only, value, interval if value is not None else None)


_CELLS: tuple[VerdictPair, ...] = ((True, True), (False, False), (True, False), (False, True))


def compute_kappa(both: int, neither: int, human_only: int, judge_only: int) -> float | None:
    """Return Cohen's kappa (1960): (p_o - p_e) / (1 - p_e); None if p_e = 1 or there are no responses.

    p_o is the share on which both agree, p_e the share expected by chance.

    >>> compute_kappa(both=2, neither=1, human_only=1, judge_only=0)
    0.5
    """
    n = both + neither + human_only + judge_only
    human, judge = both + human_only, both + judge_only
    by_chance = human * judge + (n - human) * (n - judge)  # p_e * n^2
    if by_chance == n * n:  # also n = 0
        return None
    return ((both + neither) * n - by_chance) / (n * n - by_chance)


def compare_with_labels(cfg: JudgeConfig, labelled: Sequence[LabelledResponse], out: Path | None) -> None:
    """Judge the labelled responses, print kappa for each label, and write agreement.json into the folder `out`.

    Raises ValueError and EndpointError as `judge_all` does.
    """
    judgements, tally, name = judge_all(cfg, [row.item for row in labelled])
    agreements = _measure_agreements(labelled, judgements)
    _print_agreements(agreements)
    print_counts(tally)
    if out is not None:
        result = {"judge": name, "counts": asdict(tally), "labels": {k: asdict(v) for k, v in agreements.items()}}
        replace_text(out / "agreement.json", json.dumps(result, indent=1) + "\n")


def _measure_agreements(labelled: Sequence[LabelledResponse], judgements: Sequence[Judgement]) -> dict[str, Agreement]:
    """Measure every label that some row has. Rows without a verdict are left out; the tally counts them."""
    agreements = {}
    for label in LABELS:
        with_label = [(r, j) for r, j in zip(labelled, judgements, strict=True) if label in r.labels]
        pairs = [(r.labels[label], getattr(j.verdict, label)) for r, j in with_label if j.verdict]
        if with_label:
            agreements[label] = measure_agreement(pairs, label)
    return agreements


def _print_agreements(agreements: dict[str, Agreement]) -> None:
    columns = ("label", "kappa (95% interval)", "responses", "both", "neither", "human only", "judge only")
    table = Table(*columns, title="Judge and human labels")
    for label, a in agreements.items():
        kappa = "not defined" if a.kappa is None else f"{a.kappa:.2f}"
        if a.interval95:
            kappa += f" ({a.interval95[0]:.2f} to {a.interval95[1]:.2f})"
        table.add_row(label, kappa, *(str(n) for n in (a.responses, a.both, a.neither, a.human_only, a.judge_only)))
    Console().print(table)
    one_class = [label for label, a in agreements.items() if a.kappa is None]
    if one_class:
        print(f"no kappa of {', '.join(one_class)}: human and judge know only one and the same class there")
