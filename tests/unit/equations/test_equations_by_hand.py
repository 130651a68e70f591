"""Every equation at numbers that a reader can check with a pencil; the arithmetic stands beside each."""

from __future__ import annotations

import math

import pytest
import torch

from nemo_tapo.batch import EQUAL_WEIGHTS, collate, compute_loss_coefficients, micro_batches
from nemo_tapo.equations.advantage import AdvantageRules, group_advantages, normalise
from nemo_tapo.equations.selection import Zone, classify_zone, select_pairs
from nemo_tapo.equations.suppression import suppression_weights
from nemo_tapo.equations.surrogate import cispo_surrogate, clipped_surrogate, k3_divergence
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.evaluation.passk import pass_at_k
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.types import Batch, Completion, Grade, Group, Kind, Query, Rollout, Row
from tests.helpers import reference

LN2 = math.log(2.0)
ROOT2, ROOT3 = math.sqrt(2.0), math.sqrt(3.0)


def group_of(rewards: list[float]) -> Group:
    query = Query("7", "47+38=?", "85")
    rollouts = tuple(
        Rollout(query, k, Completion((k,), str(k), False), Grade(r, "right" if r > 0 else "wrong"))
        for k, r in enumerate(rewards)
    )
    return Group(query, rollouts)


def row(kind: Kind, response: tuple[int, ...], advantage: float = 0.0, prompt: tuple[int, ...] = (0,)) -> Row:
    return Row("r", "g", kind, prompt, response, advantage=advantage)


# --------------------------------------------------------------------------- Eq. 3


@pytest.mark.parametrize(
    ("n_pos", "n_neg", "eligible"),
    [  # K = 8; c correct rollouts mean 8 - c incorrect ones, so eligible is n_pos <= c <= 8 - n_neg (Table 5)
        (2, 4, [2, 3, 4]),
        (2, 2, [2, 3, 4, 5, 6]),
        (1, 5, [1, 2, 3]),
    ],
)
def test_the_zones_of_table_5(n_pos: int, n_neg: int, eligible: list[int]) -> None:
    for correct in range(9):
        group = group_of([1.0] * correct + [0.0] * (8 - correct))
        expected = Zone.ELIGIBLE if correct in eligible else Zone.BEYOND if correct < n_pos else Zone.MASTERED
        assert classify_zone(group, n_pos, n_neg) is expected
        # m_max = 3; with n_neg = 2 and c = 6 only two incorrect ones are there
        pairs = select_pairs(group, n_pos, n_neg, 3, seed=0, step=0)
        assert len(pairs) == (min(3, 8 - correct) if correct in eligible else 0)


# --------------------------------------------------------------------------- Eq. 1, 4, 5


def test_advantages_of_two_right_in_eight() -> None:
    # mean 2/8 = 1/4; variance (2 (3/4)^2 + 6 (1/4)^2) / 8 = (18/16 + 6/16) / 8 = 3/16; deviation sqrt(3)/4
    # right: (3/4) / (sqrt(3)/4) = sqrt(3); wrong: (-1/4) / (sqrt(3)/4) = -1/sqrt(3)
    # (the sample's deviation, over 7, would be sqrt(3/14): 1.62 and -0.54)
    assert normalise([1, 0, 0, 1, 0, 0, 0, 0], 0.0) == pytest.approx(
        [ROOT3, -1 / ROOT3, -1 / ROOT3, ROOT3, -1 / ROOT3, -1 / ROOT3, -1 / ROOT3, -1 / ROOT3], rel=1e-14
    )


def test_eps_is_added_to_the_deviation() -> None:
    # rewards 1, 0: mean 1/2, deviation 1/2. With eps = 1/2: (+-1/2) / (1/2 + 1/2) = +-1/2.
    # (under the root it would be (1/2) / sqrt(1/4 + 1/2) = 0.577)
    assert normalise([1.0, 0.0], 0.5) == [0.5, -0.5]


@pytest.mark.parametrize("reward", [0.0, 1.0, 0.1])
@pytest.mark.parametrize("eps", [0.0, 1e-6])
def test_equal_rewards_have_advantage_zero(reward: float, eps: float) -> None:
    # all right, all wrong, and 0.1, whose sum over three, divided by three, is not 0.1 in binary
    assert normalise([reward] * 3, eps) == [0.0, 0.0, 0.0]


