"""The implementation against `tests/reference.py` on random input: values, gradients, invariances.

The objective is fed float64 logits; advantages, coefficients and old log-probabilities travel in a Batch as
float32, which is what the tolerances allow for.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.batch import EQUAL_WEIGHTS, collate, compute_loss_coefficients, micro_batches
from nemo_tapo.config.run_config import validate
from nemo_tapo.equations.advantage import AdvantageRules, group_advantages, normalise
from nemo_tapo.equations.selection import classify_zone, select_pairs
from nemo_tapo.equations.suppression import suppression_weights
from nemo_tapo.equations.surrogate import clipped_surrogate, k3_divergence
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.evaluation.passk import pass_at_k
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import Parts, reduce_parts
from nemo_tapo.types import (
    Batch,
    Completion,
    Construction,
    Experience,
    Grade,
    Group,
    Kind,
    Pair,
    Query,
    Rollout,
    Row,
)
from tests.helpers import reference

INF = math.inf
fast = settings(max_examples=60, deadline=None, derandomize=True)
slow = settings(max_examples=25, deadline=None, derandomize=True)

binary = st.sampled_from([0.0, 1.0])
graded = st.sampled_from([0.0, 0.1, 0.3, 1.0])  # a verifier may give parts; sums of these do not stay exact
groups = st.one_of(st.lists(binary, min_size=1, max_size=10), st.lists(graded, min_size=1, max_size=10))
sets = st.one_of(st.lists(binary, max_size=5), st.lists(graded, max_size=5))  # of constructions: may be empty
epsilons = st.sampled_from([0.0, 1e-8, 1e-6, 1e-4, 0.5])


def group_of(rewards: list[float], uid: str = "q") -> Group:
    query = Query(uid, "?", "!", prompt_ids=(1, 2))
    rollouts = tuple(
        Rollout(query, k, Completion((k % 3, 3), str(k), False), Grade(r, "right" if r > 0 else "wrong"))
        for k, r in enumerate(rewards)
    )
    return Group(query, rollouts)


# --------------------------------------------------------------------------- Eq. 3


@fast
@given(
    rewards=st.lists(binary, min_size=2, max_size=9),
    n_pos=st.integers(1, 5),
    n_neg=st.integers(1, 5),
    m_max=st.integers(1, 6),
    seed=st.integers(0, 9),
    step=st.integers(0, 9),
)
def test_selection(rewards: list[float], n_pos: int, n_neg: int, m_max: int, seed: int, step: int) -> None:
    assume(n_pos + n_neg <= len(rewards))  # otherwise an error of the configuration
    group = group_of(rewards)
    assert classify_zone(group, n_pos, n_neg).value == reference.zone(rewards, n_pos, n_neg)
    pairs = select_pairs(group, n_pos, n_neg, m_max, seed, step)
    assert len(pairs) == reference.pair_count(rewards, n_pos, n_neg, m_max)
    assert [p.index for p in pairs] == list(range(len(pairs)))
    assert all(p.wrong.reward == 0 and p.right.reward > 0 for p in pairs)
    assert len({p.wrong.uid for p in pairs}) == len(pairs)  # without replacement
    assert pairs == select_pairs(group, n_pos, n_neg, m_max, seed, step)


@pytest.mark.parametrize("rewards", [[0.0, 0.0, 1.0], [1.0, 1.0, 0.0], [0.0] * 8, [1.0] * 8])
def test_too_few_of_either_kind_give_no_pair(rewards: list[float]) -> None:
    assert select_pairs(group_of(rewards), 2, 2, 4, 0, 0) == ()


def test_thresholds_that_no_query_can_meet_are_refused() -> None:
    # K = 8 with (n_pos, n_neg) = (4, 5) would leave a query outside for both reasons
    with pytest.raises(ValueError, match="samples_per_query"):
        validate({"tapo": {"n_pos": 4, "n_neg": 5}})


def test_the_draw_is_uniform_and_independent() -> None:
    """3 of 5 wrong ones without replacement, a reference each out of 4 with; bounds are 5 sigma."""
    group = group_of([1.0, 1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.0])
    draws = 3000
    chosen: Counter[int] = Counter()
    first: Counter[int] = Counter()
    joint: Counter[tuple[int, int]] = Counter()
    repeated = 0
    for step in range(draws):
        pairs = select_pairs(group, 1, 1, 3, seed=0, step=step)
        first[pairs[0].wrong.index] += 1
        for pair in pairs:
            chosen[pair.wrong.index] += 1
            joint[pair.wrong.index, pair.right.index] += 1
        repeated += pairs[0].right.index == pairs[1].right.index

    def near(count: int, trials: int, p: float) -> bool:
        return abs(count - trials * p) < 5 * math.sqrt(trials * p * (1 - p))

    assert all(near(chosen[w], draws, 3 / 5) for w in range(4, 9))
    assert all(near(first[w], draws, 1 / 5) for w in range(4, 9))
    assert all(near(joint[w, r], 3 * draws, 1 / 20) for w in range(4, 9) for r in range(4))
    assert near(repeated, draws, 1 / 4)  # with replacement: two references agree one time in four


def test_the_draw_depends_on_seed_step_and_uid() -> None:
    rewards = [1.0] * 6 + [0.0] * 6

    def chosen(seed: int, step: int, uid: str) -> list[tuple[int, int]]:
        pairs = select_pairs(group_of(rewards, uid), 1, 1, 6, seed, step)
        return [(p.wrong.index, p.right.index) for p in pairs]

    once = chosen(0, 0, "a")
    assert once != chosen(1, 0, "a")
    assert once != chosen(0, 1, "a")
    assert once != chosen(0, 0, "b")
    assert chosen(1, 11, "1") != chosen(11, 1, "1")  # the parts are kept apart: "1" + "11" is not "11" + "1"
    assert once == chosen(0, 0, "a")  # whatever was drawn in between


# --------------------------------------------------------------------------- Eq. 1, 4, 5


@fast
@given(rewards=groups, eps=epsilons)
def test_normalise(rewards: list[float], eps: float) -> None:
    expected = reference.normalised(rewards, rewards, eps)
    assert normalise(rewards, eps) == pytest.approx(expected, rel=1e-9, abs=1e-12)


@settings(max_examples=200, deadline=None, derandomize=True)
@given(
    original=groups,
    constructed=sets,
    eps=epsilons,
    decoupled=st.booleans(),
    uniform_group=st.sampled_from(["zero", "reward"]),
    baseline=st.sampled_from(["constructed", "with_originals"]),
)
def test_group_advantages(
    original: list[float],
    constructed: list[float],
    eps: float,
    decoupled: bool,
    uniform_group: Any,
    baseline: Any,
) -> None:
    rules = AdvantageRules(eps=eps, decoupled=decoupled, uniform_group=uniform_group, baseline=baseline)
    expected = reference.advantages(
        original,
        constructed,
        eps,
        decoupled=decoupled,
        uniform_group=uniform_group,
        reflection_baseline=baseline,
    )
    got_original, got_constructed = group_advantages(original, constructed, rules)
    assert got_original == pytest.approx(expected.original, rel=1e-9, abs=1e-12)
    assert got_constructed == pytest.approx(expected.constructed, rel=1e-9, abs=1e-12)


@fast
@given(rewards=st.lists(graded, min_size=2, max_size=10))
def test_advantages_have_mean_zero_and_variance_one(rewards: list[float]) -> None:
    assume(len(set(rewards)) > 1)
    values = np.array(normalise(rewards, 0.0))
    assert values.mean() == pytest.approx(0.0, abs=1e-9)
    assert (values**2).mean() == pytest.approx(1.0)  # of the population, as Eq. 1 divides


@fast
@given(right=st.integers(1, 7), m=st.integers(1, 6), share=st.integers(1, 6))
def test_contamination(right: int, m: int, share: int) -> None:
    """Section 3.4 for groups of 8: with m+/m > |P|/K the mean rises and A- falls; with less, the reverse."""
    correct = min(share, m)
    original = [1.0] * right + [0.0] * (8 - right)
    constructed = [1.0] * correct + [0.0] * (m - correct)
    apart, _ = group_advantages(original, constructed, AdvantageRules(eps=0.0))
    mixed, _ = group_advantages(original, constructed, AdvantageRules(eps=0.0, decoupled=False))
    if correct * 8 > right * m:
        assert mixed[-1] < apart[-1]
    elif correct * 8 < right * m:
        assert mixed[-1] > apart[-1]
    else:
        assert mixed[-1] == pytest.approx(apart[-1])


def experience_of(
    rewards: list[tuple[list[float], list[float | None]]],
) -> Experience:
    """Groups and constructions by their rewards; None is a construction that was dropped on the way."""
    made, constructions = [], []
    for number, (original, constructed) in enumerate(rewards):
        group = group_of(original, uid=str(number))
        made.append(group)
        for index, reward in enumerate(constructed):
            pair = Pair(group.rollouts[0], group.rollouts[-1], index)
            if reward is None:
                constructions.append(Construction(pair, "empty"))
                continue
            ids = tuple([index % 3] * (1 + index) + [3])
            grade = Grade(reward, "right" if reward > 0 else "wrong")
            constructions.append(Construction(pair, None, response_ids=ids, grade=grade))
    return Experience(tuple(made), tuple(constructions))


def tapo_of(**switches: Any) -> TAPO:
    cfg = validate({"tapo": switches, "loss": {"advantage_eps": 1e-6}})
    return TAPO(cfg, SimpleNamespace(task=SimpleNamespace(synthesis_prompt="", error_quote="")))  # type: ignore[arg-type]


@settings(max_examples=100, deadline=None, derandomize=True)
@given(
    rewards=st.lists(
        st.tuples(
            st.lists(binary, min_size=1, max_size=8),
            st.lists(st.sampled_from([None, 0.0, 1.0]), max_size=4),
        ),
        min_size=1,
        max_size=4,
    ),
    switches=st.fixed_dictionaries(
        {
            "decoupled": st.booleans(),
            "negatives": st.booleans(),
            "uniform_group": st.sampled_from(["zero", "reward"]),
            "reflection_baseline": st.sampled_from(["constructed", "with_originals"]),
        }
    ).map(lambda s: s if s["decoupled"] else s | {"uniform_group": "zero", "reflection_baseline": "constructed"}),
)
def test_the_rows_of_a_step(rewards: list[tuple[list[float], list[float | None]]], switches: dict[str, Any]) -> None:
    """Which rows a step has, in which group and with which advantage, for every switch of Table 4."""
    rows = tapo_of(**switches).make_rows(experience_of(rewards))
    expected: list[tuple[str, Kind, float, float]] = []
    for number, (original, constructed) in enumerate(rewards):
        parsed = [r for r in constructed if r is not None]
        want = reference.advantages(original, parsed, 1e-6, **switches)
        uid = str(number)
        reflected = f"{uid}_reflected" if switches["decoupled"] else uid
        for r, a in zip(original, want.original, strict=True):
            expected.append((uid, Kind.ORIGINAL, r, a))
        for place, a in zip(want.kept, want.constructed, strict=True):
            expected.append((reflected, Kind.CONSTRUCTED, parsed[place], a))
    assert [(row.group, row.kind, row.reward) for row in rows] == [e[:3] for e in expected]
    assert [row.advantage for row in rows] == pytest.approx([e[3] for e in expected], rel=1e-9, abs=1e-12)
    assert len({row.uid for row in rows}) == len(rows)


def test_without_negatives_the_default_leaves_no_gradient_but_that_of_groups_of_one() -> None:
    """Table 4, "w/o Negative": what remains has reward 1 throughout, so Eq. 5 gives 0 to any two or more."""
    made = experience_of([([1.0, 0.0, 0.0], [1.0, 1.0, 0.0]), ([1.0, 0.0], [1.0, 0.0])])

    def advantages(**switches: Any) -> list[float]:
        return [r.advantage for r in tapo_of(**switches).make_rows(made) if r.kind is Kind.CONSTRUCTED]

    assert advantages(negatives=False) == [0.0, 0.0, 1.0]
    assert advantages(negatives=False, uniform_group="reward") == [1.0, 1.0, 1.0]


# --------------------------------------------------------------------------- Eq. 2, 7, 8 token by token

logps = st.floats(-30, 0, allow_nan=False)


@fast
@given(
    logp=logps,
    gap=st.floats(-3, 3),
    advantage=st.floats(-3, 3),
    low=st.sampled_from([0.0, 0.1, 0.2, 1.0]),
    high=st.sampled_from([0.0, 0.2, 0.28, 2.0]),
)
def test_clipped_surrogate(logp: float, gap: float, advantage: float, low: float, high: float) -> None:
    ratio = math.exp(logp - (logp - gap))
    value, rho, clipped = clipped_surrogate(*_scalars(logp, logp - gap, advantage), low, high)
    expected = reference.surrogate(ratio, advantage, low, high)
    assert float(value) == pytest.approx(expected, rel=1e-9, abs=1e-12)
    assert float(rho) == pytest.approx(ratio)
    if abs(ratio - (1 - low)) > 1e-9 and abs(ratio - (1 + high)) > 1e-9 and advantage != 0:
        binds = ratio > 1 + high if advantage > 0 else ratio < 1 - low
        assert bool(clipped) is binds


@fast
@given(logp=logps, ref=logps)
def test_k3_divergence(logp: float, ref: float) -> None:
    value = float(k3_divergence(*_scalars(logp, ref)))
    assert value == pytest.approx(reference.k3(logp, ref), rel=1e-9, abs=1e-9)
    assert value >= 0


@pytest.mark.parametrize("distance", [1e-2, 1e-4])
def test_k3_divergence_keeps_its_precision_near_zero(distance: float) -> None:
    """In float32 exp(d) - d - 1 is rounding noise where |d| is 1e-4: Figure 3(f) starts there."""
    draw = np.random.default_rng(0)
    logp = torch.tensor(-3 * draw.random(2000), dtype=torch.float32)
    ref = logp + torch.tensor(distance * draw.normal(size=2000), dtype=torch.float32)
    value = k3_divergence(logp, ref)
    pairs = zip(logp.double().tolist(), ref.double().tolist(), strict=True)
    expected = reference.mean([reference.k3(a, b) for a, b in pairs])
    assert bool((value >= 0).all())
    assert float(value.double().mean()) == pytest.approx(expected, rel=1e-3)


@fast
@given(
    logits=st.lists(st.one_of(st.floats(-20, 20), st.just(0.0), st.just(-INF)), min_size=2, max_size=8),
    w_min=st.sampled_from([0.0, 0.01, 0.5]),
    w_max=st.sampled_from([0.6, 1.0, 10.0]),
    data=st.data(),
)
def test_suppression_weights(logits: list[float], w_min: float, w_max: float, data: Any) -> None:
    assume(max(logits) > -INF)
    token = data.draw(st.integers(0, len(logits) - 1))  # may be an impossible token: then w_min
    logp, h = reference.log_softmax(logits)[token], reference.entropy(logits)
    value = float(suppression_weights(*_scalars(logp, h), w_min, w_max))
    assert value == pytest.approx(reference.ots_weight(logits, token, w_min, w_max))


def _scalars(*values: float) -> tuple[Tensor, ...]:
    return tuple(torch.tensor(v, dtype=torch.float64) for v in values)


# --------------------------------------------------------------------------- Eq. 6: the objective


class Case:
    """Random rows three times over: as Rows in a Batch, as logits, and as the reference's Responses."""

    def __init__(
        self,
        seed: int,
        kinds: list[bool],
        *,
        vocabulary: int = 5,
        padded: int = 0,
        longest: int = 4,
        old: bool = False,
        ref: bool = False,
        ties: bool = False,
        impossible: bool = False,
        loss: reference.Settings | None = None,
    ) -> None:
        self.loss = loss or reference.Settings()
        self.vocabulary = vocabulary
        draw = np.random.default_rng(seed)
        self.rows: list[Row] = []
        for i, constructed in enumerate(kinds):
            prompt, response = int(draw.integers(1, 4)), int(draw.integers(1, longest + 1))
            self.rows.append(
                Row(
                    uid=str(i),
                    group="g",
                    kind=Kind.CONSTRUCTED if constructed else Kind.ORIGINAL,
                    prompt_ids=tuple(int(v) for v in draw.integers(0, vocabulary, prompt)),
                    response_ids=tuple(int(v) for v in draw.integers(0, vocabulary, response)),
                    advantage=float(np.float32(draw.normal())) if draw.random() > 0.1 else 0.0,
                )
            )
        batch = collate(
            self.rows,
            0,
            term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: self.loss.weight},
            token_mean=self.loss.token_mean,
            weighting="terms" if self.loss.terms else "rows",
        )
        z = draw.normal(size=(*batch.input_ids.shape, vocabulary + padded)) * 2.0
        if ties:
            z = np.round(z)
        if impossible:
            for i, row in enumerate(self.rows):
                for t, token in enumerate(row.response_ids):
                    out = draw.random(z.shape[-1]) < 0.3
                    out[token] = False
                    z[i, len(row.prompt_ids) - 1 + t, out] = -INF
        self.logits = torch.tensor(z)
        extra: dict[str, Tensor] = {}
        for name, wanted in (("prev_logprobs", old), ("reference_policy_logprobs", ref)):
            if wanted:
                extra[name] = self._near(draw)
        self.batch = Batch.from_dict({**batch.as_dict(), **extra})
        self.responses = [self._response(i) for i in range(len(self.rows))]

    def _logp(self, i: int, t: int) -> float:
        row = self.rows[i]
        column = self.logits[i, len(row.prompt_ids) - 1 + t, : self.vocabulary].tolist()
        return reference.log_softmax(column)[row.response_ids[t]]

    def _near(self, draw: np.random.Generator) -> Tensor:
        """Log-probabilities about as far off as one update moves them; 0 outside the responses."""
        values = torch.zeros(self.logits.shape[:2], dtype=torch.float32)
        for i, row in enumerate(self.rows):
            for t in range(len(row.response_ids)):
                values[i, len(row.prompt_ids) + t] = min(0.0, self._logp(i, t) + float(draw.normal()) * 0.4)
        return values

    def _response(self, i: int) -> reference.Response:
        row = self.rows[i]
        p, n = len(row.prompt_ids), len(row.response_ids)

        def of(values: Tensor | None) -> list[float] | None:
            return None if values is None else values[i, p : p + n].double().tolist()

        return reference.Response(
            logits=self.logits[i, p - 1 : p - 1 + n, : self.vocabulary].tolist(),
            tokens=row.response_ids,
            advantage=row.advantage,
            constructed=row.kind is Kind.CONSTRUCTED,
            old=of(self.batch.prev_logprobs),
            ref=of(self.batch.reference_policy_logprobs),
        )

    @property
    def policy_loss(self) -> PolicyLoss:
        s = self.loss
        return PolicyLoss(
            s.clip_low, s.clip_high, s.kl_coef, s.suppression, s.w_min, s.w_max, dual_clip=s.dual_clip,
            ratio="sequence" if s.sequence else "token", surrogate="cispo" if s.cispo else "clipped",
        )  # fmt: skip

    def expected(self) -> tuple[float, Tensor]:
        """The reference's loss and its gradient, laid out like the logits; 0 where no token is predicted."""
        leaves = [torch.tensor(r.logits, dtype=torch.float64).requires_grad_() for r in self.responses]
        loss = reference.differentiable_loss(self.responses, leaves, self.loss)
        value = reference.tapo_loss(self.responses, self.loss)
        assert float(loss.detach()) == pytest.approx(value, rel=1e-9, abs=1e-12)  # said twice, the same twice
        gradient = torch.zeros_like(self.logits)
        if loss.requires_grad:  # not if every single token is clipped
            loss.backward()
        for i, leaf in enumerate(leaves):
            p = len(self.rows[i].prompt_ids)
            if leaf.grad is not None:
                gradient[i, p - 1 : p - 1 + leaf.shape[0], : self.vocabulary] = leaf.grad
        return value, gradient


