"""Wrap a loss of this package as a loss function of NeMo-RL, computed from raw logits in the training forward pass.

```
 Policy worker: model -> logits / temperature -> prepare_loss_input -> LogitLoss(data, logits) -> (loss, metrics)
                         [b, S_pad/CP, V/TP]                            |
                         log p, H of this rank's vocab and positions <--+--->  all-gather of [b, S] scores over CP
                                                                               TokenLoss.from_logprobs (losses/)
```
What NeMo-RL expects of a loss, and how it is met here (the same for v0.7.0 and main):

- Each micro-batch returns its share of one global sum. NeMo-RL adds the shares' gradients over micro-batches and
  data-parallel ranks. `loss_coef` contains the normaliser, so NeMo-RL's own (`global_valid_*`) are ignored.
- Every context-parallel rank returns the loss of the whole sequences. NeMo-RL divides it by CP and adds gradients over
  CP. So the backward pass of the gather multiplies by CP: all ranks hold the same gradient, and no second collective is
  needed.
- Sequence packing calls the loss once a sequence, with a dict of its unpadded rows and a slice of the packed logits
  that may be longer, and adds the metrics up. Pipeline parallelism calls it on the last stage.
- Logits come divided by the engine's temperature. `logits_temperature` says so, and they are not divided again.
- All columns of the logits count as tokens, including those that only pad Megatron's vocabulary: NeMo-RL's own
  log-probabilities count them, and the ratio is measured against those.

This module and its imports are sent to workers by value (`loss_setup.ship_by_value`). So it imports only what every
worker has: torch, and at call time the Megatron that made the logits.
"""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor

from nemo_tapo.equations.surrogate import k3_divergence
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy
from nemo_tapo.losses.base import TokenLoss, masked_mean
from nemo_tapo.metrics import GEN_KL_ERROR, TOKEN_MULT_PROB_ERROR, VALID_SAMPLES, Mean, Part, Parts, Sum
from nemo_tapo.types import Batch


