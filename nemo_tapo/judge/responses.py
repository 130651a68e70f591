"""Read an evaluation's responses for the judge, with the problems that they answer, and find the boundary subset."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import unquote

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.compare import find_evaluation
from nemo_tapo.evaluation.sample_store import SETTINGS, Sample, read_selected, read_settings
from nemo_tapo.utils.files import hash_json

ProblemKey = tuple[str, str]  # (benchmark, uid)


@dataclass(frozen=True)
class ModelResponses:
    """One model's responses to the problems of its evaluation."""

    name: str  # the model's name in the tables
    folder: Path  # where the samples are
    data: Mapping[str, str]  # benchmark -> digest of its problems, as benchmarks.get_sampling_settings computes it
    samples: tuple[Sample, ...]


def get_problem(sample: Sample) -> ProblemKey:
    """Return the key of the problem that a sample answers."""
    return sample.benchmark, sample.uid


def read_responses(folder: Path) -> ModelResponses:
    """Read the samples under `folder`: an evaluation's own folder or a run's, as in `nemo-tapo compare`.

    Raises ValueError if there is no evaluation, more than one to choose from, or one with missing samples.
    """
    store = find_evaluation(folder)
    settings = read_settings(store / SETTINGS)
    data = {benchmark: str(entry["data"]) for benchmark, entry in settings["benchmarks"].items()}
    return ModelResponses(unquote(store.name), store, data, tuple(read_selected(store, settings)))


def require_same_problems(models: Sequence[ModelResponses]) -> None:
    """Raise ValueError unless all models answered the same problems, which a common boundary subset needs."""
    for other in models[1:]:
        names = sorted({*models[0].data, *other.data})
        differ = [name for name in names if models[0].data.get(name) != other.data.get(name)]
        if differ:
            raise ValueError(f"{models[0].name} and {other.name} answered different problems ({', '.join(differ)}).")


def read_config(folder: Path) -> RunConfig | None:
    """Read the configuration of an evaluation, stored beside it or in its run; None if there is none.

    Raises ValueError if `folder` has no evaluation or the configuration is not valid.
    """
    from nemo_tapo.runtime.registry import load_run_config

    store = find_evaluation(folder)
    paths = [path for path in (store / "config.yaml", store.parent.parent / "config.yaml") if path.is_file()]
    if not paths:
        return None
    try:
        return load_run_config(paths[0])
    except ValueError as error:
        raise ValueError(f"{paths[0]}: {error}") from None


def load_questions(cfg: RunConfig, answered: ModelResponses) -> dict[ProblemKey, tuple[str, str]]:
    """Return (question, gold answer) of every problem that was answered, from the task of `cfg`.

    Raises ValueError if the task's problems are not those of the evaluation, for example because its file has changed.
    """
    from nemo_tapo.tasks.registry import make_task

    if cfg.task.name == "nemo_rl":
        raise ValueError("the problems of task.name = nemo_rl are NeMo-RL's own; only this package's can be judged.")
    keys = {get_problem(sample) for sample in answered.samples}
    task = make_task(cfg.task, cfg.seed)
    try:
        sets = {
            name: [q for q in queries if (name, q.uid) in keys]  # an evaluation may use only the first problems
            for name, queries in task.benchmarks().items()
        }
    finally:
        task.close()
    for name, data in answered.data.items():
        if hash_json([(q.uid, q.user_text, q.answer) for q in sets.get(name, ())]) != data:
            raise ValueError(
                f"{name}: the task's problems are not those of {answered.folder} (other ones, or their text or answers "
                "have changed): bring back the data and the config.yaml that the evaluation was made with."
            )
    return {(name, q.uid): (q.question, q.answer) for name, queries in sets.items() for q in queries}


def find_boundary(models: Sequence[ModelResponses]) -> tuple[set[ProblemKey], dict[str, dict[str, int]]]:
    """Return the problems on which every model's pass rate is strictly between 0 and 1 (section 4.3), and counts.

    The counts {benchmark: {reason: problems}} are of all problems, each under "kept" or under the first reason to
    exclude it. The models must have answered the same problems (`require_same_problems`).
    """
    rates = [_compute_pass_rates(model.samples) for model in models]
    kept: set[ProblemKey] = set()
    counts: dict[str, Counter[str]] = {}
    for problem in sorted(rates[0]):
        reasons = (_explain_exclusion(model.name, r, problem) for model, r in zip(models, rates, strict=True))
        reason = next((reason for reason in reasons if reason), "kept")
        counts.setdefault(problem[0], Counter(kept=0))[reason] += 1
        if reason == "kept":
            kept.add(problem)
    return kept, {benchmark: dict(reasons) for benchmark, reasons in counts.items()}


def _explain_exclusion(name: str, rates: dict[ProblemKey, float], problem: ProblemKey) -> str | None:
    if 0 < rates[problem] < 1:
        return None
    return f"{name} always right" if rates[problem] else f"{name} never right"


def _compute_pass_rates(samples: Sequence[Sample]) -> dict[ProblemKey, float]:
    """Return each problem's share of right responses.

    A response that the verifier could not grade counts as wrong, as in the evaluation.
    """
    right = Counter(get_problem(s) for s in samples if s.correct)
    return {problem: right[problem] / n for problem, n in Counter(map(get_problem, samples)).items()}
