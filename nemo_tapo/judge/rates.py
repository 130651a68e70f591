"""Estimate Direct Solution Rate and Effective Reflection Rate (section 4.3 of arXiv 2606.18844), with intervals.

Both are rates of responses, pooled over the problems of a benchmark's boundary subset:

    DSR = right responses without reflection / right responses
    ERR = responses that located the error, diagnosed it and are right / responses with reflection and a correction

"Right" is the verifier's verdict. The paper describes DSR as a share "of correctly answered problems"; with many
samples per problem this can only mean responses. A rate over no responses is not defined; it is never reported as 0.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.evaluation.bootstrap import DRAWS
from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.utils.seeding import seed_from

RATES = ("DSR", "ERR")
Counts = dict[str, tuple[int, int]]  # problem's uid -> (numerator, denominator)
Interval = tuple[float, float]


@dataclass(frozen=True)
class JudgedResponse:
    """A response with the judge's verdict.

    >>> verdict = Verdict(reflection=True, correction=True, located=True, diagnosis=True, answer_right=True)
    >>> response = JudgedResponse("7", right=True, verdict=verdict)
    >>> response.direct, response.effective
    (False, True)
    """

    uid: str  # its problem's
    right: bool  # as the verifier decided
    verdict: Verdict

    @property
    def direct(self) -> bool:
        """Whether it has no reflection: counted by DSR if it is right."""
        return not self.verdict.reflection

    @property
    def effective(self) -> bool:
        """Whether it located and diagnosed the error and is right: counted by ERR if it has a correction."""
        return self.verdict.located and self.verdict.diagnosis and self.right


@dataclass(frozen=True)
class Rate:
    """A share of responses, in [0, 1].

    >>> estimate_rate({"7": (1, 2)}, "DSR")
    Rate(value=0.5, numerator=1, denominator=2, interval95=None)
    """

    value: float | None  # numerator / denominator; None: there is no response in the denominator
    numerator: int
    denominator: int
    interval95: Interval | None  # None also for a single problem, from which nothing follows about others


@dataclass(frozen=True)
class Difference:
    """The difference of two rates, in [-1, 1]; None if one of them is not defined.

    >>> estimate_difference({"7": (1, 4)}, {"7": (3, 4)}, "DSR")
    Difference(value=0.5, interval95=None)
    """

    value: float | None
    interval95: Interval | None


def count_by_problem(responses: Sequence[JudgedResponse], rate: str) -> Counts:
    """Count the numerator and the denominator of a rate ("DSR" or "ERR") by problem.

    >>> direct = Verdict(reflection=False, correction=False, located=False, diagnosis=False, answer_right=True)
    >>> count_by_problem([JudgedResponse("7", True, direct), JudgedResponse("7", False, direct)], "DSR")
    {'7': (1, 1)}
    """
    by_problem: Counts = {}
    for r in responses:
        hit, counted = (r.direct, r.right) if rate == "DSR" else (r.effective, r.verdict.correction)
        n, d = by_problem.get(r.uid, (0, 0))
        by_problem[r.uid] = n + (hit and counted), d + counted
    return by_problem


def estimate_rate(by_problem: Counts, seed_name: str) -> Rate:
    """Return the pooled rate with a 95% interval from a bootstrap that resamples problems.

    The interval covers the choice of the problems and the sampling of the responses, but not the judge's errors.
    """
    n, d = (sum(c[i] for c in by_problem.values()) for i in (0, 1))
    (draws,) = _resample_rates([by_problem], sorted(by_problem), seed_name)
    return Rate(n / d if d else None, n, d, _percentile_interval(draws, len(by_problem)))


def estimate_difference(first: Counts, second: Counts, seed_name: str) -> Difference:
    """Return the second rate minus the first, with a 95% interval.

    Each bootstrap draw takes the same problems for both.
    """
    uids = sorted(set(first) | set(second))
    a, b = estimate_rate(first, seed_name).value, estimate_rate(second, seed_name).value
    if a is None or b is None:
        return Difference(None, None)
    one, other = _resample_rates([first, second], uids, seed_name)
    return Difference(b - a, _percentile_interval(other - one, len(uids)))


def _resample_rates(sets: Sequence[Counts], uids: Sequence[str], seed_name: str) -> list[NDArray[np.float64]]:
    """Return [DRAWS] rates of each set under the same resamplings of `uids`; nan where a draw's denominator is 0."""
    if not uids:
        return [np.full(DRAWS, np.nan) for _ in sets]
    generator = np.random.default_rng(seed_from("bootstrap", seed_name))
    times = generator.multinomial(len(uids), np.full(len(uids), 1 / len(uids)), DRAWS)  # [DRAWS, problems]
    rates = []
    for by_problem in sets:
        n, d = (times @ np.array([by_problem.get(uid, (0, 0))[i] for uid in uids]) for i in (0, 1))
        rates.append(np.divide(n, d, out=np.full(DRAWS, np.nan), where=d > 0))
    return rates


def _percentile_interval(draws: NDArray[np.float64], problems: int) -> Interval | None:
    defined = draws[~np.isnan(draws)]
    if problems < 2 or not len(defined):
        return None
    low, high = np.percentile(defined, [2.5, 97.5])
    return float(low), float(high)