def test_the_contamination_of_section_3_4() -> None:
    # K = 8 with 2 right, and m = 4 constructed of which 3 right.
    # own group:   mean 2/8 = 0.25,   A- = -1/sqrt(3)                             = -0.577
    # mixed group: mean 5/12 = 0.417, deviation sqrt(5/12 * 7/12) = sqrt(35)/12,
    #              A- = -(5/12) / (sqrt(35)/12) = -5/sqrt(35)                     = -0.845
    #              A+ = (7/12) / (sqrt(35)/12) = 7/sqrt(35)
    original, constructed = [1.0] * 2 + [0.0] * 6, [1.0, 1.0, 1.0, 0.0]
    apart, _ = group_advantages(original, constructed, AdvantageRules(eps=0.0))
    mixed, joined = group_advantages(original, constructed, AdvantageRules(eps=0.0, decoupled=False))
    assert apart[7] == pytest.approx(-1 / ROOT3)
    assert mixed[7] == pytest.approx(-5 / math.sqrt(35))
    assert mixed[7] < apart[7]  # section 3.4: A-_mixed < A-_orig
    assert mixed[0] == pytest.approx(7 / math.sqrt(35))
    assert joined == pytest.approx([7 / math.sqrt(35)] * 3 + [-5 / math.sqrt(35)])


def test_the_contamination_needs_constructions_that_are_more_often_right_than_the_rollouts() -> None:
    # The paper asserts a higher mean whenever m+ > 0. It is higher only if m+ / m > |P| / K:
    # |P| = 4 of 8 and m+ = 1 of 4 give (4 + 1) / 12 = 0.417 < 0.5, and A- = -5/sqrt(35) = -0.845 > -1.
    joint = AdvantageRules(eps=0.0, decoupled=False)
    mixed, _ = group_advantages([1.0] * 4 + [0.0] * 4, [1.0, 0.0, 0.0, 0.0], joint)
    assert mixed[7] == pytest.approx(-5 / math.sqrt(35))
    assert mixed[7] > -1.0


def test_decoupling_leaves_the_original_advantages_alone() -> None:
    # section 3.4: "purely additive"
    original = [1.0, 0.0, 0.0, 0.0]
    alone = normalise(original, 1e-6)
    for constructed in ([], [1.0], [0.0, 0.0], [1.0, 0.0, 1.0]):
        assert group_advantages(original, constructed, AdvantageRules())[0] == alone


def test_reflection_groups() -> None:
    original = [1.0, 1.0, 0.0, 0.0]

    def of(constructed: list[float], rules: AdvantageRules) -> list[float]:
        return group_advantages(original, constructed, rules)[1]

    plain, reward = AdvantageRules(eps=0.0), AdvantageRules(eps=0.0, uniform_group="reward")
    # 1, 0, 0, 0: mean 1/4, deviation sqrt(3)/4 -> sqrt(3) and -1/sqrt(3)
    assert of([1.0, 0, 0, 0], plain) == pytest.approx([ROOT3, -1 / ROOT3, -1 / ROOT3, -1 / ROOT3])
    # a group of one: its reward (section 3.4)
    assert of([1.0], plain) == [1.0]
    assert of([0.0], plain) == [0.0]
    # two equal: 0 under Eq. 5, or the reward by option
    assert of([1.0, 1.0], plain) == [0.0, 0.0]
    assert of([1.0, 1.0], reward) == [1.0, 1.0]
    assert of([0.0, 0.0], reward) == [0.0, 0.0]
    assert of([], plain) == []
    # with the originals in the mean: 1, 1, 0, 0 and 1, 1: mean 4/6, deviation sqrt(4/6 * 2/6) = sqrt(2)/3
    # -> (1/3) / (sqrt(2)/3) = 1/sqrt(2); so a group of equal rewards has a gradient
    both = AdvantageRules(eps=0.0, baseline="with_originals")
    assert of([1.0, 1.0], both) == pytest.approx([1 / ROOT2, 1 / ROOT2])


# --------------------------------------------------------------------------- Eq. 7


def weight(probabilities: list[float], token: int, w_min: float = 0.01, w_max: float = 10.0) -> float:
    p = torch.tensor(probabilities, dtype=torch.float64)
    h = -(p * p.log()).sum()
    return float(suppression_weights(p[token].log(), h, w_min, w_max))


