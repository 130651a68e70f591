"""Direct Solution Rate and Effective Reflection Rate (section 4.3 of arXiv 2606.18844), with their intervals.

Both are taken over responses, pooled over the problems of a benchmark's boundary subset:

    DSR = right responses without reflection / right responses
    ERR = responses that located the error, diagnosed it and are right / responses with reflection and a correction

"Right" is the verifier's verdict. The paper writes DSR as a share "of correctly answered problems"; with many samples
a problem that can only be meant of responses. A rate over nothing is not defined, and never 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.utils.seeding import seed_from

RATES = ("DSR", "ERR")
DRAWS = 2000  # of the bootstrap
Counts = dict[str, tuple[int, int]]  # problem's uid -> (numerator, denominator)
Interval = tuple[float, float]


@dataclass(frozen=True)
class Marked:
    """A response with its verdict."""

    uid: str  # of its problem
    right: bool  # by the verifier
    verdict: Verdict

    @property
    def direct(self) -> bool:
        return not self.verdict.reflection

    @property
    def effective(self) -> bool:
        return self.verdict.located and self.verdict.diagnosis and self.right


@dataclass(frozen=True)
class Rate:
    """A share of responses, in [0, 1]; None where nothing can be said."""

    value: float | None  # numerator / denominator; None: no response counts
    numerator: int
    denominator: int
    interval95: Interval | None  # None also for a single problem, which tells nothing about others


@dataclass(frozen=True)
class Difference:
    """Of two rates, in [-1, 1]; None where one of them is not defined."""

    value: float | None
    interval95: Interval | None


def counts(marked: Sequence[Marked], rate: str) -> Counts:
    """Numerator and denominator of a rate, by problem."""
    found: Counts = {}
    for m in marked:
        of, among = (m.direct, m.right) if rate == "DSR" else (m.effective, m.verdict.correction)
        n, d = found.get(m.uid, (0, 0))
        found[m.uid] = n + (of and among), d + among
    return found


def rate_of(by_problem: Counts, seed_name: str) -> Rate:
    """The pooled rate with a 95% interval from a bootstrap that resamples problems.

    It covers the choice of problems, and the sampling of responses with it; not the judge's own errors.
    """
    n, d = (sum(c[i] for c in by_problem.values()) for i in (0, 1))
    (draws,) = _drawn_rates([by_problem], sorted(by_problem), seed_name)
    return Rate(n / d if d else None, n, d, _interval(draws, len(by_problem)))


def difference(first: Counts, second: Counts, seed_name: str) -> Difference:
    """Second minus first; each draw of the bootstrap takes the same problems for both."""
    uids = sorted(set(first) | set(second))
    a, b = rate_of(first, seed_name).value, rate_of(second, seed_name).value
    if a is None or b is None:
        return Difference(None, None)
    one, other = _drawn_rates([first, second], uids, seed_name)
    return Difference(b - a, _interval(other - one, len(uids)))


def _drawn_rates(sets: Sequence[Counts], uids: Sequence[str], seed_name: str) -> list[NDArray[np.float64]]:
    """[DRAWS] rates of each set under the same resamplings of `uids`; nan where a draw has no response to count."""
    if not uids:
        return [np.full(DRAWS, np.nan) for _ in sets]
    generator = np.random.default_rng(seed_from("bootstrap", seed_name))
    times = generator.multinomial(len(uids), np.full(len(uids), 1 / len(uids)), DRAWS)  # [DRAWS, problems]
    rates = []
    for by_problem in sets:
        n, d = (times @ np.array([by_problem.get(uid, (0, 0))[i] for uid in uids]) for i in (0, 1))
        rates.append(np.divide(n, d, out=np.full(DRAWS, np.nan), where=d > 0))
    return rates


def _interval(draws: NDArray[np.float64], problems: int) -> Interval | None:
    defined = draws[~np.isnan(draws)]
    if problems < 2 or not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