def shard(vocabulary: int) -> VocabShard:
    return VocabShard(0, vocabulary)


def evaluate(
    policy_loss: PolicyLoss, logits: Tensor, batch: Batch, vocabulary: int
) -> tuple[float, Tensor, Parts, Tensor]:
    """(loss, gradient, metrics, weights) of one call."""
    leaf = logits.clone().requires_grad_()
    output = policy_loss(leaf, batch, shard(vocabulary))
    output.loss.backward()  # type: ignore[no-untyped-call]
    assert leaf.grad is not None and output.token_weights is not None
    return float(output.loss.detach()), leaf.grad, output.parts, output.token_weights


def close(a: Tensor, b: Tensor, tolerance: float = 2e-6) -> bool:
    return bool(torch.allclose(a.double(), b.double(), rtol=tolerance, atol=tolerance))


kinds = st.lists(st.booleans(), min_size=1, max_size=5)
variants: list[dict[str, Any]] = [
    {}, {}, {"dual_clip": 1.2}, {"sequence": True}, {"sequence": True, "dual_clip": 1.05}, {"cispo": True},
]  # fmt: skip
loss_settings = st.builds(
    lambda variant, **others: reference.Settings(**others, **variant),
    variant=st.sampled_from(variants),
    weight=st.sampled_from([0.0, 0.5, 1.0, 3.0]),
    suppression=st.booleans(),
    w_min=st.sampled_from([0.01, 0.5]),
    w_max=st.sampled_from([1.0, 10.0]),
    clip_low=st.sampled_from([0.1, 0.2]),
    clip_high=st.sampled_from([0.2, 0.28]),
    token_mean=st.booleans(),
    terms=st.booleans(),
)


