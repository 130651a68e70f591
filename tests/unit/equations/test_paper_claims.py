"""What the paper claims in words about its own equations, worked out from the equations."""

from __future__ import annotations

import math
from fractions import Fraction

import pytest
import torch

from nemo_tapo.equations.advantage import AdvantageRules, group_advantages
from nemo_tapo.equations.suppression import suppression_weights
from nemo_tapo.evaluation.paper_results import TABLE_1, TABLE_2, TABLE_3, TABLE_4, TABLE_5

K = 8
CASES = [(right, m, good) for right in range(1, K) for m in range(1, 5) for good in range(1, m + 1)]


def advantage_of_a_wrong_rollout(right: int, size: int) -> float:
    """Eq. 1 by hand: rewards 0 and 1, mean p = right / size, deviation sqrt(p (1 - p)), so -sqrt(p / (1 - p))."""
    p = Fraction(right, size)
    return -math.sqrt(p / (1 - p))


@pytest.mark.parametrize(("right", "m", "good"), CASES)
def test_section_3_4_holds_where_corrections_are_right_more_often_than_rollouts(right: int, m: int, good: int) -> None:
    """The paper: with m+ > 0 the contaminated mean is higher and the advantage of incorrect samples more negative.

    (P + m+) / (K + m) > P / K is the same as m+ / m > P / K: that is what it takes, m+ > 0 is not enough.
    """
    rewards, made = [1.0] * right + [0.0] * (K - right), [1.0] * good + [0.0] * (m - good)
    apart, _ = group_advantages(rewards, made, AdvantageRules(eps=0.0))
    joint, _ = group_advantages(rewards, made, AdvantageRules(eps=0.0, decoupled=False))
    assert apart[-1] == pytest.approx(advantage_of_a_wrong_rollout(right, K))
    assert joint[-1] == pytest.approx(advantage_of_a_wrong_rollout(right + good, K + m))
    higher_mean = Fraction(right + good, K + m) > Fraction(right, K)
    assert higher_mean == (Fraction(good, m) > Fraction(right, K))
    if higher_mean:
        assert joint[-1] < apart[-1] - 1e-9
        assert joint[0] < apart[0] - 1e-9, "and right rollouts get less"
    elif Fraction(good, m) < Fraction(right, K):
        assert joint[-1] > apart[-1] + 1e-9


def test_the_claim_fails_in_part_of_the_zpd_of_the_paper() -> None:
    """With its thresholds (n_pos = 2, n_neg = 4, m_max = 4) a query has 2 to 4 of 8 right.

    Of 2 right: 1 of 4 corrections right. Of 3: 1 of 3, 1 of 4. Of 4: 1 of 2, 1 of 3, 1 of 4, 2 of 4.
    """
    zone = [(right, m, good) for right, m, good in CASES if 2 <= right <= 4]
    against = [c for c in zone if Fraction(c[2], c[1]) <= Fraction(c[0], K)]
    assert (len(against), len(zone)) == (7, 30)


def test_decoupled_advantages_do_not_depend_on_what_was_constructed() -> None:
    """Section 4.5 says that without negatives "the group mean is artificially elevated", so that "original correct
    samples receive inappropriately low advantages". Under Eq. 4 they cannot: their group has no constructed sample.
    """
    rewards = [1.0] * 3 + [0.0] * 5
    with_negatives, _ = group_advantages(rewards, [1.0, 1.0, 0.0], AdvantageRules(eps=0.0))
    without, _ = group_advantages(rewards, [1.0, 1.0], AdvantageRules(eps=0.0))
    assert with_negatives == without


