"""Maximum likelihood: pre-training, cold start (section 3.2), SFT on constructions (Table 3)."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Metrics, Outcome, masked_mean, next_token_scores
from nemo_tapo.types import Batch


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