def test_suppression_over_three_tokens() -> None:
    # p = (1/2, 1/4, 1/4): H = 1/2 ln 2 + 1/4 ln 4 + 1/4 ln 4 = 3/2 ln 2, exp(H) = 2^(3/2)
    # token 0: 1/2 * 2^(3/2) = sqrt(2); token 1: 1/4 * 2^(3/2) = 1/sqrt(2)
    assert weight([0.5, 0.25, 0.25], 0) == pytest.approx(ROOT2)
    assert weight([0.5, 0.25, 0.25], 1) == pytest.approx(1 / ROOT2)
    # uniform: 1/3 * exp(ln 3) = 1, whatever was drawn
    assert weight([1 / 3, 1 / 3, 1 / 3], 2) == pytest.approx(1.0)
    # clamped on either side
    assert weight([0.5, 0.25, 0.25], 0, w_max=1.25) == 1.25
    assert weight([0.5, 0.25, 0.25], 1, w_min=0.75) == 0.75


def test_suppression_reaches_the_paper_s_bounds() -> None:
    # half on token 0, the rest spread over 1600: H = 1/2 ln 2 + 1/2 ln 3200 = ln 2 + 1/2 ln 1600,
    # exp(H) = 80, so token 0 would weigh 40 -> 10, and another 80/3200 = 1/40, inside the bounds
    p = [0.5] + [0.5 / 1600] * 1600
    assert weight(p, 0) == 10.0
    assert weight(p, 7) == pytest.approx(1 / 40)
    # a confident distribution: exp(H) near 1, the other token near its own probability 0.001 -> 0.01
    assert weight([0.999, 0.001], 1) == pytest.approx(0.01)


# --------------------------------------------------------------------------- Eq. 2


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [  # bounds 0.8 and 1.2; slope is d loss / d logp = -A rho where the free branch counts, else 0
        (1.5, 1.0, -1.2, 0.0, 1.0),  # min(1.5, 1.2): clipped above
        (0.5, 1.0, -0.5, -0.5, 0.0),  # min(0.5, 0.8): a good token that became rare is pulled back unclipped
        (1.5, -1.0, 1.5, 1.5, 0.0),  # min(-1.5, -1.2): a bad token that became likely is pushed unclipped
        (0.5, -1.0, 0.8, 0.0, 1.0),  # min(-0.5, -0.8) = -0.8: clipped below
        (1.1, 2.0, -2.2, -2.2, 0.0),  # inside
        (1.1, -2.0, 2.2, 2.2, 0.0),
        (1.5, 0.0, 0.0, 0.0, 0.0),  # no advantage: nothing
    ],
)
def test_clipping(ratio: float, advantage: float, loss: float, slope: float, is_clipped: float) -> None:
    logp = torch.tensor([[math.log(ratio) - 3.0]], dtype=torch.float64, requires_grad=True)
    old = torch.full((1, 1), -3.0, dtype=torch.float64)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    value, rho, clipped = clipped_surrogate(logp, old, a, 0.2, 0.2)
    value.sum().backward()
    assert logp.grad is not None
    assert float(value.detach()) == pytest.approx(loss)
    assert float(logp.grad) == pytest.approx(slope)
    assert float(rho) == pytest.approx(ratio)
    assert not rho.requires_grad
    assert float(clipped) == is_clipped


def test_clipping_with_bounds_of_different_width() -> None:
    # 1 - 0.1 = 0.9 below, 1 + 0.4 = 1.4 above
    logp = torch.tensor([[math.log(1.3), math.log(1.5), math.log(0.5)]], dtype=torch.float64)
    old = torch.zeros(1, 3, dtype=torch.float64)
    up, _, _ = clipped_surrogate(logp, old, torch.tensor([[1.0]], dtype=torch.float64), 0.1, 0.4)
    assert up[0].tolist() == pytest.approx([-1.3, -1.4, -0.5])
    down, _, _ = clipped_surrogate(logp, old, torch.tensor([[-1.0]], dtype=torch.float64), 0.1, 0.4)
    assert down[0].tolist() == pytest.approx([1.3, 1.5, 0.9])


