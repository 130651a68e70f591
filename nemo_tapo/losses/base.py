"""What the actor differentiates: an objective turns logits into a loss, metrics and per-token streams.

An objective is data (a frozen dataclass), so it travels to any worker, and knows one operation::

    objective(logits, batch, vocab) -> (loss, metrics, streams)
    objective.of_scores(logp, entropy, batch) -> the same, for a caller that has the tokens' scores already

    logits   [b, S, V/TP]  of one micro-batch as the model gives them; column i predicts token i + 1
    logp, entropy  [b, S] nats as `next_token_scores` has them
    batch    the micro-batch (types.Batch)
    vocab    this rank's share of the vocabulary (equations.vocab.VocabShard)
    loss     scalar; summed over micro-batches and data-parallel ranks it is the step's loss, because every
             normaliser rides in `batch.loss_coef`
    metrics  {name: float}: sums; a mean is a pair "<name>:sum", "<name>:count" (see `reduce_metrics`)
    streams  {name: [b, S] tensor} for people to look at (the OTS weights), never for the update
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tapo.equations.surrogate import k3_divergence
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy
from nemo_tapo.types import Batch

Streams = dict[str, Tensor]
Metrics = dict[str, float]
Outcome = tuple[Tensor, Metrics, Streams]


class Objective(Protocol):
    """See the module's text."""

    @property
    def temperature(self) -> float:
        """The scores are those of softmax(logits / temperature)."""

    @property
    def with_entropy(self) -> bool:
        """Whether `of_scores` needs the entropy."""

    def __call__(self, logits: Tensor, batch: Batch, vocab: VocabShard) -> Outcome: ...

    def of_scores(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> Outcome: ...


def next_token_scores(
    logits: Tensor, batch: Batch, vocab: VocabShard, with_entropy: bool = True, temperature: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Log-probability and entropy of every token, [b, S] nats, shifted so that column i speaks of token i.

    They are of softmax(logits / temperature); another temperature than 1 costs one more tensor of the logits' size.
    """
    if temperature != 1.0:
        logits = logits / temperature
    # the targets move, not the logits: a slice of the logits would cost a second gradient of their size
    targets = F.pad(batch.input_ids[:, 1:], (0, 1))
    logp, entropy = token_logprobs_and_entropy(logits, targets, vocab, with_entropy=with_entropy)
    return _one_later(logp), None if entropy is None else _one_later(entropy)


def _one_later(values: Tensor) -> Tensor:
    """Column i - 1, where token i was predicted, becomes column i; column 0 is 0."""
    return F.pad(values[:, :-1], (1, 0))


def rollout_metrics(out: Metrics, batch: Batch, mask: Tensor, logp: Tensor, entropy: Tensor) -> None:
    """Adds what is watched on the policy's own rollouts, `mask` [b, S] being their tokens: the entropy, the KL to the
    reference, and how far engine and actor are apart, the latter two where the batch knows the other side.
    """
    masked_mean(out, "entropy", entropy, mask)
    if batch.reference_policy_logprobs is not None and batch.reference_mask is not None:
        known = mask * batch.reference_mask[:, None]
        masked_mean(out, "kl_ref", k3_divergence(logp, batch.reference_policy_logprobs), known)
    if batch.generation_logprobs is not None and batch.generation_mask is not None:
        known = mask * batch.generation_mask[:, None]
        masked_mean(out, "engine_gap", (logp - batch.generation_logprobs).abs(), known)


def masked_mean(out: Metrics, name: str, values: Tensor, mask: Tensor) -> None:
    """Adds to `out` the two sums that make a mean of `values` [b, S] over `mask`; see `reduce_metrics`."""
    kept = torch.where(mask > 0, values.detach(), torch.zeros_like(values))
    out[f"{name}:sum"] = float((kept * mask).sum())
    out[f"{name}:count"] = float(mask.sum())


def reduce_metrics(parts: Iterable[Mapping[str, float]]) -> Metrics:
    """Adds the parts of micro-batches and ranks; turns "<x>:sum", "<x>:count" into the mean "<x>".

    A mean over nothing (no constructed row, say) is left out: an absent number, not a zero.
    """
    total: Metrics = {}
    for part in parts:
        for name, value in part.items():
            total[name] = total.get(name, 0.0) + value
    out: Metrics = {}
    for name, value in total.items():
        if name.endswith(":sum"):
            stem = name.removesuffix(":sum")
            count = total[f"{stem}:count"]
            if count > 0:
                out[stem] = value / count
        elif not name.endswith(":count"):
            out[name] = value
    return out
