"""Objectives with a teacher: OPSD, on-policy self-distillation (arXiv 2601.18734). The protocol is objective.py's.

The gradient flows through the student alone. `DivergenceObjective` compares whole distributions and has to be given
the teacher's logits, which are made beside the student's (see `taught_logits`); `SampledObjective` needs no more than
the teacher's log-probability of each token, which rides in the batch.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import ClassVar, Literal

import torch
from torch import Tensor

from nemo_tapo.equations.divergence import DivergenceRules, token_divergence
from nemo_tapo.equations.teacher import in_teacher_rows, taught_tokens
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Metrics, Outcome, masked_mean, next_token_scores, rollout_metrics
from nemo_tapo.types import Batch

TeacherKind = Literal["frozen", "live"]  # the weights of the run's beginning (or others that were given), or today's


@dataclass(frozen=True)
class DivergenceObjective:
    """The generalised Jensen-Shannon divergence over the whole vocabulary: presets opsd-v1 and opsd-v3."""

    rules: DivergenceRules = field(default_factory=DivergenceRules)
    teacher: TeacherKind = "frozen"
    with_entropy: ClassVar[bool] = True

    @property
    def temperature(self) -> float:
        """Of the rollouts: both sides' logits are divided by it."""
        return self.rules.temperature

    def __call__(self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher: Tensor | None = None) -> Outcome:
        """See objective.py; `teacher` [n, V/TP] as `taught_logits` makes it, None where no token is taught."""
        rows, columns = taught_tokens(batch)
        if teacher is None:
            assert not len(rows), "a divergence needs the teacher's logits"
            teacher = logits.new_zeros(0, logits.shape[-1])
        tokens = batch.input_ids[rows, columns]
        found = token_divergence(logits, (rows, columns - 1), tokens, teacher, self.rules, vocab)
        loss = (found.value * batch.loss_coef[rows]).sum()
        with torch.no_grad():
            out = _metrics(batch, (rows, columns), float(loss), found.logp, found.entropy, found.teacher_logp)
            out["opsd/divergence:sum"], out["opsd/divergence:count"] = float(found.value.sum()), float(len(rows))
            if self.rules.entry_clip is not None:
                out["opsd/clipped_share:sum"] = float(found.clipped.sum())
                out["opsd/clipped_share:count"] = float(len(rows) * vocab.size)
        return loss, out, {}

    def of_scores(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> Outcome:
        """A token's score is not enough: runtimes that have nothing else refuse this objective when they start."""
        raise AssertionError("a divergence over the vocabulary cannot be made of the tokens' scores")


@dataclass(frozen=True)
class SampledObjective:
    """The sampled token alone, as a policy gradient: -A log p_S(y) with A = log p_T(y) - log p_S(y) held constant."""

    temperature: float = 1.0  # of the rollouts
    with_entropy: ClassVar[bool] = True

    def __call__(self, logits: Tensor, batch: Batch, vocab: VocabShard) -> Outcome:
        """See objective.py."""
        return self.of_scores(*next_token_scores(logits, batch, vocab, temperature=self.temperature), batch)

    def of_scores(self, logp: Tensor, entropy: Tensor | None, batch: Batch) -> Outcome:
        """See objective.py; `batch.teacher_logprobs` have to be known of every taught token."""
        assert entropy is not None
        places = taught_tokens(batch)
        own = logp[places]
        assert batch.teacher_logprobs is not None or not len(own), "the teacher's log-probabilities are missing"
        teacher = own.detach() if batch.teacher_logprobs is None else batch.teacher_logprobs[places]
        loss = -((teacher - own.detach()) * own * batch.loss_coef[places[0]]).sum()
        with torch.no_grad():
            out = _metrics(batch, places, float(loss), own, entropy[places], teacher)
        return loss, out, {}


Distillation = DivergenceObjective | SampledObjective


def taught_logits(logits: Tensor, batch: Batch) -> Tensor:
    """The teacher's logits [n, V/TP] that predict the taught tokens, from those of its rows [b, S', V/TP]; a copy."""
    rows, columns = in_teacher_rows(batch, taught_tokens(batch))
    return logits[rows, columns - 1]


def _metrics(
    batch: Batch, places: tuple[Tensor, Tensor], loss: float, logp: Tensor, entropy: Tensor, teacher: Tensor
) -> Metrics:
    """What both objectives report; all but `batch` and `loss` are of the n taught tokens."""
    mask = torch.zeros_like(batch.token_mask)
    mask[places] = 1.0

    def spread(values: Tensor) -> Tensor:
        return torch.zeros_like(mask).index_put(places, values.detach().to(mask.dtype))

    student = spread(logp)
    previous = student if batch.prev_logprobs is None else torch.where(mask > 0, batch.prev_logprobs, student)
    out: Metrics = {"loss": loss}
    masked_mean(out, "ratio_deviation", ((student - previous).exp() - 1).abs(), mask)
    masked_mean(out, "opsd/advantage", spread(teacher - logp), mask)
    rollout_metrics(out, batch, mask, student, spread(entropy))
    return out