@pytest.mark.parametrize("spread", [0.1, 1.0, 4.0])
def test_weights_of_on_policy_tokens_are_above_one_on_average(spread: float) -> None:
    """Section 3.5: s_t is about 0 and w_t about 1 for in-distribution tokens. For y ~ p, E[log p + H] = 0 exactly, so
    by Jensen E[exp(log p + H)] >= 1, with equality for a uniform p only.
    """
    torch.manual_seed(0)
    logits = torch.randn(200, 50, dtype=torch.float64) * spread
    p = torch.softmax(logits, -1)
    entropy = -(p * p.log()).sum(-1, keepdim=True)
    weights = suppression_weights(p.log(), entropy.expand_as(p), 0.0, math.inf)
    torch.testing.assert_close((p * (p.log() + entropy)).sum(-1), torch.zeros(200, dtype=torch.float64))
    mean = (p * weights).sum(-1)
    assert bool((mean >= 1.0).all())
    assert float(mean.mean()) > 1.0 + 1e-3 * spread


def test_the_upper_bound_of_the_weights_is_rarely_met() -> None:
    """w = exp(H) p(y): above w_max = 10 only where H > ln 10 + ln(1 / p), so never below 2.3 nats of entropy."""
    entropy = torch.tensor([math.log(10.0) - 1e-6, math.log(10.0) + 1.0], dtype=torch.float64)
    weights = suppression_weights(torch.zeros(2, dtype=torch.float64), entropy, 0.01, 10.0)
    assert weights.tolist() == pytest.approx([10.0 * math.exp(-1e-6), 10.0])


def test_the_tables_are_shares_of_480_samples() -> None:
    """30 problems x 16 runs: the printed pass@k are "any of the first k of 5", counted, not the unbiased estimate."""
    printed = [v for rows in TABLE_1.values() for row in rows.values() for v in row]
    printed += [v for table in (TABLE_3, TABLE_4, TABLE_5) for row in table.values() for v in row]
    assert len(printed) == 219
    off = [v for v in printed if abs(v * 4.8 - round(v * 4.8)) > 0.005 * 4.8 + 1e-9]
    assert off == [31.52, 68.45]  # pass@2 of the base, pass@4 of it with thinking, both on AIME 2024


def test_the_differences_of_table_2() -> None:
    """All but one of the printed differences are those of the printed rates."""
    grpo, tapo, printed = (TABLE_2[name] for name in ("Cold-start + GRPO", "Cold-start + TAPO", "Δ"))
    wrong = [
        (rate, round(b - a, 1), told)
        for rate in ("DSR", "ERR")
        for a, b, told in zip(grpo[rate], tapo[rate], printed[rate], strict=True)
        if round(b - a, 1) != told
    ]
    assert wrong == [("DSR", 22.4, 22.3)]


@pytest.mark.parametrize(
    ("benchmark", "better", "worse", "told"),
    [  # section 4.2, in words
        ("AIME 2024", "Cold-start + TAPO", "Cold-start + GRPO", 9.58),
        ("AIME 2024", "Cold-start + TAPO", "Cold-start + OPSD", 4.79),
        ("AIME 2025", "Cold-start + TAPO", "Cold-start + GRPO", 0.00),
        ("AIME 2025", "Cold-start + TAPO", "Cold-start + OPSD", 3.55),
        ("HMMT 2025", "Cold-start + TAPO", "Cold-start + GRPO", 2.71),
        ("HMMT 2025", "Cold-start + TAPO", "Cold-start + OPSD", 7.29),
        ("AIME 2024", "Qwen3-8B-Instruct + TAPO", "Qwen3-8B-Instruct + GRPO", 8.54),
        ("AIME 2025", "Qwen3-8B-Instruct + GRPO", "Qwen3-8B-Instruct + TAPO", 0.83),
        ("HMMT 2025", "Qwen3-8B-Instruct + GRPO", "Qwen3-8B-Instruct + TAPO", 2.29),
    ],
)
def test_the_differences_of_table_1(benchmark: str, better: str, worse: str, told: float) -> None:
    rows = TABLE_1[benchmark]
    assert rows[better][0] - rows[worse][0] == pytest.approx(told, abs=1e-9)
