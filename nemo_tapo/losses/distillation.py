"""Compute losses with a teacher: OPSD, on-policy self-distillation (arXiv 2601.18734).

The gradient flows through the student alone. `DivergenceLoss` compares whole distributions and needs the teacher's
logits, which a worker makes beside the student's; `SampledTokenLoss` needs no more than the teacher's log-probability
of each token, which is in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor

from nemo_tapo import metrics
from nemo_tapo.equations.divergence import DivergenceRules, token_divergence
from nemo_tapo.equations.teacher import find_taught_tokens, to_teacher_rows
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import LossNeeds, LossOutput, TeacherKind, TokenLoss, masked_mean, rollout_metrics
from nemo_tapo.metrics import Mean, Parts
from nemo_tapo.types import Batch


@dataclass(frozen=True)
class DivergenceLoss:
    """The generalised Jensen-Shannon divergence over the whole vocabulary: presets opsd-v1 and opsd-v3.

    >>> DivergenceLoss(teacher="live").needs.teacher_logits
    'live'
    """

    rules: DivergenceRules = field(default_factory=DivergenceRules)
    teacher: TeacherKind = "frozen"

    @property
    def needs(self) -> LossNeeds:
        """The teacher's logits; both sides' are divided by the rollouts' temperature."""
        return LossNeeds(temperature=self.rules.temperature, entropy=True, teacher_logits=self.teacher)

    def __call__(
        self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher_logits: Tensor | None = None
    ) -> LossOutput:
        """Return the divergence; `teacher_logits` [n, V/TP] come from `select_taught_logits` (None: no token)."""
        rows, columns = find_taught_tokens(batch)
        if teacher_logits is None:
            assert not len(rows), "a divergence needs the teacher's logits"
            teacher_logits = logits.new_zeros(0, logits.shape[-1])
        tokens = batch.input_ids[rows, columns]
        found = token_divergence(logits, (rows, columns - 1), tokens, teacher_logits, self.rules, vocab)
        loss = (found.value * batch.loss_coef[rows]).sum()
        with torch.no_grad():
            parts = _metrics(batch, (rows, columns), found.logp, found.entropy, found.teacher_logp)
            parts[metrics.OPSD_DIVERGENCE] = Mean(float(found.value.sum()), float(len(rows)))
            if self.rules.entry_clip is not None:
                entries = float(len(rows) * vocab.size)
                parts[metrics.OPSD_CLIPPED_SHARE] = Mean(float(found.clipped.sum()), entries)
        return LossOutput(loss, parts)


@dataclass(frozen=True)
class SampledTokenLoss(TokenLoss):
    """The sampled token alone, as a policy gradient: -A log p_S(y) with A = log p_T(y) - log p_S(y) held constant.

    >>> SampledTokenLoss(teacher="frozen").needs.teacher_logprobs
    'frozen'
    """

    temperature: float = 1.0  # of the rollouts
    teacher: TeacherKind = "frozen"

    @property
    def needs(self) -> LossNeeds:
        """The teacher's log-probability of every taught token."""
        return LossNeeds(temperature=self.temperature, entropy=True, teacher_logprobs=self.teacher)

    def from_logprobs(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> LossOutput:
        """Return the policy gradient's loss; `batch.teacher_logprobs` must be known of every taught token."""
        assert entropy is not None
        places = find_taught_tokens(batch)
        own = logp[places]
        assert batch.teacher_logprobs is not None or not len(own), "the teacher's log-probabilities are missing"
        teacher = own.detach() if batch.teacher_logprobs is None else batch.teacher_logprobs[places]
        loss = -((teacher - own.detach()) * own * batch.loss_coef[places[0]]).sum()
        with torch.no_grad():
            parts = _metrics(batch, places, own, entropy[places], teacher)
        return LossOutput(loss, parts)


def select_taught_logits(logits: Tensor, batch: Batch) -> Tensor:
    """Copy the teacher's logits [n, V/TP] that predict the taught tokens out of those of its rows [b, S', V/TP]."""
    rows, columns = to_teacher_rows(batch, find_taught_tokens(batch))
    return logits[rows, columns - 1]


def _metrics(batch: Batch, places: tuple[Tensor, Tensor], logp: Tensor, entropy: Tensor, teacher: Tensor) -> Parts:
    """Return what both losses report; all but `batch` are of the n taught tokens."""
    mask = torch.zeros_like(batch.token_mask)
    mask[places] = 1.0

    def spread(values: Tensor) -> Tensor:
        return torch.zeros_like(mask).index_put(places, values.detach().to(mask.dtype))

    student = spread(logp)
    previous = student if batch.prev_logprobs is None else torch.where(mask > 0, batch.prev_logprobs, student)
    return {
        metrics.RATIO_DEVIATION: masked_mean(((student - previous).exp() - 1).abs(), mask),
        metrics.OPSD_ADVANTAGE: masked_mean(spread(teacher - logp), mask),
        **rollout_metrics(batch, mask, student, spread(entropy)),
    }
