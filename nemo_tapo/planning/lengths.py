"""Model the lengths of completions: a lognormal distribution, cut at the longest length that is allowed.

The slowest completion bounds a step, so the tail matters as much as the mean. A completion that would have become
longer than the limit ends there.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from functools import cached_property
from statistics import NormalDist

_normal = NormalDist()
POINTS = 128  # of a numerical integral


@dataclass(frozen=True)
class Lengths:
    """The lengths of some completions, in tokens.

    `sigma` is the standard deviation of a length's logarithm, before the cut.

    >>> lengths = Lengths(mean=1000, longest=4096, sigma=0.8)
    >>> round(lengths.survival(1000), 2), lengths.survival(4096)
    (0.36, 0.0)
    >>> round(lengths.expect_longest(1)), round(lengths.expect_longest(16)), round(lengths.expect_longest(2048))
    (1000, 2991, 4096)
    """

    mean: float
    longest: float
    sigma: float

    def __post_init__(self) -> None:
        if not 0 < self.mean <= self.longest:
            raise ValueError(f"a mean length of {self.mean:g} is not between 0 and the longest, {self.longest:g}")

    @cached_property
    def mu(self) -> float:
        """Mean of the logarithm of a length before the cut, such that the mean after it is `mean`."""
        low, high = math.log(self.mean) - self.sigma**2 - 1, math.log(self.longest) + 12 * self.sigma + 1
        for _ in range(60):
            middle = (low + high) / 2
            low, high = (middle, high) if self._cut_mean(middle) < self.mean else (low, middle)
        return (low + high) / 2

    def _cut_mean(self, mu: float) -> float:
        """Return the mean of min(X, longest) for a lognormal X."""
        z = (math.log(self.longest) - mu) / self.sigma
        kept = math.exp(mu + self.sigma**2 / 2) * _normal.cdf(z - self.sigma) if z > -30 else 0.0
        return kept + self.longest * (1 - _normal.cdf(z))

    def survival(self, tokens: float) -> float:
        """Return the share of completions that are longer than `tokens`."""
        if tokens <= 0:
            return 1.0
        if tokens >= self.longest:
            return 0.0
        return 1 - _normal.cdf((math.log(tokens) - self.mu) / self.sigma)

    def expect_longest(self, count: float) -> float:
        """Return the expected length of the longest of `count`: the integral of 1 - (1 - survival)^count."""
        width = self.longest / POINTS
        return width * math.fsum(1 - (1 - self.survival((i + 0.5) * width)) ** count for i in range(POINTS))
