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
from dataclasses import dataclass, field
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from nemo_tapo.equations.importance import ImportanceRules, importance_weights
from nemo_tapo.equations.loss import KLRules, clipped_surrogate, k3_divergence, kl_penalty
from nemo_tapo.equations.suppression import suppression_weights
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


@dataclass(frozen=True)
class PolicyObjective:
    """GRPO and TAPO: Eq. 2, 6, 7 and 8 of arXiv 2606.18844. GRPO is the case without constructed rows."""

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    suppression: bool = True
    w_min: float = 0.01
    w_max: float = 10.0
    temperature: float = 1.0  # of the rollouts: the policy is the distribution that is sampled from
    kl_rules: KLRules = field(default_factory=KLRules)
    importance: ImportanceRules | None = None  # correction for what the engine sampled with other probabilities
    with_entropy: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch, vocab: VocabShard) -> Outcome:
        """See the module's text."""
        return self.of_scores(*next_token_scores(logits, batch, vocab, temperature=self.temperature), batch)

    def of_scores(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> Outcome:
        """See the module's text."""
        assert entropy is not None
        mask = batch.token_mask * batch.sample_mask[:, None]
        weights = self._weights(logp, entropy, batch)
        previous = logp.detach() if batch.prev_logprobs is None else _within(batch.prev_logprobs, mask, logp)
        advantages = batch.advantages[:, None]
        surrogate, ratio, clipped = clipped_surrogate(logp, previous, advantages, self.clip_low, self.clip_high)
        token_loss = weights * self._importance(previous, batch, mask) * surrogate
        if self.kl_coef > 0:
            assert batch.reference_policy_logprobs is not None, "a penalised KL needs the reference"
            known = batch.reference_mask
            assert known is None or bool(known[batch.sample_mask > 0].all()), "a penalised KL needs every row"
            reference = _within(batch.reference_policy_logprobs, mask, logp)
            token_loss = token_loss + self.kl_coef * kl_penalty(logp, reference, self.kl_rules)
        # `where`, not a product: padding may hold a large number, and 0 * inf is nan
        share = torch.where(mask > 0, token_loss * batch.loss_coef[:, None], torch.zeros_like(token_loss))
        loss = share.sum()
        metrics = self._metrics(batch, mask, share, logp, entropy, ratio, clipped, weights)
        return loss, metrics, {"weights": weights.detach()}

    def _weights(self, logp: Tensor, entropy: Tensor, batch: Batch) -> Tensor:
        ones = torch.ones_like(logp)
        if not self.suppression or not bool(batch.constructed.any()):
            return ones
        weights = suppression_weights(logp, entropy, self.w_min, self.w_max)
        return torch.where(batch.constructed[:, None], weights, ones)

    def _importance(self, previous: Tensor, batch: Batch, mask: Tensor) -> Tensor:
        """Weights [b, S] of the importance correction: 1 without one, and on rows that the engine did not sample."""
        if self.importance is None or batch.generation_logprobs is None or batch.generation_mask is None:
            return torch.ones_like(previous)
        known = mask * batch.generation_mask[:, None] * (1 - batch.constructed[:, None].float())
        weights, _ = importance_weights(previous, batch.generation_logprobs, known, self.importance)
        return torch.where(known > 0, weights, torch.ones_like(weights))

    def _metrics(
        self,
        batch: Batch,
        mask: Tensor,
        share: Tensor,
        logp: Tensor,
        entropy: Tensor,
        ratio: Tensor,
        clipped: Tensor,
        weights: Tensor,
    ) -> Metrics:
        with torch.no_grad():
            nothing = torch.zeros_like(batch.constructed)
            supervised = nothing if batch.supervised is None else batch.supervised
            rollouts = ~(batch.constructed | supervised)
            original, reflected = mask * rollouts[:, None].float(), mask * batch.constructed[:, None].float()
            out: Metrics = {
                "loss": float(share.sum()),
                "loss/original": float(share[rollouts].sum()),
                "loss/reflection": float(share[batch.constructed].sum()),
            }
            if batch.supervised is not None:
                out["loss/ift"] = float(share[supervised].sum())
                masked_mean(out, "nll/ift", -logp, mask * supervised[:, None].float())
            masked_mean(out, "ratio_deviation", (ratio - 1).abs(), mask)
            masked_mean(out, "clip_fraction", clipped, mask)
            masked_mean(out, "tapo/ots_weight_mean", weights, reflected)
            masked_mean(out, "tapo/logprob_mean", logp, reflected)
            rollout_metrics(out, batch, original, logp, entropy)
        return out


@dataclass(frozen=True)
class LikelihoodObjective:
    """Negative log-likelihood of the response tokens: pre-training, cold start (section 3.2), SFT (Table 3)."""

    temperature: ClassVar[float] = 1.0
    with_entropy: ClassVar[bool] = False

    def __call__(self, logits: Tensor, batch: Batch, vocab: VocabShard) -> Outcome:
        """See the module's text."""
        return self.of_scores(*next_token_scores(logits, batch, vocab, with_entropy=False), batch)

    def of_scores(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> Outcome:
        """See the module's text; no entropy is needed."""
        mask = batch.token_mask * batch.sample_mask[:, None]
        share = torch.where(mask > 0, -logp * batch.loss_coef[:, None], torch.zeros_like(logp))
        metrics: Metrics = {"loss": float(share.detach().sum())}
        masked_mean(metrics, "nll", -logp.detach(), mask)
        return share.sum(), metrics, {}


def _within(values: Tensor, mask: Tensor, logp: Tensor) -> Tensor:
    """`values` on the response tokens; elsewhere the policy's own, so that padding makes no ratio and no gradient."""
    return torch.where(mask > 0, values, logp.detach())


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
