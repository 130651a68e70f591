"""Numbers of a sweep: means, intervals over seeds and over problems, paired differences.

Letters: S seeds, P problems, M measures (`graded.names`). Three 95% intervals that answer different questions:

over seeds      Student's t of the seeds' means: how far another training run may come out, on these problems
over problems   problems resampled, seeds averaged: how far these trained models may come out on other problems
over both       seeds and problems resampled together; with few seeds it is too narrow, since a bootstrap of S values
                has (S - 1)/S of their variance and no heavier tails
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.evaluation.accuracy import names, values
from nemo_tapo.evaluation.bootstrap import DRAWS, SEED, interval95
from nemo_tapo.evaluation.results import AVERAGE
from nemo_tapo.sweeps.report.read_runs import Outcome

Floats = NDArray[np.float64]
Interval = tuple[float, float]
# Student's t, 97.5%, for 1 .. 30 degrees of freedom.
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A measure of a row, or a difference of two rows; shares, not percent."""

    value: float
    by_seed: tuple[float, ...]
    over_seeds: Interval | None  # None with a single seed
    over_problems: Interval
    over_both: Interval


def t_975(freedom: int) -> float:
    """Student's t at 97.5%; beyond the table by the first two terms of its expansion about the normal."""
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def over_seeds(by_seed: Sequence[float]) -> Interval | None:
    """Mean +- t * standard error; None for fewer than two seeds."""
    if len(by_seed) < 2:
        return None
    mean, spread = float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))
    half = t_975(len(by_seed) - 1) * spread / len(by_seed) ** 0.5
    return mean - half, mean + half


def of_row(outcome: Outcome) -> dict[str, dict[str, Estimate]]:
    """{benchmark or "average": {measure: Estimate}} of all the row's seeds; {} without a run."""
    return estimates(arrays(outcome, outcome.seeds), measures(outcome)) if outcome.runs else {}


def difference(first: Outcome, second: Outcome) -> tuple[dict[str, dict[str, Estimate]], tuple[int, ...]]:
    """Second minus first over the seeds that both have, and these seeds: same seed, same problem.

    {} without a common seed.
    """
    common = tuple(seed for seed in second.seeds if seed in first.runs)
    if not common:
        return {}, ()
    one, two = (arrays(outcome, common) for outcome in (first, second))
    return estimates({name: two[name] - one[name] for name in two}, measures(second)), common


def measures(outcome: Outcome) -> list[str]:
    evaluated = next(iter(outcome.runs.values())).evaluated
    assert evaluated is not None, "only runs that count are in an outcome"
    return names(evaluated.settings["samples"])


def arrays(outcome: Outcome, seeds: Sequence[int]) -> dict[str, Floats]:
    """[S, P, M] a benchmark; problems in the order of their uids."""
    found: dict[str, list[Floats]] = {}
    for seed in seeds:
        evaluated = outcome.runs[seed].evaluated
        assert evaluated is not None, "only runs that count are in an outcome"
        for graded in evaluated.graded:
            found.setdefault(graded.benchmark, []).append(values(graded))
    return {benchmark: np.stack(of) for benchmark, of in found.items()}


def estimates(sets: Mapping[str, Floats], measured: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Of each benchmark [S, P, M], and of several their average, each with the same weight."""
    out = {benchmark: _estimates([of], measured) for benchmark, of in sets.items()}
    return out | ({AVERAGE: _estimates(list(sets.values()), measured)} if len(sets) > 1 else {})


def _estimates(sets: Sequence[Floats], measured: Sequence[str]) -> dict[str, Estimate]:
    by_seed = np.mean([of.mean(axis=1) for of in sets], axis=0)  # [S, M]
    problems = interval95([of.mean(axis=0) for of in sets])
    both = both95(sets)
    return {
        name: Estimate(
            value=float(by_seed[:, m].mean()),
            by_seed=tuple(float(v) for v in by_seed[:, m]),
            over_seeds=over_seeds(by_seed[:, m].tolist()),
            over_problems=(float(problems[m, 0]), float(problems[m, 1])),
            over_both=(float(both[m, 0]), float(both[m, 1])),
        )
        for m, name in enumerate(measured)
    }


def both95(sets: Sequence[Floats], draws: int = DRAWS) -> Floats:
    """[M, 2]: seeds drawn with replacement, the same for all benchmarks, and within each benchmark its problems."""
    generator = np.random.default_rng(SEED)
    seeds = sets[0].shape[0]
    times = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # [draws, S]
    means = []
    for of in sets:
        problems = of.shape[1]
        drawn = generator.multinomial(problems, np.full(problems, 1 / problems), draws) / problems  # [draws, P]
        by_seed = np.einsum("dp,spm->dsm", drawn, of, optimize=True)
        means.append(np.einsum("ds,dsm->dm", times, by_seed))
    return np.asarray(np.percentile(np.mean(means, axis=0), [2.5, 97.5], axis=0).T)