@settings(max_examples=120, deadline=None, derandomize=True)
@given(
    seed=st.integers(0, 10**6),
    kinds=kinds,
    loss=loss_settings,
    kl=st.booleans(),
    old=st.booleans(),
    ties=st.booleans(),
    impossible=st.booleans(),
    longest=st.sampled_from([1, 4]),
)
def test_value_and_gradient(
    seed: int,
    kinds: list[bool],
    loss: reference.Settings,
    kl: bool,
    old: bool,
    ties: bool,
    impossible: bool,
    longest: int,
) -> None:
    case = Case(
        seed,
        kinds,
        longest=longest,
        old=old,
        ref=kl,
        ties=ties,
        impossible=impossible,
        loss=replace(loss, kl_coef=0.3 if kl else 0.0),
    )
    expected, gradient = case.expected()
    value, got, metrics, weights = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    assert value == pytest.approx(expected, rel=5e-6, abs=5e-6)
    assert close(got, gradient)
    sums = reduce_parts([metrics])
    split = sums["loss/original"] + sums["loss/reflection"]
    assert split == pytest.approx(sums["loss"], rel=1e-5, abs=1e-5)
    s = case.loss
    for i, response in enumerate(case.responses):
        for t, token in enumerate(response.tokens):
            w = 1.0
            if response.constructed and s.suppression:
                w = reference.ots_weight(response.logits[t], token, s.w_min, s.w_max)
            assert float(weights[i, len(case.rows[i].prompt_ids) + t]) == pytest.approx(w, rel=1e-5)


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, variant=st.sampled_from(variants))
def test_with_one_update_a_batch_every_variant_has_the_same_gradient(
    seed: int, kinds: list[bool], variant: dict[str, Any]
) -> None:
    """The ratio is 1, so no bound decides, and the gradient is that of log p; token weights of Eq. 7 included."""
    plain, varied = Case(seed, kinds), Case(seed, kinds, loss=reference.Settings(**variant))
    _, gradient, _, _ = evaluate(plain.policy_loss, plain.logits, plain.batch, plain.vocabulary)
    _, got, _, _ = evaluate(varied.policy_loss, varied.logits, varied.batch, varied.vocabulary)
    assert close(got, gradient)


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, padded=st.integers(1, 4))
def test_vocabulary_padding_is_no_part_of_the_distribution(seed: int, kinds: list[bool], padded: int) -> None:
    """Megatron rounds the vocabulary up; whatever stands in the added columns, it has no probability."""
    case = Case(seed, kinds, padded=padded)
    expected, gradient = case.expected()
    value, got, _, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    assert value == pytest.approx(expected, rel=5e-6, abs=5e-6)
    assert close(got, gradient)
    assert bool((got[..., case.vocabulary :] == 0).all())


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, loss=loss_settings, old=st.booleans(), order=st.randoms())
def test_the_order_of_rows_does_not_matter(
    seed: int, kinds: list[bool], loss: reference.Settings, old: bool, order: Any
) -> None:
    case = Case(seed, kinds, old=old, loss=loss)
    index = list(range(len(kinds)))
    order.shuffle(index)
    value, gradient, _, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    batch = case.batch.select(index)
    again, shuffled, _, _ = evaluate(case.policy_loss, case.logits[index], batch, case.vocabulary)
    assert again == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert close(shuffled, gradient[index])


