"""A loss of this package as a loss of NeMo-RL: of raw logits, inside the very forward pass that is differentiated.

```
 Policy worker: model -> logits / temperature -> prepare_loss_input -> LogitLoss(data, logits) -> (loss, metrics)
                         [b, S_pad/CP, V/TP]                            |
                         log p, H of the own columns and positions  <---+--->  all-gather of [b, S] scores over CP
                                                                               TokenLoss.from_logprobs (losses/)
```
What NeMo-RL expects of a loss, and what follows here (v0.7.0 and main alike):

- Each micro-batch returns its share of one global sum, and the shares' gradients are added over micro-batches and
  data-parallel ranks. The normaliser rides in `loss_coef`, so NeMo-RL's own (`global_valid_*`) are not looked at.
- Every context-parallel rank returns the loss of the whole sequences; it is divided by CP, and gradients are added over
  CP. So the gather's backward multiplies by CP: all ranks hold the same gradient, no second collective is needed.
- Sequence packing calls the loss once a sequence, with a dict of its unpadded rows and a slice of the packed logits
  that may be longer, and adds the metrics up. Pipeline parallelism calls it on the last stage.
- Logits come divided by the engine's temperature. `logits_temperature` says so, and no second division happens.
- All columns of the logits are tokens, those that only fill Megatron's vocabulary up as well: NeMo-RL's own log-
  probabilities count them, and the ratio is measured against those.

This module and those that it imports travel to workers by value (`loss_setup.ship_by_value`), so it imports nothing
that such a worker has not: torch, and at call time the Megatron that made the logits.
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
    """NeMo-RL's LossFunction around one of this package. `loss_setup.make_loss` builds it."""

    token_loss: TokenLoss
    loss_type: Any  # NeMo-RL's enums, which its workers look at
    input_type: Any
    logits_temperature: float = 1.0  # what the worker has divided the logits by
    chunk: int = 1024  # most tokens whose softmax is held at once

    def __call__(
        self, data: Mapping[str, Any], global_valid_seqs: Any = None, global_valid_toks: Any = None, *, logits: Tensor
    ) -> tuple[Tensor, dict[str, float]]:
        """`data`: fields of types.Batch by name; `logits` as the module's text says. The metrics are additive."""
        batch = Batch.from_dict(data)
        needs = self.token_loss.needs
        factor = self.logits_temperature / needs.temperature
        columns = own_columns(logits if factor == 1.0 else logits * factor, self.chunk)
        logp, entropy = scores(columns, batch.input_ids, needs.entropy)
        output = self.token_loss.from_logprobs(logp, entropy, batch)
        valid = Sum(float(batch.sample_mask.sum()))  # DTensor workers skip a micro-batch without any
        return output.loss, to_numbers({**output.metrics, VALID_SAMPLES: valid, **mismatch(logp, batch)})


@dataclass(frozen=True)
class Columns:
    """The logits of this rank, and which part of vocabulary and sequence they are."""

    logits: Tensor  # [b, S_pad/CP, V/TP], an ordinary tensor
    vocab: VocabShard
    context: dist.ProcessGroup | None = None  # the ranks that share the sequences; None: this one has all of them


def own_columns(logits: Tensor, chunk: int) -> Columns:
    """Finds out how the logits are split: from the DTensor itself, or from Megatron's groups where those exist.

    Raises ValueError for a DTensor that is split over context-parallel ranks.
    """
    if hasattr(logits, "device_mesh"):
        return _dtensor_columns(logits, chunk)
    width = logits.shape[-1]
    state = sys.modules.get("megatron.core.parallel_state")
    if state is None or not state.model_parallel_is_initialized():
        return Columns(logits, VocabShard(0, width, chunk))
    tensor, context = state.get_tensor_model_parallel_group(), state.get_context_parallel_group()
    vocab = VocabShard(tensor.rank() * width, tensor.size() * width, chunk, tensor if tensor.size() > 1 else None)
    return Columns(logits, vocab, context if context.size() > 1 else None)


