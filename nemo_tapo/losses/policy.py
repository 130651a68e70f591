"""The loss of GRPO and TAPO: Eq. 2, 6, 7 and 8 of arXiv 2606.18844."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar

import torch
from torch import Tensor

from nemo_tapo.equations.importance import ImportanceRules, importance_weights
from nemo_tapo.equations.suppression import suppression_weights
from nemo_tapo.equations.surrogate import KLRules, clipped_surrogate, kl_penalty
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Metrics, Outcome, masked_mean, next_token_scores, rollout_metrics
from nemo_tapo.types import Batch


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


def _within(values: Tensor, mask: Tensor, logp: Tensor) -> Tensor:
    """`values` on the response tokens; elsewhere the policy's own, so that padding makes no ratio and no gradient."""
    return torch.where(mask > 0, values, logp.detach())