@fast
@given(lengths=st.lists(st.integers(1, 30), min_size=1, max_size=12), most=st.integers(1, 100))
def test_micro_batches_are_a_partition_within_the_budget(lengths: list[int], most: int) -> None:
    parts = micro_batches(lengths, most)
    assert sorted(i for part in parts for i in part) == list(range(len(lengths)))
    assert all(len(part) == 1 or len(part) * max(lengths[i] for i in part) <= most for part in parts)
    assert parts == micro_batches(lengths, most)


@slow
@given(
    seed=st.integers(0, 10**6),
    kinds=st.lists(st.booleans(), min_size=2, max_size=6),
    loss=loss_settings,
    most=st.integers(4, 24),
)
def test_micro_batches_sum_to_the_whole(seed: int, kinds: list[bool], loss: reference.Settings, most: int) -> None:
    case = Case(seed, kinds, old=True, ref=True, loss=replace(loss, kl_coef=0.1))
    value, gradient, metrics, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    total, parts = 0.0, []
    for index in micro_batches(case.batch.input_lengths.tolist(), most):
        batch = case.batch.select(index)
        width = batch.input_ids.shape[1]
        part, got, sums, _ = evaluate(case.policy_loss, case.logits[index][:, :width], batch, case.vocabulary)
        total += part
        parts.append(sums)
        assert close(got, gradient[index][:, :width])
        assert bool((gradient[index][:, width:] == 0).all())
    assert total == pytest.approx(value, rel=1e-6, abs=1e-6)
    together, apart = reduce_parts([metrics]), reduce_parts(parts)
    assert together.keys() == apart.keys()
    assert apart == pytest.approx(together, rel=1e-4, abs=1e-5)


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, loss=loss_settings, filler=st.integers(1, 3))
def test_rows_that_only_fill_up_change_nothing(
    seed: int, kinds: list[bool], loss: reference.Settings, filler: int
) -> None:
    """sample_mask 0, whatever else the row says: no loss, no gradient, no metric."""
    case = Case(seed, kinds, old=True, loss=loss)
    value, gradient, metrics, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    rows = len(kinds)
    index = list(range(rows)) + [i % rows for i in range(filler)]
    batch = case.batch.select(index)
    mask = batch.sample_mask.clone()
    mask[rows:] = 0.0
    batch = replace(batch, sample_mask=mask, advantages=batch.advantages + (mask == 0) * 7.0)
    again, got, sums, _ = evaluate(case.policy_loss, case.logits[index], batch, case.vocabulary)
    assert again == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert close(got[:rows], gradient)
    assert bool((got[rows:] == 0).all())
    assert reduce_parts([sums]) == pytest.approx(reduce_parts([metrics]), rel=1e-5, abs=1e-6)


