"""Compute the numbers of a sweep: means, intervals over seeds and over problems, paired differences.

Letters: S seeds, P problems, M measures (pass@k and others). Three 95% intervals answer different questions:

over seeds      Student's t over the seeds' means: how far another training run may come out, on these problems
over problems   problems resampled, seeds averaged: how far these trained models may come out on other problems
over both       seeds and problems resampled together; too narrow with few seeds, since a bootstrap of S values has
                (S - 1)/S of their variance and no heavier tails
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.evaluation.accuracy import list_measure_names, measure_per_problem
from nemo_tapo.evaluation.bootstrap import DRAWS, SEED, bootstrap_interval95
from nemo_tapo.evaluation.results import AVERAGE
from nemo_tapo.sweeps.report.read_runs import RowOutcome

Floats = NDArray[np.float64]
Interval = tuple[float, float]
# 97.5% quantiles of Student's t for 1 .. 30 degrees of freedom.
T_975 = (
    12.7062, 4.3027, 3.1824, 2.7764, 2.5706, 2.4469, 2.3646, 2.3060, 2.2622, 2.2281, 2.2010, 2.1788, 2.1604, 2.1448,
    2.1314, 2.1199, 2.1098, 2.1009, 2.0930, 2.0860, 2.0796, 2.0739, 2.0687, 2.0639, 2.0595, 2.0555, 2.0518, 2.0484,
    2.0452, 2.0423,
)  # fmt: skip


@dataclass(frozen=True)
class Estimate:
    """A measure of one row, or the difference of two rows. Shares, not percent.

    >>> estimate = Estimate(0.5, (0.5,), over_seeds=None, over_problems=(0.25, 0.75), over_both=(0.25, 0.75))
    >>> estimate.value, estimate.over_problems
    (0.5, (0.25, 0.75))
    """

    value: float
    by_seed: tuple[float, ...]
    over_seeds: Interval | None  # None with a single seed
    over_problems: Interval
    over_both: Interval


def student_t_975(freedom: int) -> float:
    """Return the 97.5% quantile of Student's t with `freedom` degrees of freedom.

    Beyond the table it is the first two terms of the expansion around the normal quantile.

    >>> student_t_975(1), round(student_t_975(40), 3)
    (12.7062, 2.021)
    """
    if freedom <= len(T_975):
        return T_975[freedom - 1]
    z = 1.959964
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def compute_seed_interval(by_seed: Sequence[float]) -> Interval | None:
    """Return mean - t * standard error and mean + t * standard error; None for fewer than two seeds.

    >>> low, high = compute_seed_interval([0.4, 0.6])
    >>> round(low, 3), round(high, 3)
    (-0.771, 1.771)
    """
    if len(by_seed) < 2:
        return None
    mean, spread = float(np.mean(by_seed)), float(np.std(by_seed, ddof=1))
    half = student_t_975(len(by_seed) - 1) * spread / len(by_seed) ** 0.5
    return mean - half, mean + half


def estimate_row(outcome: RowOutcome) -> dict[str, dict[str, Estimate]]:
    """Return {benchmark or "average": {measure: Estimate}} over all seeds of the row; {} without a run."""
    return compute_estimates(stack_values(outcome, outcome.seeds), list_measures(outcome)) if outcome.runs else {}


def estimate_difference(
    first: RowOutcome, second: RowOutcome
) -> tuple[dict[str, dict[str, Estimate]], tuple[int, ...]]:
    """Return the estimates of second minus first, and their seeds: those that both rows have.

    Values are paired by seed and problem. Without a common seed the estimates are {}.
    """
    common = tuple(seed for seed in second.seeds if seed in first.runs)
    if not common:
        return {}, ()
    one, two = (stack_values(outcome, common) for outcome in (first, second))
    return compute_estimates({name: two[name] - one[name] for name in two}, list_measures(second)), common


def list_measures(outcome: RowOutcome) -> list[str]:
    """Return the names of the measures that the row's evaluations have."""
    evaluated = next(iter(outcome.runs.values())).evaluation
    assert evaluated is not None, "only runs that count are in an outcome"
    return list_measure_names(evaluated.settings["samples"])


def stack_values(outcome: RowOutcome, seeds: Sequence[int]) -> dict[str, Floats]:
    """Return {benchmark: values [S, P, M]}, with the problems in the order of their uids."""
    stacks: dict[str, list[Floats]] = {}
    for seed in seeds:
        evaluated = outcome.runs[seed].evaluation
        assert evaluated is not None, "only runs that count are in an outcome"
        for graded in evaluated.graded:
            stacks.setdefault(graded.benchmark, []).append(measure_per_problem(graded))
    return {benchmark: np.stack(stack) for benchmark, stack in stacks.items()}


def compute_estimates(sets: Mapping[str, Floats], measured: Sequence[str]) -> dict[str, dict[str, Estimate]]:
    """Estimate every benchmark from its values [S, P, M]; of several, also their average, each with the same weight.

    >>> values = np.array([[[1.0], [0.0]], [[1.0], [1.0]]])  # two seeds, two problems, one measure
    >>> estimate = compute_estimates({"arithmetic": values}, ["pass@1"])["arithmetic"]["pass@1"]
    >>> estimate.value, estimate.by_seed
    (0.75, (0.5, 1.0))
    """
    estimates = {benchmark: _estimate_mean([array], measured) for benchmark, array in sets.items()}
    return estimates | ({AVERAGE: _estimate_mean(list(sets.values()), measured)} if len(sets) > 1 else {})


def _estimate_mean(sets: Sequence[Floats], measured: Sequence[str]) -> dict[str, Estimate]:
    """Estimate the mean over the benchmarks' values, [S, P, M] each."""
    by_seed = np.mean([array.mean(axis=1) for array in sets], axis=0)  # [S, M]
    problems = bootstrap_interval95([array.mean(axis=0) for array in sets])
    both = compute_joint_interval(sets)
    return {
        name: Estimate(
            value=float(by_seed[:, m].mean()),
            by_seed=tuple(float(v) for v in by_seed[:, m]),
            over_seeds=compute_seed_interval(by_seed[:, m].tolist()),
            over_problems=(float(problems[m, 0]), float(problems[m, 1])),
            over_both=(float(both[m, 0]), float(both[m, 1])),
        )
        for m, name in enumerate(measured)
    }


def compute_joint_interval(sets: Sequence[Floats], draws: int = DRAWS) -> Floats:
    """Return the interval over seeds and problems, [M, 2].

    Seeds are drawn with replacement, the same ones for all benchmarks. Problems are drawn within each benchmark.
    """
    generator = np.random.default_rng(SEED)
    seeds = sets[0].shape[0]
    times = generator.multinomial(seeds, np.full(seeds, 1 / seeds), draws) / seeds  # [draws, S]
    means = []
    for array in sets:
        problems = array.shape[1]
        drawn = generator.multinomial(problems, np.full(problems, 1 / problems), draws) / problems  # [draws, P]
        by_seed = np.einsum("dp,spm->dsm", drawn, array, optimize=True)
        means.append(np.einsum("ds,dsm->dm", times, by_seed))
    return np.asarray(np.percentile(np.mean(means, axis=0), [2.5, 97.5], axis=0).T)
