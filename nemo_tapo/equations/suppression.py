"""Compute OOD token suppression (Eq. 7 of arXiv 2606.18844, section 3.5)."""

from __future__ import annotations

import torch
from torch import Tensor


def suppression_weights(logp: Tensor, entropy: Tensor, w_min: float, w_max: float) -> Tensor:
    """Return w_t = clamp(exp(s_t), w_min, w_max) with s_t = log p(y_t) + H_t (Eq. 7).

    `logp` and `entropy` are in nats and of one shape; H_t is the entropy of the full vocabulary distribution that
    y_t was predicted from. No gradient flows through w. A token the policy finds as likely as its typical choice
    has s_t near 0 and weight near 1; one that it finds impossible (log p = -inf) gets w_min.

    >>> logp, entropy = torch.tensor([-2.0, -9.0]), torch.tensor([2.0, 1.0])
    >>> suppression_weights(logp, entropy, w_min=0.01, w_max=10.0)
    tensor([1.0000, 0.0100])
    """
    with torch.no_grad():
        return torch.exp(logp.detach() + entropy.detach()).clamp(w_min, w_max)