@dataclass(frozen=True)
class LogitLoss:
    """A LossFunction of NeMo-RL that computes a loss of this package. Built by `loss_setup.make_logit_loss`."""

    token_loss: TokenLoss
    loss_type: Any  # NeMo-RL's enum; its workers read it
    input_type: Any  # NeMo-RL's enum; its workers read it
    logits_temperature: float = 1.0  # the worker has divided the logits by it
    chunk: int = 1024  # the softmax is held for at most so many tokens at once

    def __call__(
        self, data: Mapping[str, Any], global_valid_seqs: Any = None, global_valid_toks: Any = None, *, logits: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """Return the micro-batch's share of the loss and its additive metrics.

        `data` holds the fields of types.Batch by name; the module docstring describes `logits`.
        """
        batch = Batch.from_dict(data)
        needs = self.token_loss.needs
        factor = self.logits_temperature / needs.temperature
        shard = make_logit_shard(logits if factor == 1.0 else logits * factor, self.chunk)
        logp, entropy = compute_scores(shard, batch.input_ids, needs.entropy)
        output = self.token_loss.from_logprobs(logp, entropy, batch)
        valid = Sum(float(batch.sample_mask.sum()))  # DTensor workers skip a micro-batch where it is 0
        return output.loss, to_numbers({**output.parts, VALID_SAMPLES: valid, **measure_mismatch(logp, batch)})


@dataclass(frozen=True)
class LogitShard:
    """The logits of this rank and the part of vocabulary and sequence that they cover.

    >>> LogitShard(torch.zeros(1, 3, 4), VocabShard(0, 4, 1024)).context is None
    True
    """

    logits: Tensor  # [b, S_pad/CP, V/TP], an ordinary tensor
    vocab: VocabShard
    context: dist.ProcessGroup | None = None  # the ranks that share the sequences; None: this rank has whole sequences


def make_logit_shard(logits: Tensor, chunk: int) -> LogitShard:
    """Find out how the logits are split: from the DTensor itself, or from Megatron's groups where those exist.

    Raises ValueError for a DTensor that is split over context-parallel ranks.
    """
    if hasattr(logits, "device_mesh"):
        return _make_dtensor_shard(logits, chunk)
    width = logits.shape[-1]
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return LogitShard(logits, VocabShard(0, width, chunk))
    tensor, context = state.get_tensor_model_parallel_group(), state.get_context_parallel_group()
    vocab = VocabShard(tensor.rank() * width, tensor.size() * width, chunk, tensor if tensor.size() > 1 else None)
    return LogitShard(logits, vocab, context if context.size() > 1 else None)


def _make_dtensor_shard(logits: Any, chunk: int) -> LogitShard:
    mesh, local, vocab_size = logits.device_mesh, logits.to_local(), logits.shape[-1]
    axes = dict(zip(mesh.mesh_dim_names, logits.placements, strict=True))
    if "cp" in axes and mesh["cp"].size() > 1:
        raise ValueError(
            "the loss does not take DTensor logits that are split over context-parallel ranks: use Megatron "
            "(policy.megatron_cfg.enabled=true), or policy.dtensor_cfg.context_parallel_size=1."
        )
    if "tp" not in axes or not axes["tp"].is_shard():
        return LogitShard(local, VocabShard(0, vocab_size, chunk))
    group = mesh.get_group("tp")
    start = min(group.rank() * -(-vocab_size // group.size()), vocab_size)  # DTensor rounds each rank's share up
    return LogitShard(local, VocabShard(start, vocab_size, chunk, group))


def compute_scores(shard: LogitShard, input_ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Return log-probability and entropy of every token, [b, S] nats: column i belongs to token i, column 0 is 0.

    `input_ids` [b, S] are the whole rows, on every context-parallel rank. The entropy is None unless `with_entropy`.

    >>> shard = LogitShard(torch.zeros(1, 3, 4), VocabShard(0, 4, 1024))  # a vocabulary of 4, all equally likely
    >>> logp, _ = compute_scores(shard, torch.tensor([[1, 2, 3]]), with_entropy=False)
    >>> logp
    tensor([[ 0.0000, -1.3863, -1.3863]])
    """
    length, parts = input_ids.shape[1], 1 if shard.context is None else shard.context.size()
    padded = shard.logits.shape[1] * parts
    assert padded >= length, f"logits for {padded} tokens of rows of {length}"
    targets = F.pad(input_ids[:, 1:], (0, padded - length + 1))
    if shard.context is None:
        logp, entropy = token_logprobs_and_entropy(shard.logits, targets, shard.vocab, with_entropy)
    else:
        local = torch.cat([targets.chunk(2 * parts, 1)[i] for i in _get_zigzag_chunks(shard.context.rank(), parts)], 1)
        logp, entropy = token_logprobs_and_entropy(shard.logits, local, shard.vocab, with_entropy)
        logp = _SequenceGather.apply(logp, shard.context)  # type: ignore[no-untyped-call]
        entropy = None if entropy is None else _gather_sequence(entropy, shard.context)
    return _shift_to_predicted(logp, length), None if entropy is None else _shift_to_predicted(entropy, length)


def _shift_to_predicted(values: Tensor, length: int) -> Tensor:
    """Move column i - 1, where token i was predicted, to column i, and cut off what lies beyond the rows."""
    return F.pad(values[:, : length - 1], (1, 0))


def _get_zigzag_chunks(rank: int, parts: int) -> tuple[int, int]:
    """Return which two of a sequence's 2 CP chunks a rank holds: an early and a late one, to balance attention work."""
    return rank, 2 * parts - 1 - rank


def _gather_sequence(local: Tensor, group: dist.ProcessGroup) -> Tensor:
    """Gather [b, S/CP] of every rank and put the chunks into sequence order, [b, S]."""
    parts = group.size()
    gathered = [torch.empty_like(local, memory_format=torch.contiguous_format) for _ in range(parts)]
    dist.all_gather(gathered, local.contiguous(), group=group)
    chunks = {
        i: c for r in range(parts) for i, c in zip(_get_zigzag_chunks(r, parts), gathered[r].chunk(2, 1), strict=True)
    }
    return torch.cat([chunks[i] for i in range(2 * parts)], 1)


class _SequenceGather(torch.autograd.Function):
    """`_gather_sequence` with a gradient: this rank's part of it, times CP (see the module docstring)."""

    @staticmethod
    def forward(ctx: Any, local: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _gather_sequence(local, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts, chunks = ctx.group.size(), gradients[0].chunk(2 * ctx.group.size(), 1)
        return parts * torch.cat([chunks[i] for i in _get_zigzag_chunks(ctx.group.rank(), parts)], 1), None


def measure_mismatch(logp: Tensor, batch: Batch) -> Parts:
    """Measure how far engine and actor differ, under NeMo-RL's names; over original rows only.

    A constructed row was sampled in another context, so the engine's log-probabilities of it say nothing about a
    mismatch. Empty without the engine's log-probabilities.
    """
    if batch.generation_logprobs is None or batch.generation_mask is None:
        return {}
    rows = batch.sample_mask * batch.generation_mask * (1 - batch.constructed.float())
    mask = batch.token_mask * rows[:, None]
    previous = logp.detach() if batch.prev_logprobs is None else batch.prev_logprobs
    return {
        TOKEN_MULT_PROB_ERROR: masked_mean((batch.generation_logprobs - previous).abs().exp(), mask),
        GEN_KL_ERROR: masked_mean(k3_divergence(batch.generation_logprobs, previous), mask),
    }


SUM_SUFFIX, COUNT_SUFFIX = ":sum", ":count"  # added to the key of a mean in what workers report


def to_numbers(parts: Parts) -> dict[str, float]:
    """Write parts as the flat mapping of additive numbers that NeMo-RL's workers report.

    >>> to_numbers({"loss": Sum(0.5), "entropy": Mean(3.0, 2.0)})
    {'loss': 0.5, 'entropy:sum': 3.0, 'entropy:count': 2.0}
    """
    numbers: dict[str, float] = {}
    for key, part in parts.items():
        if isinstance(part, Sum):
            numbers[key] = part.value
        else:
            numbers[key + SUM_SUFFIX], numbers[key + COUNT_SUFFIX] = part.total, part.count
    return numbers


def from_numbers(numbers: Mapping[str, float]) -> Parts:
    """Read what `to_numbers` wrote.

    >>> from_numbers({'loss': 0.5, 'entropy:sum': 3.0, 'entropy:count': 2.0})
    {'loss': Sum(value=0.5), 'entropy': Mean(total=3.0, count=2.0)}
    """
    parts: dict[str, Part] = {}
    for name, value in numbers.items():
        key = name.removesuffix(SUM_SUFFIX)
        if key != name:
            parts[key] = Mean(value, numbers[key + COUNT_SUFFIX])
        elif not name.endswith(COUNT_SUFFIX):
            parts[key] = Sum(value)
    return parts
