"""The responses of an evaluation and the problems they answer, as the judge wants them."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import unquote

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.benchmarks import digest
from nemo_tapo.evaluation.compare import find
from nemo_tapo.evaluation.sample_store import SETTINGS, Sample, file_name, read

Problem = tuple[str, str]  # (benchmark, uid)


@dataclass(frozen=True)
class Answered:
    """One model's responses to the problems of its evaluation."""

    name: str  # as the tables call it
    folder: Path  # of the samples
    data: Mapping[str, str]  # benchmark -> digest of its problems, as evaluation/evaluate.py takes it
    samples: tuple[Sample, ...]


def problem_of(sample: Sample) -> Problem:
    return sample.benchmark, sample.uid


def read_answered(folder: Path) -> Answered:
    """The samples under `folder`: an evaluation's own folder, or a run's as `nemo-tapo compare` takes it.

    Raises ValueError if there is none, more than one to choose from, or one that is not at its end.
    """
    store = find(folder)
    settings = json.loads((store / SETTINGS).read_text())
    samples: list[Sample] = []
    for benchmark, of in settings["benchmarks"].items():
        samples += _benchmark(store / f"{file_name(benchmark)}.jsonl", settings, of["problems"])
    data = {benchmark: str(of["data"]) for benchmark, of in settings["benchmarks"].items()}
    return Answered(unquote(store.name), store, data, tuple(samples))


def _benchmark(path: Path, settings: Mapping[str, Any], problems: int) -> list[Sample]:
    """The samples of one file that belong to the evaluation, each once."""
    runs, n = settings["runs"], settings["samples"]
    kept = {s.key: s for s in read(path) if s.run < runs and s.index < n}
    if len(kept) != problems * runs * n:
        raise ValueError(
            f"{path} holds {len(kept)} of {problems} problems x {runs} runs x {n} samples: "
            "run the evaluation to its end."
        )
    return list(kept.values())


def require_same_problems(models: Sequence[Answered]) -> None:
    """Raises ValueError unless all answered the same problems: their boundary subset is a common one."""
    for other in models[1:]:
        names = sorted({*models[0].data, *other.data})
        differ = [name for name in names if models[0].data.get(name) != other.data.get(name)]
        if differ:
            raise ValueError(f"{models[0].name} and {other.name} answered different problems ({', '.join(differ)}).")


def config_of(folder: Path) -> RunConfig | None:
    """The configuration that an evaluation was made with, as stored beside it or in its run; None if it is not."""
    from nemo_tapo.runtime.registry import load_either

    store = find(folder)
    found = [path for path in (store / "config.yaml", store.parent.parent / "config.yaml") if path.is_file()]
    if not found:
        return None
    try:
        return load_either(found[0])
    except ValueError as error:
        raise ValueError(f"{found[0]}: {error}") from None


def questions(cfg: RunConfig, answered: Answered) -> dict[Problem, tuple[str, str]]:
    """(question, gold answer) of every problem that was answered, from the task of `cfg`.

    Raises ValueError if the task's problems are not those of the evaluation: its file may have changed since.
    """
    from nemo_tapo.tasks.registry import make_task

    if cfg.task.name == "nemo_rl":
        raise ValueError("the problems of task.name = nemo_rl are NeMo-RL's own; only this package's can be judged.")
    asked = {problem_of(sample) for sample in answered.samples}
    task = make_task(cfg.task, cfg.seed)
    try:
        sets = {
            name: [q for q in queries if (name, q.uid) in asked]  # an evaluation may be of the first ones only
            for name, queries in task.benchmarks().items()
        }
    finally:
        task.close()
    for name, data in answered.data.items():
        if digest([(q.uid, q.user_text, q.answer) for q in sets.get(name, ())]) != data:
            raise ValueError(
                f"{name}: the task's problems are not those of {answered.folder} (other ones, or their text or answers "
                "have changed): bring back the data and the config.yaml that the evaluation was made with."
            )
    return {(name, q.uid): (q.question, q.answer) for name, queries in sets.items() for q in queries}


def boundary(models: Sequence[Answered]) -> tuple[set[Problem], dict[str, dict[str, int]]]:
    """The problems on which every model has a pass rate strictly between 0 and 1 (section 4.3), and every one's fate.

    Fates: {benchmark: {reason: problems}}, each problem under the first reason that holds or "kept": they sum up.
    The models have answered the same problems (`require_same_problems`).
    """
    rates = [_pass_rates(model.samples) for model in models]
    kept: set[Problem] = set()
    fates: dict[str, Counter[str]] = {}
    for problem in sorted(rates[0]):
        reasons = (_why_not(model.name, r, problem) for model, r in zip(models, rates, strict=True))
        reason = next((reason for reason in reasons if reason), "kept")
        fates.setdefault(problem[0], Counter(kept=0))[reason] += 1
        if reason == "kept":
            kept.add(problem)
    return kept, {benchmark: dict(of) for benchmark, of in fates.items()}


def _why_not(name: str, rates: dict[Problem, float], problem: Problem) -> str | None:
    if 0 < rates[problem] < 1:
        return None
    return f"{name} always right" if rates[problem] else f"{name} never right"


def _pass_rates(samples: Sequence[Sample]) -> dict[Problem, float]:
    """Share of right responses; what the verifier could not settle counts as wrong, as in the evaluation."""
    right = Counter(problem_of(s) for s in samples if s.reward > 0)
    return {problem: right[problem] / n for problem, n in Counter(map(problem_of, samples)).items()}