@slow
@given(
    seed=st.integers(0, 10**6),
    kinds=kinds,
    more=st.integers(1, 3),
    junk=st.sampled_from([0.0, 1e4, -1e4]),
    kl=st.booleans(),
)
def test_padding_changes_nothing(seed: int, kinds: list[bool], more: int, junk: float, kl: bool) -> None:
    """Further columns, with a logit in them that makes the padding token certain or impossible."""
    case = Case(seed, kinds, old=True, ref=kl, loss=reference.Settings(kl_coef=0.3 if kl else 0.0))
    value, gradient, metrics, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    pad = torch.nn.functional.pad
    wide = {k: pad(v, (0, more)) if v.ndim == 2 else v for k, v in case.batch.as_dict().items()}
    logits = pad(case.logits, (0, 0, 0, more))
    for i, row in enumerate(case.rows):
        logits[i, row.length - 1 :, 0] = junk  # token 0 pads
    again, got, sums, _ = evaluate(case.policy_loss, logits, Batch.from_dict(wide), case.vocabulary)
    assert again == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert bool(torch.isfinite(got).all())
    assert close(got[:, : gradient.shape[1]], gradient)
    assert bool((got[:, gradient.shape[1] :] == 0).all())
    assert reduce_parts([sums]) == pytest.approx(reduce_parts([metrics]), rel=1e-5, abs=1e-6)


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, token_mean=st.booleans(), old=st.booleans())
def test_lambda_zero_is_grpo(seed: int, kinds: list[bool], token_mean: bool, old: bool) -> None:
    """With the reflection term switched off, OTS or not, what is left is GRPO on the original rows."""
    assume(not all(kinds))
    case = Case(seed, kinds, old=old, loss=reference.Settings(weight=0.0, token_mean=token_mean))
    value, gradient, _, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    originals = [i for i, constructed in enumerate(kinds) if not constructed]
    grpo = [case.responses[i] for i in originals]
    assert value == pytest.approx(reference.term(grpo, case.loss), rel=5e-6, abs=5e-6)
    assert bool((gradient[[i for i, constructed in enumerate(kinds) if constructed]] == 0).all())
    alone = collate([case.rows[i] for i in originals], 0, token_mean=token_mean)
    if case.batch.prev_logprobs is not None:
        width = alone.input_ids.shape[1]
        alone = replace(alone, prev_logprobs=case.batch.prev_logprobs[originals][:, :width])
    width = alone.input_ids.shape[1]
    plain = replace(case.policy_loss, suppression=False)
    same, got, _, _ = evaluate(plain, case.logits[originals][:, :width], alone, case.vocabulary)
    assert same == pytest.approx(value, rel=1e-6, abs=1e-6)
    assert close(got, gradient[originals][:, :width])


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, terms=st.booleans())
def test_constructed_rows_leave_the_original_term_alone(seed: int, kinds: list[bool], terms: bool) -> None:
    """Section 3.4: purely additive. The original rows' gradient is bit for bit that of GRPO alone."""
    case = Case(seed, [False, *kinds], loss=reference.Settings(terms=terms))
    _, gradient, _, _ = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    index = [i for i, row in enumerate(case.rows) if row.kind is Kind.ORIGINAL]
    alone = collate([case.rows[i] for i in index], 0)
    width = alone.input_ids.shape[1]
    _, got, _, _ = evaluate(case.policy_loss, case.logits[index][:, :width], alone, case.vocabulary)
    assert bool(torch.equal(got, gradient[index][:, :width]))


