"""Turn a benchmark's samples into arrays and compute the reported measures from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.evaluation import passk
from nemo_tapo.evaluation.bootstrap import bootstrap_interval95
from nemo_tapo.evaluation.sample_store import Sample, select_samples
from nemo_tapo.grading.normal import normalise, parse_integer, strip_layout
from nemo_tapo.metrics import RESPONSE_LENGTH_MEAN

Measures = Mapping[str, Any]  # "pass@1": 0.31, "pass@1/interval95": [0.2, 0.4], ...
MAX_ANSWER_CHARS = 500  # a longer text is not an answer that could be written in two ways
REFLECTION_MARKER = "Wait,"  # how the responses of cold-started models begin a correction


@dataclass(frozen=True)
class GradedSamples:
    """The graded samples of one benchmark: P problems (uids sorted) x R runs x n samples, without their texts."""

    benchmark: str
    uids: tuple[str, ...]
    classes: NDArray[np.int64]  # [P, R, n] classes of the answers, see passk.score_majority
    tokens: NDArray[np.int64]  # [P, R, n] response lengths; 0: not known
    truncated: NDArray[np.bool_]  # [P, R, n]
    with_reflection: int  # responses that contain REFLECTION_MARKER
    outcomes: Mapping[str, int]

    @property
    def right(self) -> NDArray[np.bool_]:
        """[P, R, n]: True where the verifier accepted the answer."""
        return np.asarray(self.classes == passk.RIGHT)


def collect_samples(benchmark: str, samples: Iterable[Sample], runs: int, n: int, problems: int) -> GradedSamples:
    """Return the arrays of the samples that `select_samples` selects. Raises ValueError if some are missing."""
    kept: dict[tuple[str, int, int], tuple[bool, str | None, int, bool]] = {}
    outcomes: Counter[str] = Counter()
    turns = 0
    for s in select_samples(samples, runs, n, problems, f"{benchmark}:"):
        kept[s.key] = s.correct, s.answer, s.tokens, s.truncated
        outcomes[s.outcome] += 1
        turns += REFLECTION_MARKER in s.text
    uids = sorted({uid for uid, _, _ in kept})
    rows = [[[kept[uid, run, index] for index in range(n)] for run in range(runs)] for uid in uids]
    return GradedSamples(
        benchmark=benchmark,
        uids=tuple(uids),
        classes=np.array([classify_answers(problem) for problem in rows], dtype=np.int64),
        tokens=np.array([[[s[2] for s in run] for run in problem] for problem in rows], dtype=np.int64),
        truncated=np.array([[[s[3] for s in run] for run in problem] for problem in rows], dtype=np.bool_),
        with_reflection=turns,
        outcomes=dict(sorted(outcomes.items())),
    )


def classify_answers(runs: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[int]]:
    """Map one problem's samples (correct?, answer, ...) [R, n] to the classes of their answers [R, n].

    All accepted answers form one class, RIGHT. Two wrong answers are in the same class if they are the same integer or
    the same normalised text. Other spellings of one wrong answer are not recognised and count as different answers.

    >>> classify_answers([[(True, "85"), (False, "75"), (False, "75.0"), (False, None)]])
    [[0, 1, 1, -1]]
    """
    numbers: dict[int | str, int] = {}

    def number(correct: bool, answer: str | None) -> int:
        if correct:
            return passk.RIGHT
        return passk.NO_VOTE if answer is None else numbers.setdefault(canonicalise_answer(answer), len(numbers) + 1)

    return [[number(s[0], s[1]) for s in run] for run in runs]


@lru_cache(maxsize=100_000)
def canonicalise_answer(answer: str) -> int | str:
    """Return a form of the answer that equal answers share: its integer value or its normalised text.

    >>> canonicalise_answer("$1,000$")
    1000
    """
    if len(answer) > MAX_ANSWER_CHARS:
        return answer
    normal = normalise(answer)
    value = parse_integer(normal)
    return strip_layout(normal) if value is None else value


def list_measure_names(n: int) -> list[str]:
    """List the measures that are reported with an interval.

    >>> list_measure_names(2)
    ['pass@1', 'pass@2', 'first@1', 'first@2', 'maj@2']
    """
    return [f"{estimator}@{k}" for estimator in ("pass", "first") for k in range(1, n + 1)] + [f"maj@{n}"]


def measure_per_problem(graded: GradedSamples) -> NDArray[np.float64]:
    """Return [P, 2n + 1]: each of `list_measure_names` for each problem, averaged over its runs."""
    right = graded.right
    vote = passk.score_majority(graded.classes)
    by_run = np.concatenate(
        [passk.estimate_pass_at_k(right), passk.estimate_first_at_k(right), vote[..., None]], axis=-1
    )
    return np.asarray(by_run.mean(axis=1))


def summarise(graded: GradedSamples) -> Measures:
    """Return everything that is reported about one benchmark."""
    n = graded.classes.shape[-1]
    total = graded.classes.size
    known = graded.tokens[graded.tokens > 0]
    return {
        "problems": len(graded.uids),
        "responses": total,
        **average_with_intervals([measure_per_problem(graded)], n),
        f"avg@{n}": float(graded.right.mean()),
        RESPONSE_LENGTH_MEAN: float(known.mean()) if known.size else None,
        "truncated": float(graded.truncated.mean()),
        "no_answer": graded.outcomes.get("no_answer", 0) / total,
        "with_reflection": graded.with_reflection / total,
        "outcomes": dict(graded.outcomes),
    }


def average_with_intervals(sets: Sequence[NDArray[np.float64]], n: int) -> Measures:
    """Return, for each of `list_measure_names`, the mean of the benchmarks' means and its 95% interval.

    sets: one [P, 2n + 1] array per benchmark, as `measure_per_problem` returns it.
    """
    means = np.mean([v.mean(axis=0) for v in sets], axis=0)
    ends = bootstrap_interval95(sets)
    measures: dict[str, Any] = {}
    for name, mean, (low, high) in zip(list_measure_names(n), means, ends, strict=True):
        measures[name] = float(mean)
        measures[f"{name}/interval95"] = [float(low), float(high)]
    return measures


def measure_change(first: Sequence[GradedSamples], second: Sequence[GradedSamples]) -> dict[str, Any]:
    """Return the measures' paired differences, second minus first, with their 95% intervals.

    Both have the same benchmarks in the same order. The difference is taken problem by problem, so each bootstrap draw
    takes the same problems for both. The result is {"benchmarks": {name: Measures}, "average": Measures}; "average" is
    there if there are several benchmarks.

    Raises ValueError if the benchmarks differ or if only one of the two has some of the problems.
    """
    require_same_problems(first, second)
    n = first[0].classes.shape[-1]
    gains = [measure_per_problem(b) - measure_per_problem(a) for a, b in zip(first, second, strict=True)]
    benchmarks = {
        b.benchmark: {**average_with_intervals([gain], n), "problems": count_directions(gain[:, 0])}
        for b, gain in zip(second, gains, strict=True)
    }
    return {"benchmarks": benchmarks} | ({"average": average_with_intervals(gains, n)} if len(gains) > 1 else {})


def count_directions(gain: NDArray[np.float64]) -> dict[str, int]:
    """Count the problems on which pass@1 rose, fell and stayed the same.

    >>> count_directions(np.array([0.5, 0.0, -0.1, 0.2]))
    {'better': 2, 'worse': 1, 'equal': 1}
    """
    changed = np.abs(gain) > 1e-12  # equal sums may differ by rounding, if they were added in another order
    return {
        "better": int((changed & (gain > 0)).sum()),
        "worse": int((changed & (gain < 0)).sum()),
        "equal": int((~changed).sum()),
    }


def require_same_problems(first: Sequence[GradedSamples], second: Sequence[GradedSamples]) -> None:
    """Raise ValueError, naming the differences, unless both have the same benchmarks and the same problems."""
    a, b = [g.benchmark for g in first], [g.benchmark for g in second]
    if a != b:
        raise ValueError(f"the benchmarks differ: {', '.join(a)} and {', '.join(b)}.")
    faults = []
    for one, two in zip(first, second, strict=True):
        only = len({*one.uids} - {*two.uids}), len({*two.uids} - {*one.uids})
        if any(only):
            faults.append(f"{one.benchmark}: {only[0]} only in the first, {only[1]} only in the second")
    if faults:
        raise ValueError(f"the problems differ ({'; '.join(faults)}): a paired difference needs the same ones.")
