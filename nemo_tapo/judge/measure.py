"""DSR and ERR of one or two evaluations: boundary subset, verdicts, rates, files and table."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.judge import oracle as arithmetic_oracle
from nemo_tapo.judge.judging import JUDGED, Item, Judgement, Tally, judge_all, listed, print_counts, tally_of
from nemo_tapo.judge.rate_table import markdown, rows_of
from nemo_tapo.judge.rates import RATES, Marked, counts, difference, rate_of
from nemo_tapo.judge.responses import (
    Answered,
    boundary,
    problem_of,
    questions,
    read_answered,
    require_same_problems,
)
from nemo_tapo.utils.jsonl import encode

Asked = tuple[str, Sample]  # (the model's name, one of its responses on the boundary subset)


@dataclass(frozen=True)
class Work:
    """What is to be judged: the responses of every model on the common boundary subset."""

    models: tuple[str, ...]
    fates: Mapping[str, Mapping[str, int]]  # of the problems, see boundary
    asked: tuple[Asked, ...]
    items: tuple[Item, ...]  # of `asked`, in the same order

    @property
    def lines(self) -> list[str]:
        """One sentence a benchmark, and the sum."""
        problems = [f"{name}: {sum(f.values())} problems: {listed(f)}" for name, f in self.fates.items()]
        return [*problems, f"responses to be judged: {len(self.items)}, of which {len(set(self.items))} differ"]


def work_of(cfg: RunConfig, folders: Sequence[Path]) -> Work:
    """The responses in one or two folders of evaluations; the questions come from the task of `cfg`.

    Raises ValueError for folders that hold no finished evaluation, for evaluations of different problems, and if
    `cfg` has others.
    """
    models = _named([read_answered(folder) for folder in folders])
    require_same_problems(models)
    kept, fates = boundary(models)
    asked = tuple((m.name, sample) for m in models for sample in m.samples if problem_of(sample) in kept)
    known = questions(cfg, models[0])
    items = tuple(Item(*known[problem_of(sample)], sample.text) for _, sample in asked)
    return Work(tuple(m.name for m in models), fates, asked, items)


def judge_samples(cfg: JudgeConfig, work: Work, out: Path, oracle: bool) -> None:
    """Judges, writes into the folder `out` and prints the table. Raises EndpointError when the judge is lost."""
    judgements, tally, judge = _by_oracle(work.items) if oracle else judge_all(cfg, work.items)
    places: dict[str, list[int]] = {benchmark: [] for benchmark in work.fates}
    for i, (_, sample) in enumerate(work.asked):
        places[sample.benchmark].append(i)
    result = {
        "models": work.models,
        "judge": judge,
        "counts": asdict(tally),
        "problems": work.fates,
        "benchmarks": {
            benchmark: _rates([work.asked[i] for i in of], [judgements[i] for i in of], work.models)
            for benchmark, of in places.items()
        },
    }
    _write(out, result, work.asked, judgements)
    _print(result, work, tally, out)


def _named(models: list[Answered]) -> list[Answered]:
    """Two evaluations of the same name are told apart by their paths."""
    if len({model.name for model in models}) == len(models):
        return models
    if len({model.folder.resolve() for model in models}) < len(models):
        raise ValueError(f"--samples names {models[0].folder} twice.")
    return [replace(model, name=str(model.folder)) for model in models]


def _by_oracle(items: Sequence[Item]) -> tuple[list[Judgement], Tally, str]:
    judgements = [Judgement(JUDGED, arithmetic_oracle.verdict(item.question, item.response)) for item in items]
    return judgements, tally_of(judgements), "oracle of the generated arithmetic"


def _rates(asked: Sequence[Asked], judgements: Sequence[Judgement], models: Sequence[str]) -> dict[str, Any]:
    """The rates of the responses of one benchmark: {"models": {name: ...}, "difference": second minus first}."""
    marked: dict[str, list[Marked]] = {name: [] for name in models}
    for (name, sample), judgement in zip(asked, judgements, strict=True):
        if judgement.verdict is not None:
            marked[name].append(Marked(sample.uid, sample.reward > 0, judgement.verdict))
    responses = Counter(name for name, _ in asked)
    by_problem = {rate: [counts(marked[name], rate) for name in models] for rate in RATES}
    result: dict[str, Any] = {
        "models": {
            name: {
                "responses": responses[name],
                "judged": len(marked[name]),
                "contradictions": sum(m.verdict.answer_right != m.right for m in marked[name]),
                **{rate: asdict(rate_of(by_problem[rate][i], rate)) for rate in RATES},
            }
            for i, name in enumerate(models)
        }
    }
    if len(models) == 2:
        result["difference"] = {rate: asdict(difference(a, b, rate)) for rate, (a, b) in by_problem.items()}
    return result


def _write(out: Path, result: dict[str, Any], asked: Sequence[Asked], judgements: Sequence[Judgement]) -> None:
    """judge.json, table.md, and every response's verdict for people to check."""
    (out / "judge.json").write_text(json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    (out / "table.md").write_text(markdown(*rows_of(result)))
    with (out / "verdicts.jsonl").open("wb") as file:
        for (name, sample), judgement in zip(asked, judgements, strict=True):
            file.write(encode({"model": name, **asdict(sample), "judgement": asdict(judgement)}))


def _print(result: dict[str, Any], work: Work, tally: Tally, out: Path) -> None:
    header, body = rows_of(result)
    table = Table(*header, title="DSR and ERR on the boundary subset, percent (95% interval), responses")
    for row in body:
        table.add_row(*row)
    Console().print(table)
    print("\n".join(work.lines))
    print_counts(tally)
    contradictions = [m["contradictions"] for b in result["benchmarks"].values() for m in b["models"].values()]
    print(f"answers on which judge and verifier differ: {sum(contradictions)} (the verifier's verdict is taken)")
    print(f"written: {out / 'judge.json'}, table.md, verdicts.jsonl")