@slow
@given(seed=st.integers(0, 10**6))
def test_suppression_weights_carry_no_gradient(seed: int) -> None:
    """The gradient under OTS is each token's own gradient times w, as if w were a constant."""
    case = Case(seed, [True, True])
    _, weighted, _, w = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    _, plain, _, ones = evaluate(replace(case.policy_loss, suppression=False), case.logits, case.batch, case.vocabulary)
    assert bool((ones == 1).all())
    assert not w.requires_grad
    columns = torch.zeros(weighted.shape[:2], dtype=torch.float64)
    columns[:, :-1] = w[:, 1:].double()  # the weight of token i acts on the logits of column i - 1
    assert close(weighted, plain * columns[:, :, None])


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds)
def test_without_old_log_probabilities_it_is_reinforce(seed: int, kinds: list[bool]) -> None:
    """rho = 1 everywhere, nothing clipped; the gradient is that of -A w log p."""
    case = Case(seed, kinds)
    value, gradient, metrics, weights = evaluate(case.policy_loss, case.logits, case.batch, case.vocabulary)
    sums = reduce_parts([metrics])
    assert sums["ratio_deviation"] == 0.0
    assert sums["clip_fraction"] == 0.0
    leaf = case.logits.clone().requires_grad_()
    logp = torch.log_softmax(leaf, -1)
    total = torch.zeros((), dtype=torch.float64)
    plain = 0.0
    coefficients = compute_loss_coefficients(case.rows, EQUAL_WEIGHTS | {Kind.CONSTRUCTED: case.loss.weight}, False)
    for i, row in enumerate(case.rows):
        for t, token in enumerate(row.response_ids):
            at = len(row.prompt_ids) + t
            share = coefficients[i] * row.advantage * float(weights[i, at])
            total = total - share * logp[i, at - 1, token]
            plain -= share
    total.backward()
    assert leaf.grad is not None
    assert close(gradient, leaf.grad)
    assert value == pytest.approx(plain, rel=1e-5, abs=1e-5)
    # the same with the old log-probabilities spelled out
    old = torch.zeros(case.logits.shape[:2], dtype=torch.float64)
    for i, row in enumerate(case.rows):
        for t in range(len(row.response_ids)):
            old[i, len(row.prompt_ids) + t] = case._logp(i, t)
    batch = replace(case.batch, prev_logprobs=old)
    again, spelled, _, _ = evaluate(case.policy_loss, case.logits, batch, case.vocabulary)
    assert again == pytest.approx(value, rel=1e-5, abs=1e-5)
    assert close(spelled, gradient)


