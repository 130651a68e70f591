"""Compute the loss of GRPO and TAPO: Eq. 2, 6, 7 and 8 of arXiv 2606.18844."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import torch
from torch import Tensor

from nemo_tapo import metrics
from nemo_tapo.equations.importance import ImportanceRules, importance_weights
from nemo_tapo.equations.suppression import suppression_weights
from nemo_tapo.equations.surrogate import KLRules, cispo_surrogate, clipped_surrogate, kl_penalty
from nemo_tapo.losses.base import LossNeeds, LossOutput, TokenLoss, masked_mean, rollout_metrics
from nemo_tapo.metrics import Parts, Sum
from nemo_tapo.types import Batch


@dataclass(frozen=True)
class PolicyLoss(TokenLoss):
    """The clipped surrogate, weighted token by token on constructed rows. GRPO is the case without such rows.

    The ratio of sequences takes whole rows, which every worker gives a loss: micro-batches split between rows, and
    context-parallel ranks gather log-probabilities first (runtime/nemo_rl/logit_loss.py).

    >>> PolicyLoss(clip_high=0.28).needs
    LossNeeds(temperature=1.0, entropy=True, teacher_logits=None, teacher_logprobs=None)
    """

    clip_low: float = 0.2
    clip_high: float = 0.2
    kl_coef: float = 0.0
    suppression: bool = True
    w_min: float = 0.01
    w_max: float = 10.0
    temperature: float = 1.0  # of the rollouts: the policy is the distribution that is sampled from
    kl_rules: KLRules = field(default_factory=KLRules)
    importance: ImportanceRules | None = None  # correction for what the engine sampled with other probabilities
    dual_clip: float | None = None  # c > 1: the loss is at most -c A where A < 0
    ratio: Literal["token", "sequence"] = "token"  # sequence: GSPO
    surrogate: Literal["clipped", "cispo"] = "clipped"

    @property
    def needs(self) -> LossNeeds:
        """The entropy, for Eq. 7 and to be watched."""
        return LossNeeds(temperature=self.temperature, entropy=True)

    def from_logprobs(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        """Return the weighted surrogate, with the penalty on the KL to the reference if there is one."""
        assert entropy is not None
        mask = batch.token_mask * batch.sample_mask[:, None]
        weights = self._weights(logp, entropy, batch)
        previous = logp.detach() if batch.prev_logprobs is None else _within(batch.prev_logprobs, mask, logp)
        surrogate, ratio, clipped = self._surrogate(logp, previous, batch.advantages[:, None], mask)
        importance, corrected = self._importance(previous, batch, mask)
        token_loss = weights * importance * surrogate
        if self.kl_coef > 0:
            assert batch.reference_policy_logprobs is not None, "a penalised KL needs the reference"
            known = batch.reference_mask
            assert known is None or bool(known[batch.sample_mask > 0].all()), "a penalised KL needs every row"
            reference = _within(batch.reference_policy_logprobs, mask, logp)
            token_loss = token_loss + self.kl_coef * kl_penalty(logp, reference, self.kl_rules)
        # `where`, not a product: padding may hold a large number, and 0 * inf is nan
        contributions = torch.where(mask > 0, token_loss * batch.loss_coef[:, None], torch.zeros_like(token_loss))
        with torch.no_grad():
            parts = {
                **_loss_terms(batch, contributions),
                metrics.RATIO_DEVIATION: masked_mean((ratio - 1).abs(), mask),
                metrics.CLIP_FRACTION: masked_mean(clipped, mask),
                **_constructed_metrics(batch, mask, weights, logp),
                **rollout_metrics(batch, mask * _is_rollout(batch)[:, None].float(), logp, entropy),
            }
            if corrected is not None:
                parts[metrics.IMPORTANCE_WEIGHT] = masked_mean(importance, corrected)
            if batch.supervised is not None:
                parts[metrics.NLL_IFT] = masked_mean(-logp, mask * batch.supervised[:, None].float())
        return LossOutput(contributions.sum(), parts, weights.detach())

    def _surrogate(
        self, logp: Tensor, previous: Tensor, advantages: Tensor, mask: Tensor
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Return loss, ratio and where it is bounded, [b, S] each."""
        if self.surrogate == "cispo":
            return cispo_surrogate(logp, previous, advantages, self.clip_low, self.clip_high)
        rows = mask if self.ratio == "sequence" else None
        return clipped_surrogate(logp, previous, advantages, self.clip_low, self.clip_high, self.dual_clip, rows)

    def _weights(self, logp: Tensor, entropy: Tensor, batch: Batch) -> Tensor:
        ones = torch.ones_like(logp)
        if not self.suppression or not bool(batch.constructed.any()):
            return ones
        weights = suppression_weights(logp, entropy, self.w_min, self.w_max)
        return torch.where(batch.constructed[:, None], weights, ones)

    def _importance(self, previous: Tensor, batch: Batch, mask: Tensor) -> tuple[Tensor, Tensor | None]:
        """Return weights [b, S] of the importance correction, and a mask of the tokens that it concerns.

        The weights are 1 without a correction (the mask is then None), and on rows the engine did not sample.
        """
        if self.importance is None or batch.generation_logprobs is None or batch.generation_mask is None:
            return torch.ones_like(previous), None
        known = mask * batch.generation_mask[:, None] * (1 - batch.constructed[:, None].float())
        weights, _ = importance_weights(previous, batch.generation_logprobs, known, self.importance)
        return torch.where(known > 0, weights, torch.ones_like(weights)), known


def _is_rollout(batch: Batch) -> Tensor:
    """Return [b] bool: neither constructed nor an example."""
    others = batch.constructed if batch.supervised is None else batch.constructed | batch.supervised
    return ~others


def _loss_terms(batch: Batch, contributions: Tensor) -> Parts:
    """Return the terms of the loss (Eq. 6) from each token's contribution [b, S]."""
    parts: Parts = {
        metrics.LOSS_ORIGINAL: Sum(float(contributions[_is_rollout(batch)].sum())),
        metrics.LOSS_REFLECTION: Sum(float(contributions[batch.constructed].sum())),
    }
    if batch.supervised is not None:
        parts[metrics.LOSS_IFT] = Sum(float(contributions[batch.supervised].sum()))
    return parts


def _constructed_metrics(batch: Batch, mask: Tensor, weights: Tensor, logp: Tensor) -> Parts:
    """Return what is watched on constructed rows."""
    constructed = mask * batch.constructed[:, None].float()
    return {
        metrics.OTS_WEIGHT_MEAN: masked_mean(weights, constructed),
        metrics.CONSTRUCTED_LOGPROB: masked_mean(logp, constructed),
    }


def _within(values: Tensor, mask: Tensor, logp: Tensor) -> Tensor:
    """Return `values` on the response tokens and the policy's own elsewhere: padding makes no ratio and no gradient."""
    return torch.where(mask > 0, values, logp.detach())
