"""pass@k and its interval."""

from __future__ import annotations

from collections.abc import Sequence
from math import comb

import numpy as np


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples drawn from n is right, c of the n being right.

    1 - C(n - c, k) / C(n, k) (M. Chen et al., "Evaluating large language models trained on code", 2021).
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n} c={c} k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def mean_pass_at_k(correct: Sequence[int], n: int, k: int) -> float:
    """Mean over problems; `correct` [problems] holds the right samples of each, out of n."""
    return sum(pass_at_k(n, c, k) for c in correct) / len(correct)


def interval(correct: Sequence[int], n: int, k: int, seed: int = 0, draws: int = 1000) -> tuple[float, float]:
    """95% interval of the mean from a bootstrap that resamples problems (they, not samples, are what was drawn)."""
    values = np.array([pass_at_k(n, c, k) for c in correct])
    generator = np.random.default_rng(seed)
    means = values[generator.integers(0, len(values), (draws, len(values)))].mean(axis=1)
    low, high = np.percentile(means, [2.5, 97.5])
    return float(low), float(high)