@pytest.mark.parametrize(
    ("ratio", "advantage", "loss", "slope", "is_clipped"),
    [
        (4.0, -1.0, 3.0, 0.0, 1.0),  # -min(-4, -1.2) = 4 is held at c = 3: no gradient
        (2.0, -1.0, 2.0, 2.0, 0.0),  # below c: as without
        (0.5, -1.0, 0.8, 0.0, 1.0),  # the lower bound of Eq. 2 still holds
        (4.0, 1.0, -1.2, 0.0, 1.0),  # a good token is bounded by Eq. 2 alone
    ],
)
def test_dual_clip_bounds_the_loss_of_bad_tokens(
    ratio: float, advantage: float, loss: float, slope: float, is_clipped: float
) -> None:
    logp = torch.tensor([[math.log(ratio) - 3.0]], dtype=torch.float64, requires_grad=True)
    a = torch.tensor([[advantage]], dtype=torch.float64)
    value, _, clipped = clipped_surrogate(logp, torch.full_like(logp, -3.0), a, 0.2, 0.2, dual_clip=3.0)
    value.sum().backward()
    assert logp.grad is not None
    assert (float(value.detach()), float(logp.grad)) == pytest.approx((loss, slope))
    assert float(clipped) == is_clipped


def test_cispo_keeps_a_gradient_at_every_token() -> None:
    # rho = 0.25, 1.1, 2 with bounds 0.8 and 1.2: weights 0.8, 1.1, 1.2; loss -w A ln p, slope -w A
    probabilities, ratios = (0.1, 0.2, 0.5), (0.25, 1.1, 2.0)
    logp = torch.tensor([[math.log(p) for p in probabilities]], dtype=torch.float64, requires_grad=True)
    old = torch.tensor([[math.log(p / r) for p, r in zip(probabilities, ratios, strict=True)]], dtype=torch.float64)
    value, rho, clipped = cispo_surrogate(logp, old, torch.tensor([[-2.0]], dtype=torch.float64), 0.2, 0.2)
    value.sum().backward()
    assert logp.grad is not None
    assert logp.grad[0].tolist() == pytest.approx([1.6, 2.2, 2.4])
    assert value[0].tolist() == pytest.approx([1.6 * math.log(0.1), 2.2 * math.log(0.2), 2.4 * math.log(0.5)])
    assert rho[0].tolist() == pytest.approx(ratios)
    assert clipped[0].tolist() == [1.0, 0.0, 1.0]


def test_the_ratio_of_a_sequence() -> None:
    """Row 0: ratios 4, 1, 1/2 of its tokens, so (4 x 1 x 1/2)^(1/3) = 1.26; its last column is no token of it."""
    logs = [[math.log(4.0), 0.0, -LN2, 9.0], [math.log(1.1), math.log(1.1), 9.0, 9.0]]
    logp = torch.tensor(logs, dtype=torch.float64, requires_grad=True)
    rows = torch.tensor([[1.0, 1.0, 1.0, 0.0], [1.0, 1.0, 0.0, 0.0]], dtype=torch.float64)
    a = torch.ones(2, 1, dtype=torch.float64)
    value, rho, clipped = clipped_surrogate(logp, torch.zeros_like(logp), a, 0.2, 0.2, rows=rows)
    (value * rows).sum().backward()
    assert logp.grad is not None
    assert rho[:, 0].tolist() == pytest.approx([2 ** (1 / 3), 1.1])
    assert clipped[:, 0].tolist() == [1.0, 0.0]  # 1.26 > 1.2: the whole row, its token of ratio 1/2 included
    assert logp.grad[0].tolist() == [0.0] * 4
    assert logp.grad[1].tolist() == pytest.approx([-1.1, -1.1, 0.0, 0.0])
    impossible = torch.tensor([[-math.inf, 0.0]], dtype=torch.float64)
    gone, rho, _ = clipped_surrogate(impossible, torch.zeros(1, 2), a[:1], 0.2, 0.2, rows=torch.ones(1, 2))
    assert rho.tolist() == [[0.0, 0.0]] and gone.tolist() == [[0.0, 0.0]]


def test_k3() -> None:
    # d = ln ref - ln pi = -ln 2: 1/2 + ln 2 - 1 = 0.193; d = ln 2: 2 - ln 2 - 1 = 0.307; d = 0: 0
    pi = torch.tensor([-1.0, -1.0, -1.0], dtype=torch.float64)
    ref = pi + torch.tensor([-LN2, LN2, 0.0], dtype=torch.float64)
    assert k3_divergence(pi, ref).tolist() == pytest.approx([LN2 - 0.5, 1.0 - LN2, 0.0])


