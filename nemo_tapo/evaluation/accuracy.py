"""A benchmark's samples as arrays, and the measures taken from them."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.evaluation import passk
from nemo_tapo.evaluation.bootstrap import interval95
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.grading.normal import integer, letters, normalise
from nemo_tapo.metrics import RESPONSE_LENGTH_MEAN

Measures = Mapping[str, Any]  # "pass@1": 0.31, "pass@1/interval95": [0.2, 0.4], ...
LONGEST = 500  # characters; what is longer is no answer that somebody would write in two ways
TURN = "Wait,"  # how the responses of cold-started models begin a correction


@dataclass(frozen=True)
class Graded:
    """P problems (uids sorted) x R runs x n samples; texts are not kept."""

    benchmark: str
    uids: tuple[str, ...]
    classes: NDArray[np.int64]  # [P, R, n] of the answers, see passk.majority
    tokens: NDArray[np.int64]  # [P, R, n] of the responses; 0: not known
    truncated: NDArray[np.bool_]  # [P, R, n]
    turns: int  # responses with TURN in them
    outcomes: Mapping[str, int]

    @property
    def right(self) -> NDArray[np.bool_]:
        return np.asarray(self.classes == passk.RIGHT)


def collect(benchmark: str, samples: Iterable[Sample], runs: int, n: int, problems: int) -> Graded:
    """Arrays of the first `runs` runs and `n` samples of each; further ones are left out.

    Raises ValueError if samples are missing.
    """
    kept: dict[tuple[str, int, int], tuple[float, str | None, int, bool]] = {}
    outcomes: Counter[str] = Counter()
    turns = 0
    for s in samples:
        if s.run < runs and s.index < n and s.key not in kept:
            kept[s.key] = s.reward, s.answer, s.tokens, s.truncated
            outcomes[s.outcome] += 1
            turns += TURN in s.text
    uids = sorted({uid for uid, _, _ in kept})
    if len(kept) != problems * runs * n or len(uids) != problems:
        raise ValueError(
            f"{benchmark}: {len(kept)} of {problems} problems x {runs} runs x {n} samples are there; run the "
            "evaluation to its end."
        )
    rows = [[[kept[uid, run, index] for index in range(n)] for run in range(runs)] for uid in uids]
    return Graded(
        benchmark=benchmark,
        uids=tuple(uids),
        classes=np.array([classes_of(of_problem) for of_problem in rows], dtype=np.int64),
        tokens=np.array([[[s[2] for s in run] for run in problem] for problem in rows], dtype=np.int64),
        truncated=np.array([[[s[3] for s in run] for run in problem] for problem in rows], dtype=np.bool_),
        turns=turns,
        outcomes=dict(sorted(outcomes.items())),
    )


def classes_of(runs: Sequence[Sequence[tuple[Any, ...]]]) -> list[list[int]]:
    """One problem's samples (reward, answer, ...) [R, n] -> classes of their answers.

    All that the verifier accepts are one answer, the gold one. Others are the same if they are the same integer or,
    normalised, the same text; two ways of writing one wrong answer that this does not see through are two answers.
    """
    numbers: dict[int | str, int] = {}

    def number(reward: float, answer: str | None) -> int:
        if reward > 0:
            return passk.RIGHT
        return passk.NO_VOTE if answer is None else numbers.setdefault(meaning(answer), len(numbers) + 1)

    return [[number(s[0], s[1]) for s in run] for run in runs]


@lru_cache(maxsize=100_000)
def meaning(answer: str) -> int | str:
    """What two equal answers agree in."""
    if len(answer) > LONGEST:
        return answer
    normal = normalise(answer)
    value = integer(normal)
    return letters(normal) if value is None else value


def names(n: int) -> list[str]:
    """Of the measures that have an interval."""
    return [f"{estimator}@{k}" for estimator in ("pass", "first") for k in range(1, n + 1)] + [f"maj@{n}"]


def values(graded: Graded) -> NDArray[np.float64]:
    """[P, 2n + 1]: each of `names` for each problem, the mean over its runs."""
    right = graded.right
    vote = passk.majority(graded.classes)
    by_run = np.concatenate([passk.unbiased(right), passk.first(right), vote[..., None]], axis=-1)
    return np.asarray(by_run.mean(axis=1))


def summarise(graded: Graded) -> Measures:
    """Everything that is reported of one benchmark."""
    n = graded.classes.shape[-1]
    total = graded.classes.size
    known = graded.tokens[graded.tokens > 0]
    return {
        "problems": len(graded.uids),
        "responses": total,
        **with_intervals([values(graded)], n),
        f"avg@{n}": float(graded.right.mean()),
        RESPONSE_LENGTH_MEAN: float(known.mean()) if known.size else None,
        "truncated": float(graded.truncated.mean()),
        "no_answer": graded.outcomes.get("no_answer", 0) / total,
        "with_reflection": graded.turns / total,
        "outcomes": dict(graded.outcomes),
    }


def with_intervals(sets: Sequence[NDArray[np.float64]], n: int) -> Measures:
    """Mean of the benchmarks' means, and its 95% interval, for each of `names`."""
    means = np.mean([v.mean(axis=0) for v in sets], axis=0)
    ends = interval95(sets)
    measures: dict[str, Any] = {}
    for name, mean, (low, high) in zip(names(n), means, ends, strict=True):
        measures[name] = float(mean)
        measures[f"{name}/interval95"] = [float(low), float(high)]
    return measures


def change(first: Sequence[Graded], second: Sequence[Graded]) -> dict[str, Any]:
    """Second minus first, problem by problem, of the same benchmarks in the same order; the intervals' draws take the
    same problems for both. {"benchmarks": {name: Measures}, "average": Measures of several}.

    Raises ValueError, with their number, for problems that only one of them has.
    """
    require_same_problems(first, second)
    n = first[0].classes.shape[-1]
    gains = [values(b) - values(a) for a, b in zip(first, second, strict=True)]
    benchmarks = {
        b.benchmark: {**with_intervals([gain], n), "problems": directions(gain[:, 0])}
        for b, gain in zip(second, gains, strict=True)
    }
    return {"benchmarks": benchmarks} | ({"average": with_intervals(gains, n)} if len(gains) > 1 else {})


def directions(gain: NDArray[np.float64]) -> dict[str, int]:
    """On how many problems pass@1 rose, fell and stayed."""
    changed = np.abs(gain) > 1e-12  # sums of the same fractions in another order
    return {
        "better": int((changed & (gain > 0)).sum()),
        "worse": int((changed & (gain < 0)).sum()),
        "equal": int((~changed).sum()),
    }


def require_same_problems(first: Sequence[Graded], second: Sequence[Graded]) -> None:
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
