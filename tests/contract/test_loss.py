"""With nothing constructed, our loss is NeMo-RL's `ClippedPGLossFn`: value and gradient, over its settings.

Both go through NeMo-RL's own `prepare_loss_input` and wrapper on one gloo rank.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tapo.batch import collate
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss, LogitShard, compute_scores
from nemo_tapo.runtime.nemo_rl.loss_setup import make_logit_loss, reduce_worker_metrics
from nemo_tapo.types import Batch, Kind, Row

pytestmark = pytest.mark.nemo_rl
VOCAB, LENGTHS = 37, (9, 14, 5, 11, 8)
Outcome = tuple[float, Tensor, dict[str, Any]]

RATIOS: list[dict[str, Any]] = [
    {},
    {"ratio_clip_min": 0.1, "ratio_clip_max": 0.28},
    {"force_on_policy_ratio": True},
    {"ratio_clip_c": 1.1},
    {"use_cispo": True},
    {"sequence_level_importance_ratios": True, "ratio_clip_min": 0.02, "ratio_clip_max": 0.02},
    {"sequence_level_importance_ratios": True, "ratio_clip_c": 1.01},
]
PENALTIES: list[dict[str, Any]] = [
    {"reference_policy_kl_penalty": 0.0},
    {"reference_policy_kl_penalty": 0.3},
    {"reference_policy_kl_penalty": 0.3, "kl_input_clamp_value": 0.5, "kl_output_clamp_value": 0.1},
    {"reference_policy_kl_penalty": 0.3, "kl_input_clamp_value": None, "kl_output_clamp_value": None},
]
CORRECTION = {"use_importance_sampling_correction": True}
BOUNDS = {"truncated_importance_sampling_ratio": 1.1, "truncated_importance_sampling_ratio_min": 0.9}
CORRECTIONS: list[dict[str, Any]] = [
    {},
    CORRECTION,
    CORRECTION | {"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio": 1.1},
    CORRECTION | BOUNDS | {"truncated_importance_sampling_type": "tis"},
    CORRECTION | BOUNDS | {"truncated_importance_sampling_type": "icepop"},
    CORRECTION | BOUNDS | {"truncated_importance_sampling_type": "seq-mask-tis"},
]


@pytest.fixture(scope="module", autouse=True)
def one_rank(tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    folder: Path = tmp_path_factory.mktemp("group")
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=0, world_size=1)
    yield
    dist.destroy_process_group()


def case(token_mean: bool, constructed: tuple[int, ...] = ()) -> tuple[Tensor, Batch]:
    """Logits [B, S, V] and rows of a policy that has moved a little since it sampled them; the last row is masked."""
    draw = torch.Generator().manual_seed(4)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (n,), generator=draw).tolist())

    advantages = (1.3, -0.8, 0.0, 0.6, -1.1)
    kinds = [Kind.CONSTRUCTED if i in constructed else Kind.ORIGINAL for i in range(len(LENGTHS))]
    rows = [
        Row(str(i), "q", kind, ids(3), ids(n - 3), 1.0, advantage)
        for i, (kind, n, advantage) in enumerate(zip(kinds, LENGTHS, advantages, strict=True))
    ]
    live = collate(rows[:-1], pad_id=0, token_mean=token_mean)
    batch = replace(
        collate(rows, pad_id=0),
        loss_coef=torch.cat([live.loss_coef, torch.zeros(1)]),
        sample_mask=torch.tensor([1.0, 1, 1, 1, 0]),
    )
    logits = torch.randn(*batch.input_ids.shape, VOCAB, generator=draw) * 2
    logp = torch.zeros(batch.input_ids.shape)
    logp[:, 1:] = torch.log_softmax(logits, -1)[:, :-1].gather(-1, batch.input_ids[:, 1:, None])[..., 0]

    def near(spread: float) -> Tensor:
        return logp + torch.randn(logp.shape, generator=draw) * spread

    previous = near(0.25)
    return logits, replace(
        batch,
        prev_logprobs=previous,
        reference_policy_logprobs=near(0.6),
        generation_logprobs=previous + torch.randn(logp.shape, generator=draw) * 0.15,
        generation_mask=torch.ones(batch.rows),
    )


def through_nemo_rl(loss: Any, logits: Tensor, data: dict[str, Tensor]) -> Outcome:
    """(loss, gradient of the logits, metrics) by way of NeMo-RL's wrapper."""
    from nemo_rl.algorithms.loss.utils import prepare_loss_input
    from nemo_rl.algorithms.loss.wrapper import wrap_loss_fn_with_input_preparation

    leaf = logits.clone().requires_grad_()
    mask = data["token_mask"][:, 1:] * data["sample_mask"][:, None]
    value, metrics = wrap_loss_fn_with_input_preparation(
        leaf, compat.load("BatchedDataDict")(data), data["sample_mask"].sum(), mask.sum(), loss_fn=loss,
        prepare_fn=partial(prepare_loss_input, chunk_size=4), vocab_parallel_rank=0,
        vocab_parallel_group=dist.group.WORLD,
    )  # fmt: skip
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), leaf.grad, metrics