# --------------------------------------------------------------------------- Eq. 6


def test_loss_coefficients() -> None:
    rows = [
        row(Kind.ORIGINAL, (1, 1)),
        row(Kind.CONSTRUCTED, (1,) * 5),
        row(Kind.ORIGINAL, (1, 1, 1, 1)),
    ]
    weights = EQUAL_WEIGHTS | {Kind.CONSTRUCTED: 0.5}
    # row mean: 1/(2 rows * 2 tokens), 0.5/(2 original rows * 5 tokens), 1/(2 rows * 4 tokens)
    assert compute_loss_coefficients(rows, weights) == pytest.approx([0.25, 0.05, 0.125])
    # its own term: 0.5/(1 row * 5 tokens)
    assert compute_loss_coefficients(rows, weights, weighting="terms") == pytest.approx([0.25, 0.1, 0.125])
    # token mean: 1/6 on all original tokens, 0.5/6 on the constructed ones; its own term: 0.5/5
    assert compute_loss_coefficients(rows, weights, True) == pytest.approx([1 / 6, 1 / 12, 1 / 6])
    assert compute_loss_coefficients(rows, weights, True, "terms") == pytest.approx([1 / 6, 0.1, 1 / 6])
    # no original row to be divided by (likelihood on constructions): their own
    assert compute_loss_coefficients(rows[1:2], weights) == pytest.approx([0.1])
    # the original rows' numbers do not depend on what was constructed
    assert compute_loss_coefficients([rows[0], rows[2]], weights) == pytest.approx([0.25, 0.125])


def test_a_constructed_row_weighs_lambda_rollouts() -> None:
    """256 rollouts and 39 constructed rows of 10 tokens, as in a step of the demo; lambda = 1."""
    rows = [row(Kind.ORIGINAL, (1,) * 10)] * 256 + [row(Kind.CONSTRUCTED, (1,) * 10)] * 39
    by_rows = compute_loss_coefficients(rows, EQUAL_WEIGHTS)
    assert by_rows[-1] == by_rows[0] == 1 / 2560
    terms = compute_loss_coefficients(rows, EQUAL_WEIGHTS, weighting="terms")
    assert terms[-1] / terms[0] == pytest.approx(256 / 39)  # 6.6 rollouts
    alone = compute_loss_coefficients(rows[:257], EQUAL_WEIGHTS, weighting="terms")
    assert alone[-1] / alone[0] == pytest.approx(256)  # a single one weighs as much as all rollouts together


def test_micro_batches_by_length() -> None:
    # longest first: 9 alone (2 * 9 > 12); 6 and 5 (2 * 6 = 12), not 3 (3 * 6 > 12); then 3 and 2 (2 * 3)
    assert micro_batches([3, 9, 5, 6, 2], 12) == [[1], [3, 2], [0, 4]]


def log_probabilities(*columns: list[float]) -> torch.Tensor:
    return torch.tensor([[[math.log(p) for p in column] for column in columns]], dtype=torch.float64)


def whole_vocabulary(size: int) -> VocabShard:
    return VocabShard(0, size)


HALF = [0.5, 0.25, 0.25]


def test_one_row_of_each_kind() -> None:
    """Eq. 6 with lambda = 1/2, one token a row, rho = 1; prompt token 0, the response's token is 0 (p = 1/2).

    original     A = 1:           loss = -1, d loss / d z = -(onehot - p) = (-1/2, 1/4, 1/4)
    constructed  A = 2, w = sqrt(2): loss = -2 sqrt(2), times lambda: -sqrt(2);
                                  gradient -sqrt(2) (1/2, -1/4, -1/4) = (-0.707, 0.354, 0.354)
    """
    rows = [row(Kind.ORIGINAL, (0,), 1.0), row(Kind.CONSTRUCTED, (0,), 2.0)]
    batch = collate(rows, pad_id=0, term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: 0.5})
    # column 0 predicts the response; column 1 stands behind the row's end and predicts nothing
    logits = log_probabilities(HALF, [0.1, 0.1, 0.8]).repeat(2, 1, 1).requires_grad_()
    output = PolicyLoss()(logits, batch, whole_vocabulary(3))
    assert output.token_weights is not None
    output.loss.backward()  # type: ignore[no-untyped-call]
    metrics = reduce_parts([output.parts])
    assert float(output.loss.detach()) == pytest.approx(-1.0 - ROOT2, rel=1e-6)
    assert metrics["loss/original"] == pytest.approx(-1.0, rel=1e-6)
    assert metrics["loss/reflection"] == pytest.approx(-ROOT2, rel=1e-6)
    assert logits.grad is not None
    assert logits.grad[0, 0].tolist() == pytest.approx([-0.5, 0.25, 0.25], rel=1e-6)
    assert logits.grad[1, 0].tolist() == pytest.approx([-ROOT2 / 2, ROOT2 / 4, ROOT2 / 4], rel=1e-6)
    assert bool((logits.grad[:, 1] == 0).all())
    assert output.token_weights[:, 1].tolist() == pytest.approx([1.0, ROOT2], rel=1e-6)


