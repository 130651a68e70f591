"""pass@k, the majority's vote and their intervals: by hand, by enumeration, by simulation."""

from __future__ import annotations

from fractions import Fraction
from itertools import combinations, product

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_tapo.evaluation.bootstrap import bootstrap_interval95
from nemo_tapo.evaluation.passk import (
    NO_VOTE,
    RIGHT,
    estimate_first_at_k,
    estimate_pass_at_k,
    pass_at_k,
    score_majority,
)
from tests.helpers import reference

verdicts = st.integers(1, 7).flatmap(lambda n: st.lists(st.booleans(), min_size=n, max_size=n))


def test_by_hand() -> None:
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3,2) = 3 of C(5,2) = 10 pairs are all wrong
    assert pass_at_k(5, 2, 4) == 1.0  # four of five always hold a right one


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, 1, 6), (5, 1, 0), (5, -1, 1)])
def test_refuses_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


@given(verdicts)
def test_unbiased_is_the_share_of_subsets_that_hold_a_right_sample(right: list[bool]) -> None:
    n = len(right)
    values = estimate_pass_at_k(np.array([right]))[0]
    for k in range(1, n + 1):
        subsets = list(combinations(right, k))
        assert values[k - 1] == pytest.approx(sum(map(any, subsets)) / len(subsets))
        assert values[k - 1] == pytest.approx(reference.pass_at_k(n, sum(right), k))


@given(verdicts)
def test_first_looks_at_the_first_k_alone(right: list[bool]) -> None:
    assert estimate_first_at_k(np.array(right)).tolist() == [float(any(right[:k])) for k in range(1, len(right) + 1)]


def test_both_estimate_the_same() -> None:
    """Over every order of the samples, the mean of `first` is `unbiased`."""
    orders = np.array([order for order in product([True, False], repeat=5) if sum(order) == 2])
    np.testing.assert_allclose(estimate_first_at_k(orders).mean(axis=0), estimate_pass_at_k(orders[:1])[0])


def test_the_papers_grid_gives_multiples_of_a_480th() -> None:
    """30 problems x 16 runs: first@k of a benchmark is a count of 480, as 217 of 219 values in the paper's tables;
    the unbiased estimate is not."""
    right = np.random.default_rng(0).random((30, 16, 5)) < 0.3
    values = estimate_first_at_k(right).mean(axis=1).mean(axis=0)
    np.testing.assert_allclose(values * 480, np.round(values * 480), atol=1e-9)
    counts = [sum(any(right[p, r, :k]) for p in range(30) for r in range(16)) for k in range(1, 6)]
    np.testing.assert_allclose(values * 480, counts)
    others = estimate_pass_at_k(right).mean(axis=1).mean(axis=0)[:4] * 480
    assert np.abs(others - np.round(others)).max() > 1e-3


# ------------------------------------------------------------------------------------------------ the majority


@pytest.mark.parametrize(
    ("classes", "value"),
    [
        ([RIGHT, RIGHT, 1, 2, 3], 1),
        ([RIGHT, 1, 1, 2, 3], 0),
        ([RIGHT, RIGHT, 1, 1, 2], Fraction(1, 2)),
        ([RIGHT, 1, 2, 3, 4], Fraction(1, 5)),
        ([RIGHT, NO_VOTE, NO_VOTE, NO_VOTE, NO_VOTE], 1),  # those without an answer do not vote
        ([NO_VOTE] * 5, 0),
        ([1, 1, NO_VOTE, NO_VOTE, NO_VOTE], 0),
    ],
)
def test_majority_by_hand(classes: list[int], value: Fraction | int) -> None:
    assert score_majority(np.array([[classes]]))[0, 0] == pytest.approx(float(value))


@given(st.lists(st.integers(-1, 3), min_size=1, max_size=7))
def test_majority_by_counting(classes: list[int]) -> None:
    votes = {c: classes.count(c) for c in classes if c != NO_VOTE}
    leaders = [c for c in votes if votes[c] == max(votes.values())]
    expected = leaders.count(RIGHT) / len(leaders) if leaders else 0.0
    assert score_majority(np.array([[classes]]))[0, 0] == pytest.approx(expected)


# ------------------------------------------------------------------------------------------------ intervals


def test_interval_holds_the_mean_and_vanishes_without_spread() -> None:
    [(low, high)] = bootstrap_interval95([np.array([[0.0], [1.0]] * 50)])
    assert low < 0.5 < high
    assert 0.17 < high - low < 0.22  # 2 x 1.96 x sqrt(0.25 / 100) = 0.196
    assert bootstrap_interval95([np.ones((20, 1))]).tolist() == [[1.0, 1.0]]


def test_interval_is_that_of_drawing_problems_by_index() -> None:
    """Against the bootstrap written out: indices with replacement, one draw after the other."""
    values = np.random.default_rng(3).random((40, 2))
    rng = np.random.default_rng(4)
    means = np.array([values[rng.integers(0, 40, 40)].mean(axis=0) for _ in range(20_000)])
    ends = np.percentile(means, [2.5, 97.5], axis=0)
    np.testing.assert_allclose(bootstrap_interval95([values], draws=20_000).T, ends, atol=8e-3)  # se of an end: 1e-3


def test_several_benchmarks_are_resampled_each_within_itself() -> None:
    """One of all zeros and one of all ones: any draw's mean of the two is a half, though a pooled one's would vary;
    and each counts the same, however many problems it has."""
    assert bootstrap_interval95([np.zeros((30, 1)), np.ones((90, 1))]).tolist() == [[0.5, 0.5]]
    spread = np.array([[0.0], [1.0]] * 50)
    alone, both = (np.diff(bootstrap_interval95(sets, draws=20_000)[0])[0] for sets in ([spread], [spread, spread]))
    assert both == pytest.approx(alone / np.sqrt(2), rel=0.06)  # independent draws


def test_interval_covers_the_truth_in_95_of_100() -> None:
    """300 simulated benchmarks of 100 problems, 2 runs x 5 samples: the standard error of the share is 1.3%."""
    rng, covered = np.random.default_rng(7), 0
    for _ in range(300):
        chance = rng.beta(0.4, 0.8, 100)  # of each problem; their mean is 1/3
        right = rng.random((100, 2, 5)) < chance[:, None, None]
        [(low, high)] = bootstrap_interval95([right.mean(axis=(1, 2))[:, None]], draws=300)
        covered += low <= 1 / 3 <= high
    assert 0.91 <= covered / 300 <= 0.985


def test_paired_intervals_are_narrower_and_cover_too() -> None:
    """Two models of the same problems: what is hard for one is hard for the other, and cancels in the difference."""
    rng, covered, widths = np.random.default_rng(8), 0, []
    for _ in range(150):
        chance = rng.beta(0.4, 0.8, 80)
        better = chance + 0.1 * (1 - chance)  # truth: 0.1 x 2/3
        a, b = (rng.binomial(10, p) / 10 for p in (chance, better))
        paired = bootstrap_interval95([(b - a)[:, None]], draws=200)[0]
        covered += paired[0] <= 0.1 * 2 / 3 <= paired[1]
        one, other = (np.diff(bootstrap_interval95([v[:, None]], draws=200)[0])[0] for v in (a, b))
        widths.append(np.diff(paired)[0] / np.hypot(one, other))
    assert 0.91 <= covered / 150 <= 0.995
    assert np.mean(widths) < 0.6
