"""How far the judge agrees with human labels: Cohen's kappa for each label."""

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
from nemo_tapo.judge.judging import Item, Judgement, judge_all, print_counts
from nemo_tapo.judge.prompt import LABELS
from nemo_tapo.judge.rates import DRAWS, Interval
from nemo_tapo.utils import jsonl
from nemo_tapo.utils.seeding import seed_from

Pair = tuple[bool, bool]  # (human, judge)


@dataclass(frozen=True)
class Labelled:
    """One response with what a person says of it."""

    id: str
    item: Item
    labels: dict[str, bool]  # some or all of LABELS


@dataclass(frozen=True)
class Agreement:
    """One label's. The four counts sum up to the responses that have both verdicts."""

    both: int  # human true, judge true
    neither: int
    human_only: int
    judge_only: int
    kappa: float | None  # None: both know only one and the same class, so there is no chance level to exceed
    interval95: Interval | None  # of kappa, bootstrap over responses; draws without a kappa are left out

    @property
    def responses(self) -> int:
        return self.both + self.neither + self.human_only + self.judge_only


def read_labels(path: Path) -> list[Labelled]:
    """Rows of {id, question, answer, response} and any of LABELS.

    Raises ValueError that names the row and what it lacks.
    """
    if not path.is_file():
        raise ValueError(f"--agreement {path}: there is no such file.")
    lines = jsonl.read(path)
    if lines.notes:  # of a person's file nothing is left out
        raise ValueError(f"--agreement {path}: {lines.notes[0]}")
    labelled = [_labelled(row, f"{path}, row {number}") for number, row in enumerate(lines.rows, start=1)]
    if not labelled:
        raise ValueError(f"{path} has no rows.")
    return labelled


def _labelled(row: jsonl.Record, where: str) -> Labelled:
    missing = [name for name in ("id", "question", "answer", "response") if name not in row]
    if missing:
        raise ValueError(f"{where} has no {', '.join(missing)}: want id, question, answer, response and labels.")
    item = Item(*(_text(row[name], name, where) for name in ("question", "answer", "response")))
    labels = {name: row[name] for name in LABELS if row.get(name) is not None}
    if not labels:
        raise ValueError(f"{where} has no label: want at least one of {', '.join(LABELS)}.")
    wrong = [name for name, value in labels.items() if not isinstance(value, bool)]
    if wrong:
        raise ValueError(f"{where}: {wrong[0]} is {labels[wrong[0]]!r}; a label is true or false.")
    return Labelled(str(row["id"]), item, labels)


def _text(value: Any, name: str, where: str) -> str:
    """Text as it is; of a gold answer also a number."""
    if isinstance(value, str):
        return value
    if name == "answer" and isinstance(value, (int, float)) and not isinstance(value, bool):
        return str(value)
    raise ValueError(f"{where}: {name} is {value!r}, not text.")


def agreement(pairs: Sequence[Pair], name: str) -> Agreement:
    """Counts, kappa and its interval; `name` seeds the bootstrap."""
    cells = np.array([sum(p == cell for p in pairs) for cell in _CELLS])
    interval = None
    if len(pairs) > 1:
        generator = np.random.default_rng(seed_from("kappa", name))
        drawn = generator.multinomial(len(pairs), cells / len(pairs), DRAWS)
        kappas = [k for k in (kappa(*(int(c) for c in row)) for row in drawn) if k is not None]
        interval = (float(np.percentile(kappas, 2.5)), float(np.percentile(kappas, 97.5))) if kappas else None
    both, neither, human_only, judge_only = (int(c) for c in cells)
    value = kappa(both, neither, human_only, judge_only)
    return Agreement(both, neither, human_only, judge_only, value, interval if value is not None else None)


_CELLS: tuple[Pair, ...] = ((True, True), (False, False), (True, False), (False, True))


def kappa(both: int, neither: int, human_only: int, judge_only: int) -> float | None:
    """Cohen's kappa (1960): (p_o - p_e) / (1 - p_e); None where p_e = 1 or there are no responses."""
    n = both + neither + human_only + judge_only
    human, judge = both + human_only, both + judge_only
    by_chance = human * judge + (n - human) * (n - judge)  # p_e * n^2
    if by_chance == n * n:  # also n = 0
        return None
    return ((both + neither) * n - by_chance) / (n * n - by_chance)


def compare_with_labels(cfg: JudgeConfig, labelled: Sequence[Labelled], out: Path | None) -> None:
    """Judges the labelled responses and prints kappa for each label; writes agreement.json into the folder `out`."""
    judgements, tally, name = judge_all(cfg, [row.item for row in labelled])
    found = _agreements(labelled, judgements)
    _print_agreements(found)
    print_counts(tally)
    if out is not None:
        result = {"judge": name, "counts": asdict(tally), "labels": {k: asdict(v) for k, v in found.items()}}
        (out / "agreement.json").write_text(json.dumps(result, indent=1) + "\n")


def _agreements(labelled: Sequence[Labelled], judgements: Sequence[Judgement]) -> dict[str, Agreement]:
    """Of every label that some row has; rows without a verdict are left out (the tally counts them)."""
    found = {}
    for label in LABELS:
        with_label = [(r, j) for r, j in zip(labelled, judgements, strict=True) if label in r.labels]
        pairs = [(r.labels[label], getattr(j.verdict, label)) for r, j in with_label if j.verdict]
        if with_label:
            found[label] = agreement(pairs, label)
    return found


def _print_agreements(found: dict[str, Agreement]) -> None:
    columns = ("label", "kappa (95% interval)", "responses", "both", "neither", "human only", "judge only")
    table = Table(*columns, title="Judge and human labels")
    for label, a in found.items():
        kappa = "not defined" if a.kappa is None else f"{a.kappa:.2f}"
        if a.interval95:
            kappa += f" ({a.interval95[0]:.2f} to {a.interval95[1]:.2f})"
        table.add_row(label, kappa, *(str(n) for n in (a.responses, a.both, a.neither, a.human_only, a.judge_only)))
    Console().print(table)
    one_class = [label for label, a in found.items() if a.kappa is None]
    if one_class:
        print(f"no kappa of {', '.join(one_class)}: human and judge know only one and the same class there")
