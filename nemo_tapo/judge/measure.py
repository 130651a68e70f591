"""Measure DSR and ERR of one or two evaluations: judge the boundary subset, estimate rates, write files and a table."""

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
from nemo_tapo.judge import oracle as exact
from nemo_tapo.judge.judging import (
    JUDGED,
    JudgeItem,
    Judgement,
    JudgementTally,
    format_counts,
    judge_all,
    print_counts,
    tally_judgements,
)
from nemo_tapo.judge.rate_table import format_markdown_table, make_rows
from nemo_tapo.judge.rates import RATES, JudgedResponse, count_by_problem, estimate_difference, estimate_rate
from nemo_tapo.judge.responses import (
    ModelResponses,
    find_boundary,
    get_problem,
    load_questions,
    read_responses,
    require_same_problems,
)
from nemo_tapo.utils.files import replace_lines, replace_text
from nemo_tapo.utils.jsonl import encode_line

ModelSample = tuple[str, Sample]  # (the model's name, one of its responses on the boundary subset)


@dataclass(frozen=True)
class JudgeWorkload:
    """The responses to judge: those of every model to the problems of the common boundary subset."""

    models: tuple[str, ...]
    problem_counts: Mapping[str, Mapping[str, int]]  # {benchmark: {reason or "kept": problems}}, see find_boundary
    samples: tuple[ModelSample, ...]
    items: tuple[JudgeItem, ...]  # what the judge reads of each of `samples`, in the same order

    @property
    def summary_lines(self) -> list[str]:
        """One sentence per benchmark on its problems, and one on the responses."""
        problems = [
            f"{name}: {sum(f.values())} problems: {format_counts(f)}" for name, f in self.problem_counts.items()
        ]
        return [*problems, f"responses to be judged: {len(self.items)}, of which {len(set(self.items))} differ"]


def collect_workload(cfg: RunConfig, folders: Sequence[Path]) -> JudgeWorkload:
    """Collect the responses in the folders of one or two evaluations; the questions come from the task of `cfg`.

    Raises ValueError if a folder has no finished evaluation, if the evaluations have different problems, or if the
    task of `cfg` has other problems.
    """
    models = _disambiguate_names([read_responses(folder) for folder in folders])
    require_same_problems(models)
    kept, problem_counts = find_boundary(models)
    samples = tuple((m.name, sample) for m in models for sample in m.samples if get_problem(sample) in kept)
    known = load_questions(cfg, models[0])
    items = tuple(JudgeItem(*known[get_problem(sample)], sample.text) for _, sample in samples)
    return JudgeWorkload(tuple(m.name for m in models), problem_counts, samples, items)


def judge_samples(cfg: JudgeConfig, work: JudgeWorkload, out: Path, oracle: bool) -> None:
    """Judge the responses, write the results into the folder `out` and print the table.

    oracle: judge by the exact rules for a generated task instead of by an endpoint. Raises EndpointError if the
    judge's server is lost.
    """
    judgements, tally, judge = _judge_by_oracle(work.items) if oracle else judge_all(cfg, work.items)
    indices: dict[str, list[int]] = {benchmark: [] for benchmark in work.problem_counts}
    for i, (_, sample) in enumerate(work.samples):
        indices[sample.benchmark].append(i)
    result = {
        "models": work.models,
        "judge": judge,
        "counts": asdict(tally),
        "problems": work.problem_counts,
        "benchmarks": {
            benchmark: _measure_rates([work.samples[i] for i in places], [judgements[i] for i in places], work.models)
            for benchmark, places in indices.items()
        },
    }
    _write_files(out, result, work.samples, judgements)
    _print_result(result, work, tally, out)


def _disambiguate_names(models: list[ModelResponses]) -> list[ModelResponses]:
    """Name the models by their paths if two have the same name. Raises ValueError if a folder is given twice."""
    if len({model.name for model in models}) == len(models):
        return models
    if len({model.folder.resolve() for model in models}) < len(models):
        raise ValueError(f"--samples names {models[0].folder} twice.")
    return [replace(model, name=str(model.folder)) for model in models]


def _judge_by_oracle(items: Sequence[JudgeItem]) -> tuple[list[Judgement], JudgementTally, str]:
    judgements = [Judgement(JUDGED, exact.judge_response(item.question, item.response)) for item in items]
    return judgements, tally_judgements(judgements), "oracle of the generated task"


def _measure_rates(
    samples: Sequence[ModelSample], judgements: Sequence[Judgement], models: Sequence[str]
) -> dict[str, Any]:
    """Return the rates of one benchmark: {"models": {name: ...}, "difference": second minus first}.

    "difference" is there if there are two models.
    """
    judged: dict[str, list[JudgedResponse]] = {name: [] for name in models}
    for (name, sample), judgement in zip(samples, judgements, strict=True):
        if judgement.verdict is not None:
            judged[name].append(JudgedResponse(sample.uid, sample.correct, judgement.verdict))
    responses = Counter(name for name, _ in samples)
    by_problem = {rate: [count_by_problem(judged[name], rate) for name in models] for rate in RATES}
    result: dict[str, Any] = {
        "models": {
            name: {
                "responses": responses[name],
                "judged": len(judged[name]),
                "contradictions": sum(m.verdict.answer_right != m.right for m in judged[name]),
                **{rate: asdict(estimate_rate(by_problem[rate][i], rate)) for rate in RATES},
            }
            for i, name in enumerate(models)
        }
    }
    if len(models) == 2:
        result["difference"] = {rate: asdict(estimate_difference(a, b, rate)) for rate, (a, b) in by_problem.items()}
    return result


def _write_files(
    out: Path, result: dict[str, Any], samples: Sequence[ModelSample], judgements: Sequence[Judgement]
) -> None:
    """Write judge.json, table.md, and verdicts.jsonl with the judgement of every response, for people to check."""
    replace_text(out / "judge.json", json.dumps(result, indent=1, ensure_ascii=False) + "\n")
    replace_text(out / "table.md", format_markdown_table(*make_rows(result)))
    judged = zip(samples, judgements, strict=True)
    lines = ({"model": name, **asdict(sample), "judgement": asdict(judgement)} for (name, sample), judgement in judged)
    replace_lines(out / "verdicts.jsonl", map(encode_line, lines))


def _print_result(result: dict[str, Any], work: JudgeWorkload, tally: JudgementTally, out: Path) -> None:
    header, body = make_rows(result)
    table = Table(*header, title="DSR and ERR on the boundary subset, percent (95% interval), responses")
    for row in body:
        table.add_row(*row)
    Console().print(table)
    print("\n".join(work.summary_lines))
    print_counts(tally)
    contradictions = [m["contradictions"] for b in result["benchmarks"].values() for m in b["models"].values()]
    print(f"answers on which judge and verifier differ: {sum(contradictions)} (the verifier's verdict is taken)")
    print(f"written: {out / 'judge.json'}, table.md, verdicts.jsonl")
