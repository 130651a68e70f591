"""Compute maximum likelihood: pre-training, the cold start (section 3.2), SFT on constructions (Table 3)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_tapo.losses.base import LossNeeds, LossOutput, TokenLoss, masked_mean
from nemo_tapo.metrics import NLL
from nemo_tapo.types import Batch


@dataclass(frozen=True)
class LikelihoodLoss(TokenLoss):
    """The negative log-likelihood of the response tokens.

    >>> LikelihoodLoss().needs.entropy
    False
    """

    @property
    def needs(self) -> LossNeeds:
        """Nothing but log-probabilities."""
        return LossNeeds()

    def from_logprobs(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        """Return the sum of -log p, each token weighted by its row's coefficient."""
        mask = batch.token_mask * batch.sample_mask[:, None]
        contributions = torch.where(mask > 0, -logp * batch.loss_coef[:, None], torch.zeros_like(logp))
        return LossOutput(contributions.sum(), {NLL: masked_mean(-logp, mask)})