def theirs(settings: dict[str, Any], logits: Tensor, batch: Batch) -> Outcome:
    from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossFn

    data = batch.as_dict()
    data["advantages"] = batch.advantages[:, None].expand(batch.input_ids.shape).clone()
    return through_nemo_rl(ClippedPGLossFn(compat.load("ClippedPGLossConfig")(**settings)), logits, data)


def ours(settings: dict[str, Any], logits: Tensor, batch: Batch, temperature: float = 1.0) -> Outcome:
    """As the runtime makes it: our loss from the settings that it shares, the rest by `make_loss`."""
    whole = compat.load("ClippedPGLossConfig")(**settings).model_dump()
    loss = PolicyLoss(
        whole["ratio_clip_min"],
        whole["ratio_clip_max"],
        whole["reference_policy_kl_penalty"],
        temperature=temperature,
        dual_clip=whole["ratio_clip_c"],
        ratio="sequence" if whole["sequence_level_importance_ratios"] else "token",
        surrogate="cispo" if whole["use_cispo"] else "clipped",
    )
    if whole["force_on_policy_ratio"]:
        batch = replace(batch, prev_logprobs=None)
    return through_nemo_rl(make_logit_loss(loss, whole, temperature, chunk=7), logits, batch.as_dict())


@pytest.mark.parametrize("token_mean", [True, False])
@pytest.mark.parametrize("correction", range(len(CORRECTIONS)))
@pytest.mark.parametrize("penalty", range(len(PENALTIES)))
@pytest.mark.parametrize("ratio", range(len(RATIOS)))
def test_equals_nemo_rls_loss(ratio: int, penalty: int, correction: int, token_mean: bool) -> None:
    settings = RATIOS[ratio] | PENALTIES[penalty] | CORRECTIONS[correction] | {"token_level_loss": token_mean}
    masks_rows = settings.get("truncated_importance_sampling_type") == "seq-mask-tis"
    sequence = settings.get("sequence_level_importance_ratios", False)
    if (sequence and (token_mean or masks_rows)) or (settings.get("use_cispo", False) and not token_mean):
        with pytest.raises(AssertionError, match=r"mutually exclusive|incompatible|requires token_level_loss"):
            theirs(settings, *case(token_mean))  # what NeMo-RL refuses is refused here as well (config/)
        return
    logits, batch = case(token_mean)
    their_value, their_gradient, _ = theirs(settings, logits, batch)
    value, gradient, _ = ours(settings, logits, batch)
    assert value == pytest.approx(their_value, rel=1e-5, abs=1e-7)
    torch.testing.assert_close(gradient, their_gradient, rtol=1e-4, atol=1e-7)


