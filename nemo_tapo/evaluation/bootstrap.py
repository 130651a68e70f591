"""95% intervals of means over problems, by resampling problems.

What an interval covers: that other problems of the same kind could have been asked, and, through the spread it adds
to the problems' values, that other responses could have been sampled. What it does not: other training runs of the
same method, mistakes of the verifier, and problems of another kind. Read as a statement on these very problems alone,
whose difficulty is then no accident, it is too wide.

It is the percentile interval. With few problems it is a little narrow: of simulated benchmarks of 30 problems it
covers the truth in 93%, of 200 in 95%. Where all problems' values are the same it has no width, which says nothing:
"none of 30 was ever solved" is compatible with a small rate.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

DRAWS = 2000
SEED = 0  # fixed: the same samples give the same interval, and two models on the same problems the same draws
CHUNK = 2**23  # entries of the resampling matrix at a time

Floats = NDArray[np.float64]


def interval95(sets: Sequence[Floats], draws: int = DRAWS) -> Floats:
    """[M, 2]: lower and upper end for each of M measures.

    sets: one [problems, M] array a benchmark, one value a problem (its mean over runs). With several, problems are
    resampled within each, and what is measured is the mean of the benchmarks' means: each counts the same, however
    many problems it has. For a paired difference the values are the problems' differences.
    """
    means = np.mean([_means(values, draws, SEED + place) for place, values in enumerate(sets)], axis=0)
    return np.asarray(np.percentile(means, [2.5, 97.5], axis=0).T)


def _means(values: Floats, draws: int, seed: int) -> Floats:
    """[draws, M] means over as many problems as there are, drawn with replacement."""
    problems = len(values)
    generator = np.random.default_rng(seed)
    parts = []
    for begin in range(0, draws, size := max(1, CHUNK // problems)):
        rows = min(size, draws - begin)
        times = generator.multinomial(problems, np.full(problems, 1 / problems), rows)  # [rows, problems]
        parts.append(times @ values / problems)
    return np.concatenate(parts)