@slow
@given(seed=st.integers(0, 10**6), count=st.integers(1, 5), token_mean=st.booleans())
def test_likelihood(seed: int, count: int, token_mean: bool) -> None:
    """Supervised rows: the mean over rows of each row's mean -log p (or the mean over all tokens)."""
    case = Case(seed, [False] * count)
    rows = [replace(row, kind=Kind.EXAMPLE) for row in case.rows]
    batch = collate(rows, 0, token_mean=token_mean)
    losses = [[-reference.log_softmax(r.logits[t])[token] for t, token in enumerate(r.tokens)] for r in case.responses]
    by_token = reference.mean([x for row in losses for x in row])
    expected = by_token if token_mean else reference.mean([reference.mean(row) for row in losses])
    output = LikelihoodLoss()(case.logits, batch, shard(case.vocabulary))
    assert float(output.loss) == pytest.approx(expected, rel=1e-5)
    assert reduce_parts([output.parts])["nll"] == pytest.approx(by_token)


@slow
@given(seed=st.integers(0, 10**6), kinds=kinds, loss=loss_settings)
def test_single_precision_logits(seed: int, kinds: list[bool], loss: reference.Settings) -> None:
    """What the actor really feeds it: float32 in, float32 throughout."""
    case = Case(seed, kinds, loss=loss)
    expected, gradient = case.expected()
    value, got, _, _ = evaluate(case.policy_loss, case.logits.float(), case.batch, case.vocabulary)
    assert got.dtype == torch.float32
    assert value == pytest.approx(expected, rel=1e-4, abs=1e-4)
    assert close(got, gradient, 1e-4)


