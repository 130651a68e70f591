"""Weigh tokens by pi_old / pi_engine, for rollouts that another implementation of the policy sampled.

Not part of the paper: NeMo-RL's correction (`loss_fn.use_importance_sampling_correction`), there for engines of lower
precision. It concerns rows that the engine sampled in the policy's own context. A constructed row was sampled in the
synthesis prompt's context; the quotient would compare two different questions, so its weight is 1.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor


@dataclass(frozen=True)
class ImportanceRules:
    """How the quotient of a token is bounded (NeMo-RL's `truncated_importance_sampling_type`).

    none            as it is
    tis             clamped to [low, high]
    icepop          0 outside [low, high]
    seq-mask-tis    as it is, but 0 on a whole row whose geometric mean lies outside [low, high]
    """

    truncation: Literal["none", "tis", "icepop", "seq-mask-tis"] = "none"
    low: float = 0.0
    high: float = float("inf")
    sequence: bool = False  # a row's quotient, the product over its tokens, instead of each token's (GSPO)


def importance_weights(
    previous: Tensor, generation: Tensor, mask: Tensor, rules: ImportanceRules
) -> tuple[Tensor, Tensor]:
    """Return (weights [b, s], out of bounds [b, s] as 0/1) from two log-probabilities [b, s] in nats.

    `mask` [b, s] names the tokens that count in a row's geometric mean. No gradient flows through the weights; a
    quotient that is not finite weighs 0.

    >>> old, engine = torch.tensor([[0.5, 0.5]]).log(), torch.tensor([[0.25, 0.5]]).log()
    >>> weights, outside = importance_weights(old, engine, torch.ones(1, 2), ImportanceRules("tis", 0.0, 1.5))
    >>> weights.tolist(), outside.tolist()
    ([[1.5, 1.0]], [[1.0, 0.0]])
    """
    with torch.no_grad():
        logs = torch.where(mask > 0, previous - generation, torch.zeros_like(previous))
        quotient = (logs.sum(-1, keepdim=True).expand_as(logs) if rules.sequence else logs).exp()
        weights = torch.nan_to_num(quotient, nan=0.0, posinf=0.0, neginf=0.0)
        judged = weights
        if rules.truncation == "seq-mask-tis":
            logs = torch.nan_to_num(logs, nan=0.0, posinf=0.0, neginf=0.0)
            judged = (logs.sum(-1, keepdim=True) / mask.sum(-1, keepdim=True).clamp_min(1)).exp().expand_as(weights)
        outside = (judged < rules.low) | (judged > rules.high)
        if rules.truncation == "tis":
            weights = weights.clamp(rules.low, rules.high)
        elif rules.truncation != "none":
            weights = torch.where(outside, torch.zeros_like(weights), weights)
    return weights, outside.float()
