"""Estimate pass@k in two ways, and score the majority vote: one value per problem and run.

Letters: P problems, R runs, n samples of a problem in one run.
"""

from __future__ import annotations

from math import comb

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]
NO_VOTE, RIGHT = -1, 0  # classes of `score_majority`; every other answer has a number above 0


def pass_at_k(n: int, c: int, k: int) -> float:
    """Return the probability that at least one of k samples drawn from n is right, if c of the n are right.

    1 - C(n - c, k) / C(n, k) (M. Chen et al., "Evaluating large language models trained on code", 2021).
    Raises ValueError unless 0 <= c <= n and 1 <= k <= n.

    >>> pass_at_k(n=4, c=1, k=2)
    0.5
    """
    if not (0 <= c <= n and 1 <= k <= n):
        raise ValueError(f"pass@k needs 0 <= c <= n and 1 <= k <= n, got n={n} c={c} k={k}")
    return 1.0 - comb(n - c, k) / comb(n, k)


def estimate_pass_at_k(right: NDArray[np.bool_]) -> Floats:
    """Map [..., n] verdicts to [..., n] values of pass@1 .. pass@n, each the share of k-subsets with a right sample.

    >>> estimate_pass_at_k(np.array([False, True, False, False]))
    array([0.25, 0.5 , 0.75, 1.  ])
    """
    n = right.shape[-1]
    table = np.array([[pass_at_k(n, c, k) for k in range(1, n + 1)] for c in range(n + 1)])
    return np.asarray(table[right.sum(axis=-1)])


def estimate_first_at_k(right: NDArray[np.bool_]) -> Floats:
    """Map [..., n] verdicts in sampling order to [..., n]: 1 if any of the first k is right, else 0, k = 1 .. n.

    The paper's tables use this estimator: all their values, averages over 16 runs of 30 problems, are multiples of
    1/480. It has the same expectation as `estimate_pass_at_k` but a larger variance, because it looks at one k-subset
    instead of all.

    >>> estimate_first_at_k(np.array([False, True, False, False]))
    array([0., 1., 1., 1.])
    """
    return np.logical_or.accumulate(right, axis=-1).astype(np.float64)


def score_majority(classes: NDArray[np.int64]) -> Floats:
    """Map [P, R, n] classes of answers to [P, R]: the probability that the most frequent of the n answers is right.

    Equal classes are the same answer. RIGHT is the right answer. NO_VOTE (no answer) does not vote. If several answers
    lead with equally many votes, one of them is drawn: the value is 1 / (their number) if the right one is among them.

    >>> score_majority(np.array([[[RIGHT, 1, 1], [RIGHT, 1, NO_VOTE]]]))
    array([[0. , 0.5]])
    """
    return np.stack([_score_majority(problem) for problem in classes])


def _score_majority(classes: NDArray[np.int64]) -> Floats:
    """Map the classes of one problem [R, n] to [R]."""
    votes = (classes[:, :, None] == classes[:, None, :]).sum(axis=-1)  # [R, n]: of each sample's answer
    votes[classes == NO_VOTE] = 0
    leads = (votes == votes.max(axis=-1, keepdims=True)) & (votes > 0)
    # An answer with v votes occurs v times, so its entries 1/v sum up to one leader.
    leaders = np.divide(1.0, votes, out=np.zeros(votes.shape), where=leads).sum(axis=-1)
    right_leads = (leads & (classes == RIGHT)).any(axis=-1)
    return np.asarray(np.divide(right_leads, leaders, out=np.zeros(len(classes)), where=leaders > 0))