def test_metrics_of_the_mismatch_are_nemo_rls() -> None:
    logits, batch = case(True)
    settings = {"reference_policy_kl_penalty": 0.3, "token_level_loss": True}
    _, _, their_metrics = theirs(settings, logits, batch)
    metrics = reduce_worker_metrics({name: [value] for name, value in ours(settings, logits, batch)[2].items()})
    for name in ("loss", "token_mult_prob_error", "gen_kl_error"):
        assert metrics[name] == pytest.approx(their_metrics[name], rel=1e-5), name
    assert metrics["num_valid_samples"] == their_metrics["num_valid_samples"] == 4


@pytest.mark.parametrize("correction", range(1, len(CORRECTIONS)))
def test_a_constructed_row_is_not_corrected_and_is_no_mismatch(correction: int) -> None:
    """Its engine's log-probabilities are those of the synthesis prompt: whatever they are, nothing looks at them."""
    logits, batch = case(True, constructed=(1, 3))
    assert batch.generation_logprobs is not None
    far = batch.generation_logprobs - 3 * batch.constructed[:, None].float()
    plain = ours(CORRECTIONS[correction], logits, batch)
    moved = ours(CORRECTIONS[correction], logits, replace(batch, generation_logprobs=far))
    assert moved[0] == plain[0] and torch.equal(moved[1], plain[1]) and moved[2] == plain[2]
    all_rows = replace(batch, constructed=torch.zeros(batch.rows, dtype=torch.bool), generation_logprobs=far)
    assert ours(CORRECTIONS[correction], logits, all_rows)[0] != pytest.approx(plain[0], rel=1e-3)


def test_temperature_is_applied_once() -> None:
    """The worker has divided the logits already (`apply_temperature_scaling`); the loss is that of these logits."""
    logits, batch = case(True)
    settings = PENALTIES[1]
    at_one, scaled = ours(settings, logits / 0.6, batch), ours(settings, logits / 0.6, batch, temperature=0.6)
    assert at_one[0] == scaled[0] and torch.equal(at_one[1], scaled[1])
    expected = theirs(settings, logits / 0.6, batch)
    assert scaled[0] == pytest.approx(expected[0], rel=1e-5)


def test_supervised_training_undoes_the_engines_temperature() -> None:
    """Likelihood is that of the model itself, whatever temperature rollouts have."""
    logits, batch = case(False)
    kind = compat.get_logit_loss_types()
    plain = through_nemo_rl(LogitLoss(LikelihoodLoss(), *kind), logits, batch.as_dict())
    warm = through_nemo_rl(LogitLoss(LikelihoodLoss(), *kind, logits_temperature=0.5), logits / 0.5, batch.as_dict())
    assert warm[0] == pytest.approx(plain[0], rel=1e-6)
    torch.testing.assert_close(warm[1], plain[1] * 0.5)  # chain rule: by the logits that were handed over


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_scores_are_nemo_rls(dtype: torch.dtype) -> None:
    """log p and H against its own helpers; its entropy's sign is the other one."""
    from nemo_rl.distributed.model_utils import ChunkedDistributedEntropy, get_next_token_logprobs_from_logits

    logits, batch = case(True)
    logits = logits.to(dtype)
    logp, entropy = compute_scores(LogitShard(logits, VocabShard(0, VOCAB, 5)), batch.input_ids, with_entropy=True)
    assert entropy is not None
    negative = ChunkedDistributedEntropy.apply(logits, 4, dist.group.WORLD, True)
    torch.testing.assert_close(entropy[:, 1:], -negative[:, :-1], rtol=1e-5, atol=1e-5)
    expected = get_next_token_logprobs_from_logits(
        batch.input_ids, logits, vocab_parallel_rank=0, vocab_parallel_group=dist.group.WORLD
    )
    torch.testing.assert_close(logp[:, 1:], expected, rtol=1e-5, atol=1e-5)
    assert not logp[:, 0].any() and not entropy[:, 0].any()


def test_metric_names_are_not_taken_for_extremes() -> None:
    """NeMo-RL does not average what has `_min` or `_max` in its name; ours are sums, all of them."""
    logits, batch = case(True, constructed=(1,))
    names = ours(PENALTIES[1], logits, batch)[2]
    assert "loss" in names and not [n for n in names if "_min" in n or "_max" in n]