def test_each_column_is_predicted_by_the_one_before() -> None:
    """Prompt (2, 1), response (0, 2): the loss may touch columns 1 and 2 alone, the prompt's last and the
    response's first; A = 1, T = 2, so each gradient is -(onehot - p) / 2."""
    batch = collate([row(Kind.ORIGINAL, (0, 2), 1.0, prompt=(2, 1))], pad_id=0)
    logits = log_probabilities([0.2, 0.2, 0.6], HALF, HALF, [0.3, 0.3, 0.4]).requires_grad_()
    loss = PolicyLoss()(logits, batch, whole_vocabulary(3)).loss
    loss.backward()
    assert float(loss.detach()) == pytest.approx(-1.0)
    assert logits.grad is not None
    expected = [[0.0, 0.0, 0.0], [-0.25, 0.125, 0.125], [0.25, 0.125, -0.375], [0.0, 0.0, 0.0]]
    for column, gradient in enumerate(expected):
        assert logits.grad[0, column].tolist() == pytest.approx(gradient, rel=1e-6, abs=1e-12)


def test_the_kl_penalty_is_neither_weighted_nor_scaled_by_the_advantage() -> None:
    # p(y) = 1/2 under the policy, 1/4 under the reference: d = -ln 2, k3 = ln 2 - 1/2; A = 0 leaves that
    batch = collate([row(Kind.ORIGINAL, (0,), 0.0)], pad_id=0)
    values = {**batch.as_dict(), "reference_policy_logprobs": torch.tensor([[0.0, -2 * LN2]])}
    logits = log_probabilities(HALF, HALF)
    loss = PolicyLoss(kl_coef=0.1)(logits, Batch.from_dict(values), whole_vocabulary(3)).loss
    assert float(loss) == pytest.approx(0.1 * (LN2 - 0.5), rel=1e-6)


# --------------------------------------------------------------------------- the reference itself


def test_pass_at_k() -> None:
    # n = 5, c = 2, k = 3: 1 - C(3,3)/C(5,3) = 1 - 1/10; k = 1: 2/5; c = 3, k = 3: only two wrong, so 1
    assert pass_at_k(5, 2, 3) == pytest.approx(0.9)
    assert pass_at_k(5, 2, 1) == pytest.approx(0.4)
    assert pass_at_k(5, 3, 3) == 1.0
    assert pass_at_k(5, 0, 5) == 0.0


def test_the_reference_counts_pass_at_k_as_the_formula() -> None:
    assert reference.pass_at_k(5, 2, 3) == pytest.approx(0.9)
    for c in range(6):
        for k in range(1, 6):
            assert reference.pass_at_k(5, c, k) == pytest.approx(1 - math.comb(5 - c, k) / math.comb(5, k))


def test_the_reference_at_the_numbers_above() -> None:
    z = [math.log(p) for p in HALF]
    assert reference.entropy(z) == pytest.approx(1.5 * LN2)
    assert reference.ots_weight(z, 0, 0.01, 10.0) == pytest.approx(ROOT2)
    assert reference.entropy([0.0, -math.inf, 0.0]) == pytest.approx(LN2)
    rows = [reference.Response([z], [0], 1.0), reference.Response([z], [0], 2.0, constructed=True)]
    assert reference.tapo_loss(rows, reference.Settings(weight=0.5)) == pytest.approx(-1.0 - ROOT2)
