"""The clipped surrogate (Eq. 2 and 8 of arXiv 2606.18844) and the divergence from the reference policy."""

from __future__ import annotations

import torch
from torch import Tensor


def clipped_surrogate(
    logp: Tensor, previous: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """-min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) for every token (Eq. 2).

    `logp` [b, S] nats under the policy, `previous` [b, S] under the policy that sampled, `advantages` broadcastable.
    Returns (loss [b, S], rho [b, S] detached, clipped [b, S] as 0/1: where the clipped branch was the smaller).
    Where both log-probabilities are -inf, rho is 1: the token was impossible before and still is.
    """
    log_ratio = torch.where(logp == previous, logp - logp.detach(), logp - previous)
    log_ratio = torch.where(torch.isnan(log_ratio), torch.zeros_like(log_ratio), log_ratio)
    ratio = torch.exp(log_ratio)
    free = ratio * advantages
    bound = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    clipped = (bound < free).float()
    return -torch.minimum(free, bound), ratio.detach(), clipped


def k3_divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """The k3 estimate of KL(pi || pi_ref) from one sampled token: exp(d) - d - 1, d = log pi_ref - log pi.

    Nats, never negative, 0 where the two agree (J. Schulman, "Approximating KL divergence", 2020).
    """
    difference = reference - logp
    return torch.exp(difference) - difference - 1
