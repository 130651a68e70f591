"""pass@k by two estimators, and the majority's vote: graded samples to one value a problem and run.

Letters: P problems, R runs, n samples of a problem in one run.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NO_VOTE, RIGHT = -1, 0  # classes of `majority`; every other answer has a number above 0


def pass_at_k(n: int, c: int, k: int) -> float:
    """Probability that at least one of k samples drawn from n is right, c of the n being right.

    1 - C(n - c, k) / C(n, k) (M. Chen et al., "Evaluating large language models trained on code", 2021).
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n} c={c} k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def unbiased(right: NDArray[np.bool_]) -> Floats:
    """[..., n] verdicts -> [..., n] values of pass@1 .. pass@n, each the share of k-subsets that hold a right one."""
    n = right.shape[-1]
    table = np.array([[pass_at_k(n, c, k) for k in range(1, n + 1)] for c in range(n + 1)])
    return np.asarray(table[right.sum(axis=-1)])


def first(right: NDArray[np.bool_]) -> Floats:
    """[..., n] verdicts, in the order sampled -> [..., n]: whether any of the first k is right, k = 1 .. n.

    The estimator of the paper's tables: averaged over 16 runs of 30 problems, all of its values are multiples of
    1/480. It expects the same as `unbiased` and varies more, for it looks at one k-subset where that takes all.
    """
    return np.logical_or.accumulate(right, axis=-1).astype(np.float64)


def majority(classes: NDArray[np.int64]) -> Floats:
    """[P, R, n] classes of answers -> [P, R]: how likely the most frequent answer of the n is right.

    Equal classes are the same answer; RIGHT is the right one; NO_VOTE (no answer) does not vote. Of answers with
    equally many votes one is drawn, so the value is 1 / (how many they are) if the right one is among them.
    """
    return np.stack([_majority(of_problem) for of_problem in classes])


def _majority(classes: NDArray[np.int64]) -> Floats:
    """[R, n] -> [R]."""
    votes = (classes[:, :, None] == classes[:, None, :]).sum(axis=-1)  # for each sample's own answer
    votes[classes == NO_VOTE] = 0
    leads = (votes == votes.max(axis=-1, keepdims=True)) & (votes > 0)
    # An answer of v votes stands there v times: v * 1/v is one leader.
    leaders = np.divide(1.0, votes, out=np.zeros(votes.shape), where=leads).sum(axis=-1)
    right_leads = (leads & (classes == RIGHT)).any(axis=-1)
    return np.asarray(np.divide(right_leads, leaders, out=np.zeros(len(classes)), where=leaders > 0))
