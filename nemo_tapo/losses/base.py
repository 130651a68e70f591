"""Define what a loss is: it turns the logits of a micro-batch into a scalar, metrics, and weights to look at.

A loss is data (a frozen dataclass), so it travels to any worker. It says in `needs` what it has to be given, and a
worker provides that without knowing which loss it is::

    needs = loss.needs                                    # entropy? the teacher's logits?
    output = loss(logits, batch, vocab, teacher_logits)   # output.loss.backward()

    logits          [b, S, V/TP] of one micro-batch as the model gives them; column i predicts token i + 1
    batch           the micro-batch (types.Batch)
    vocab           this rank's share of the vocabulary (equations.vocab.VocabShard)
    teacher_logits  [n, V/TP] of the n taught tokens, for a loss with needs.teacher_logits

Most losses are made of each token's log-probability and entropy alone: they derive from `TokenLoss`, implement
`from_logprobs`, and can also be called by a worker that has these scores already (NeMo-RL's).
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Literal, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tapo.equations.surrogate import k3_divergence
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy
from nemo_tapo.metrics import ENGINE_GAP, ENTROPY, KL_REF, LOSS, Mean, Parts, Sum
from nemo_tapo.types import Batch

TeacherKind = Literal["frozen", "live"]  # the weights of the run's beginning (or others that were given), or today's


@dataclass(frozen=True)
class LossNeeds:
    """What a loss has to be given beside the rows.

    >>> LossNeeds(entropy=True).teacher_logits is None
    True
    """

    temperature: float = 1.0  # scores are those of softmax(logits / temperature), the distribution of the rollouts
    entropy: bool = False  # of every token's distribution
    teacher_logits: TeacherKind | None = None  # of whole distributions, made beside the policy's own
    teacher_logprobs: TeacherKind | None = None  # of the rollouts' tokens, known before the update


@dataclass(frozen=True)
class LossOutput:
    """What a loss makes of one micro-batch.

    >>> LossOutput(torch.tensor(0.25), {"entropy": Mean(3.0, 2.0)}).parts
    {'loss': Sum(value=0.25), 'entropy': Mean(total=3.0, count=2.0)}
    """

    # Scalar. Summed over micro-batches and data-parallel ranks it is the step's loss, because every normaliser is in
    # `batch.loss_coef`.
    loss: Tensor
    metrics: Parts  # by key of metrics.py, additive over micro-batches and ranks; LOSS itself is added by `parts`
    token_weights: Tensor | None = None  # [b, S] for people to look at (Eq. 7), never for the update

    @property
    def parts(self) -> Parts:
        """What a worker reports: the metrics, and the loss itself."""
        return {LOSS: Sum(float(self.loss.detach())), **self.metrics}


class Loss(Protocol):
    """A function from a micro-batch's logits to its share of the step's loss; see the module's text."""

    @property
    def needs(self) -> LossNeeds:
        """What `__call__` has to be given."""

    def __call__(
        self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher_logits: Tensor | None = None
    ) -> LossOutput:
        """Return the micro-batch's share of the step's loss."""


class TokenLoss(ABC):
    """A loss of each token's log-probability and entropy."""

    @property
    @abstractmethod
    def needs(self) -> LossNeeds:
        """What `from_logprobs` has to be given."""

    @abstractmethod
    def from_logprobs(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        """Return the loss from log-probabilities and entropies [b, S], in nats, as `next_token_scores` has them."""

    def __call__(
        self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher_logits: Tensor | None = None
    ) -> LossOutput:
        """Return the loss from logits; see the module's text."""
        needs = self.needs
        scores = next_token_scores(logits, batch, vocab, needs.entropy, needs.temperature)
        return self.from_logprobs(*scores, batch)


def next_token_scores(
    logits: Tensor, batch: Batch, vocab: VocabShard, with_entropy: bool = True, temperature: float = 1.0
) -> tuple[Tensor, Tensor | None]:
    """Return log-probability and entropy of every token, [b, S] nats, shifted so that column i speaks of token i.

    They are of softmax(logits / temperature); another temperature than 1 costs one more tensor of the logits' size.
    """
    if temperature != 1.0:
        logits = logits / temperature
    # the targets move, not the logits: a slice of the logits would cost a second gradient of their size
    targets = F.pad(batch.input_ids[:, 1:], (0, 1))
    logp, entropy = token_logprobs_and_entropy(logits, targets, vocab, with_entropy=with_entropy)
    return _one_later(logp), None if entropy is None else _one_later(entropy)


def _one_later(values: Tensor) -> Tensor:
    """Move column i - 1, where token i was predicted, to column i; column 0 becomes 0."""
    return F.pad(values[:, :-1], (1, 0))


def masked_mean(values: Tensor, mask: Tensor) -> Mean:
    """Return this micro-batch's part of the mean of `values` [b, S] over `mask` [b, S].

    >>> masked_mean(torch.tensor([[1.0, 5.0]]), torch.tensor([[1.0, 0.0]]))
    Mean(total=1.0, count=1.0)
    """
    kept = torch.where(mask > 0, values.detach(), torch.zeros_like(values))
    return Mean(float((kept * mask).sum()), float(mask.sum()))


def rollout_metrics(batch: Batch, mask: Tensor, logp: Tensor, entropy: Tensor) -> Parts:
    """Return what is watched on the policy's own rollouts, whose tokens `mask` [b, S] names.

    The entropy; and the KL to the reference and the distance from the engine, where the batch knows the other side.
    """
    parts: Parts = {ENTROPY: masked_mean(entropy, mask)}
    if batch.reference_policy_logprobs is not None and batch.reference_mask is not None:
        known = mask * batch.reference_mask[:, None]
        parts[KL_REF] = masked_mean(k3_divergence(logp, batch.reference_policy_logprobs), known)
    if batch.generation_logprobs is not None and batch.generation_mask is not None:
        known = mask * batch.generation_mask[:, None]
        parts[ENGINE_GAP] = masked_mean((logp - batch.generation_logprobs).abs(), known)
    return parts