def test_a_ratio_beyond_all_bounds_is_clipped_without_nan() -> None:
    """A > 0 and rho = exp(100), inf in float32: the clipped branch is the smaller, its gradient 0."""
    logp = torch.tensor([[-1.0, -2.0]], requires_grad=True)
    old = torch.tensor([[-101.0, -2.0]])
    value, _, _ = clipped_surrogate(logp, old, torch.ones(1, 1), 0.2, 0.2)
    value.sum().backward()
    assert value.tolist()[0] == pytest.approx([-1.2, -1.0])
    assert logp.grad is not None
    assert logp.grad.tolist()[0] == pytest.approx([0.0, -1.0])


@pytest.mark.parametrize("constructed", [False, True])
@pytest.mark.parametrize("advantage", [1.0, -1.0])
@pytest.mark.parametrize("kl_coef", [0.0, 0.1])
def test_an_impossible_token_breaks_nothing(constructed: bool, advantage: float, kl_coef: float) -> None:
    """A token of probability 0 (a logit of -inf) now and before: rho = 1, KL 0, gradients finite."""
    kind = Kind.CONSTRUCTED if constructed else Kind.ORIGINAL
    batch = collate([Row("r", "g", kind, (0,), (1, 2), advantage=advantage)], 0)
    logits = torch.zeros(1, 3, 4, dtype=torch.float64)
    logits[0, 0, 1] = -INF
    if kl_coef:
        impossible = torch.tensor([[0.0, -INF, -1.0]])
        batch = replace(batch, reference_policy_logprobs=impossible)
    value, gradient, _, weights = evaluate(PolicyLoss(kl_coef=kl_coef), logits, batch, 4)
    assert math.isfinite(value)
    assert bool(torch.isfinite(gradient).all())
    if constructed:
        assert float(weights[0, 1]) == pytest.approx(0.01)


@slow
@given(
    rewards=st.lists(
        st.tuples(
            st.lists(binary, min_size=1, max_size=4),
            st.lists(st.sampled_from([None, 0.0, 1.0]), max_size=3),
        ),
        min_size=1,
        max_size=3,
    ),
    decoupled=st.booleans(),
    negatives=st.booleans(),
    seed=st.integers(0, 10**6),
)
def test_from_rewards_to_the_loss(
    rewards: list[tuple[list[float], list[float | None]]], decoupled: bool, negatives: bool, seed: int
) -> None:
    """The whole of Eq. 6: rewards -> rows -> batch -> objective, against the reference's own chain."""
    rows = tapo_of(decoupled=decoupled, negatives=negatives).make_rows(experience_of(rewards))
    batch = collate(rows, 0, term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: 0.5})
    logits = torch.tensor(np.random.default_rng(seed).normal(size=(*batch.input_ids.shape, 4)))
    wanted: list[float] = []
    for original, constructed in rewards:
        parsed = [r for r in constructed if r is not None]
        want = reference.advantages(original, parsed, 1e-6, decoupled=decoupled, negatives=negatives)
        wanted += want.original + want.constructed
    responses = [
        reference.Response(
            logits[i, len(row.prompt_ids) - 1 : row.length - 1].tolist(),
            row.response_ids,
            wanted[i],
            constructed=row.kind is Kind.CONSTRUCTED,
        )
        for i, row in enumerate(rows)
    ]
    value, _, _, _ = evaluate(PolicyLoss(), logits, batch, 4)
    assert value == pytest.approx(reference.tapo_loss(responses, reference.Settings(weight=0.5)), rel=1e-5, abs=1e-5)


# --------------------------------------------------------------------------- evaluation


@fast
@given(n=st.integers(1, 8), data=st.data())
def test_pass_at_k(n: int, data: Any) -> None:
    k = data.draw(st.integers(1, n))
    correct = data.draw(st.lists(st.integers(0, n), min_size=1, max_size=6))
    counted = [reference.pass_at_k(n, c, k) for c in correct]
    assert [pass_at_k(n, c, k) for c in correct] == pytest.approx(counted, abs=1e-12)