def _dtensor_columns(logits: Any, chunk: int) -> Columns:
    mesh, local, whole = logits.device_mesh, logits.to_local(), logits.shape[-1]
    axes = dict(zip(mesh.mesh_dim_names, logits.placements, strict=True))
    if "cp" in axes and mesh["cp"].size() > 1:
        raise ValueError(
            "the loss does not take DTensor logits that are split over context-parallel ranks: use Megatron "
            "(policy.megatron_cfg.enabled=true), or policy.dtensor_cfg.context_parallel_size=1."
        )
    if "tp" not in axes or not axes["tp"].is_shard():
        return Columns(local, VocabShard(0, whole, chunk))
    group = mesh.get_group("tp")
    start = min(group.rank() * -(-whole // group.size()), whole)  # DTensor gives each rank the rounded-up share
    return Columns(local, VocabShard(start, whole, chunk, group))


def scores(columns: Columns, input_ids: Tensor, with_entropy: bool) -> tuple[Tensor, Tensor | None]:
    """Log-probability and entropy of every token, [b, S] nats: column i speaks of token i, column 0 is 0.

    `input_ids` [b, S] are the whole rows, on every context-parallel rank.
    """
    length, parts = input_ids.shape[1], 1 if columns.context is None else columns.context.size()
    padded = columns.logits.shape[1] * parts
    assert padded >= length, f"logits for {padded} tokens of rows of {length}"
    targets = F.pad(input_ids[:, 1:], (0, padded - length + 1))
    if columns.context is None:
        logp, entropy = token_logprobs_and_entropy(columns.logits, targets, columns.vocab, with_entropy)
    else:
        own = torch.cat([targets.chunk(2 * parts, 1)[i] for i in _zigzag(columns.context.rank(), parts)], 1)
        logp, entropy = token_logprobs_and_entropy(columns.logits, own, columns.vocab, with_entropy)
        logp = _WholeSequence.apply(logp, columns.context)  # type: ignore[no-untyped-call]
        entropy = None if entropy is None else _whole_sequence(entropy, columns.context)
    return _one_later(logp, length), None if entropy is None else _one_later(entropy, length)


def _one_later(values: Tensor, length: int) -> Tensor:
    """Column i - 1, where token i was predicted, becomes column i; what lies beyond the rows is cut off."""
    return F.pad(values[:, : length - 1], (1, 0))


def _zigzag(rank: int, parts: int) -> tuple[int, int]:
    """Which two of the 2 CP chunks of a sequence a rank holds: one early, one late, for equal work in attention."""
    return rank, 2 * parts - 1 - rank


def _whole_sequence(own: Tensor, group: dist.ProcessGroup) -> Tensor:
    """[b, S/CP] of every rank in order of the sequence, [b, S]."""
    parts = group.size()
    gathered = [torch.empty_like(own, memory_format=torch.contiguous_format) for _ in range(parts)]
    dist.all_gather(gathered, own.contiguous(), group=group)
    chunks = {i: c for r in range(parts) for i, c in zip(_zigzag(r, parts), gathered[r].chunk(2, 1), strict=True)}
    return torch.cat([chunks[i] for i in range(2 * parts)], 1)


class _WholeSequence(torch.autograd.Function):
    """`_whole_sequence` with a gradient: this rank's part of it, times CP (see the module's text)."""

    @staticmethod
    def forward(ctx: Any, own: Tensor, group: dist.ProcessGroup) -> Tensor:
        ctx.group = group
        return _whole_sequence(own, group)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None]:
        parts, chunks = ctx.group.size(), gradients[0].chunk(2 * ctx.group.size(), 1)
        return parts * torch.cat([chunks[i] for i in _zigzag(ctx.group.rank(), parts)], 1), None


def mismatch(logp: Tensor, batch: Batch) -> Parts:
    """How far engine and actor are apart, under NeMo-RL's names; over original rows alone.

    A constructed row was sampled in another context: its engine's log-probabilities say nothing about a mismatch.
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


TOTAL, COUNT = ":sum", ":count"  # behind the key of a mean, on the way through NeMo-RL


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
            numbers[key + TOTAL], numbers[key + COUNT] = part.total, part.count
    return numbers


def from_numbers(numbers: Mapping[str, float]) -> Parts:
    """Read what `to_numbers` wrote.

    >>> from_numbers({'loss': 0.5, 'entropy:sum': 3.0, 'entropy:count': 2.0})
    {'loss': Sum(value=0.5), 'entropy': Mean(total=3.0, count=2.0)}
    """
    parts: dict[str, Part] = {}
    for name, value in numbers.items():
        key = name.removesuffix(TOTAL)
        if key != name:
            parts[key] = Mean(value, numbers[key + COUNT])
        elif not name.endswith(COUNT):
            parts[key] = Sum(value)
    return parts
