"""pass@k by hand and by enumeration."""

from __future__ import annotations

from itertools import combinations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from nemo_tapo.evaluation.passk import interval, mean_pass_at_k, pass_at_k


def test_by_hand() -> None:
    assert pass_at_k(5, 0, 3) == 0.0
    assert pass_at_k(5, 5, 1) == 1.0
    assert pass_at_k(5, 2, 1) == pytest.approx(2 / 5)
    assert pass_at_k(5, 2, 2) == pytest.approx(1 - 3 / 10)  # C(3,2) = 3 of C(5,2) = 10 pairs are all wrong
    assert pass_at_k(5, 2, 4) == 1.0  # four of five always hold a right one
    assert mean_pass_at_k([0, 5], 5, 2) == pytest.approx(0.5)


@given(st.integers(1, 7).flatmap(lambda n: st.tuples(st.just(n), st.integers(0, n), st.integers(1, n))))
def test_equals_the_share_of_subsets_that_hold_a_right_sample(case: tuple[int, int, int]) -> None:
    n, c, k = case
    subsets = list(combinations(range(n), k))
    assert pass_at_k(n, c, k) == pytest.approx(sum(min(s) < c for s in subsets) / len(subsets))


@pytest.mark.parametrize(("n", "c", "k"), [(5, 6, 1), (5, 1, 6), (5, 1, 0), (5, -1, 1)])
def test_refuses_nonsense(n: int, c: int, k: int) -> None:
    with pytest.raises(ValueError, match="pass@k needs"):
        pass_at_k(n, c, k)


def test_interval_holds_the_mean_and_vanishes_without_spread() -> None:
    low, high = interval([0, 5] * 50, 5, 1)
    assert low < 0.5 < high
    assert 0.15 < high - low < 0.25  # 2 x 1.96 x sqrt(0.25 / 100) = 0.196
    assert interval([5] * 20, 5, 1) == (1.0, 1.0)
