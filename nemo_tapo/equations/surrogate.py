"""Compute the surrogate (Eq. 2 and 8 of arXiv 2606.18844) with its variants, and the divergence from the reference."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

LARGEST_LOG_RATIO = 60.0  # e^60 is far beyond any clip bound, and its gradient still a number in fp32


def clipped_surrogate(
    logp: Tensor,
    previous: Tensor,
    advantages: Tensor,
    clip_low: float,
    clip_high: float,
    dual_clip: float | None = None,
    rows: Tensor | None = None,
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -min(rho A, clip(rho, 1 - clip_low, 1 + clip_high) A) for every token (Eq. 2).

    `logp` [b, S] nats under the policy, `previous` [b, S] under the policy that sampled, `advantages` broadcastable.
    Returns (loss [b, S], rho [b, S] detached, clipped [b, S] as 0/1: where a bound decides and no gradient flows).
    Where both log-probabilities are -inf, rho is 1: the token was impossible before and still is.

    `dual_clip` c > 1 (arXiv 1912.09729): where A < 0 the loss is at most -c A.
    `rows` [b, S], 1 on the tokens of a row that carry loss: rho is the row's (`sequence_ratio`) instead of the token's.

    >>> half, quarter = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    >>> loss, rho, clipped = clipped_surrogate(half, quarter, torch.tensor([[3.0]]), 0.2, 0.2)
    >>> round(float(rho), 4), round(float(loss), 4), float(clipped)  # rho 2 is clipped to 1.2
    (2.0, -3.6, 1.0)
    """
    ratio = token_ratio(logp, previous) if rows is None else sequence_ratio(logp, previous, rows)
    free = ratio * advantages
    bound = ratio.clamp(1 - clip_low, 1 + clip_high) * advantages
    clipped = bound < free
    loss = -torch.minimum(free, bound)
    if dual_clip is not None:
        most = torch.where(advantages < 0, -dual_clip * advantages, torch.inf)
        clipped = clipped | (loss > most)
        loss = torch.minimum(loss, most)
    return loss, ratio.detach(), clipped.float()


def cispo_surrogate(
    logp: Tensor, previous: Tensor, advantages: Tensor, clip_low: float, clip_high: float
) -> tuple[Tensor, Tensor, Tensor]:
    """Return -clip(rho, 1 - clip_low, 1 + clip_high) A log p, the ratio held constant (CISPO, arXiv 2506.13585).

    Arguments and results are those of `clipped_surrogate`. Every token keeps a gradient: a bound limits its weight.

    >>> half, quarter = torch.tensor([[0.5]]).log(), torch.tensor([[0.25]]).log()
    >>> loss, rho, clipped = cispo_surrogate(half, quarter, torch.tensor([[3.0]]), 0.2, 0.2)
    >>> round(float(rho), 4), round(float(loss), 4), float(clipped)  # 1.2 x 3 x ln 2
    (2.0, 2.4953, 1.0)
    """
    ratio = token_ratio(logp.detach(), previous)
    bounded = ratio.clamp(1 - clip_low, 1 + clip_high)
    return -bounded * advantages * logp, ratio, (bounded != ratio).float()


def token_ratio(logp: Tensor, previous: Tensor) -> Tensor:
    """Return rho = pi / pi_old of every token, [b, S]."""
    return torch.exp(_difference(logp, previous).clamp(max=LARGEST_LOG_RATIO))


def sequence_ratio(logp: Tensor, previous: Tensor, rows: Tensor) -> Tensor:
    """Return each row's geometric mean of rho over its tokens `rows` [b, S], at every token (GSPO, arXiv 2507.18071).

    The gradient at a token is that of the token's own log p times the row's ratio: GSPO-token (section 4.3 there). If
    all tokens of a row weigh alike, that is GSPO's; if they do not (Eq. 7), each token's gradient keeps its weight.

    >>> logp, previous = torch.tensor([[0.5, 0.5, 0.9]]).log(), torch.tensor([[0.25, 0.5, 0.1]]).log()
    >>> sequence_ratio(logp, previous, torch.tensor([[1.0, 1.0, 0.0]]))  # sqrt(2 x 1)
    tensor([[1.4142, 1.4142, 1.4142]])
    """
    change = torch.where(rows > 0, _difference(logp, previous), torch.zeros_like(logp))
    mean = change.detach().sum(-1, keepdim=True) / rows.sum(-1, keepdim=True).clamp_min(1)
    own = torch.where(torch.isfinite(change), change - change.detach(), torch.zeros_like(change))  # 0, with a gradient
    return torch.exp(mean.clamp(max=LARGEST_LOG_RATIO) + own)


def k3_divergence(logp: Tensor, reference: Tensor) -> Tensor:
    """Return the k3 estimate of KL(pi || pi_ref) from one sampled token: exp(d) - d - 1, d = log pi_ref - log pi.

    Nats, 0 where the two agree; `expm1` keeps its precision where they almost do. Source: J. Schulman, "Approximating
    KL divergence", 2020.

    >>> k3_divergence(torch.tensor(0.5).log(), torch.tensor(1.0).log())  # d = ln 2: 2 - ln 2 - 1
    tensor(0.3069)
    """
    difference = _difference(reference, logp)
    return torch.expm1(difference) - difference


@dataclass(frozen=True)
class KLRules:
    """How the penalty on the KL to the reference is differentiated and bounded; the defaults are plain k3.

    `sampling_gradient`: the tokens are samples of the policy itself, so the gradient of an expectation over them has a
    second part, k3 times the gradient of log pi. With it the gradient is log pi - log pi_ref times that of log pi, the
    KL's own; without it, of k3 alone, 1 - pi_ref / pi times it. NeMo-RL has it so (arXiv 2506.09477).
    """

    sampling_gradient: bool = False
    input_clamp: float | None = None  # nats: |log pi_ref - log pi| at most, no gradient beyond
    output_clamp: float | None = None  # of the penalty, no gradient beyond


def kl_penalty(logp: Tensor, reference: Tensor, rules: KLRules) -> Tensor:
    """Return the k3 divergence [b, s] to be penalised, in nats; `rules` decide its gradient.

    >>> kl_penalty(torch.tensor(0.5).log(), torch.tensor(1.0).log(), KLRules(output_clamp=0.25))
    tensor(0.2500)
    """
    difference = _difference(reference, logp)
    if rules.input_clamp is not None:
        difference = difference.clamp(-rules.input_clamp, rules.input_clamp)
    penalty = torch.expm1(difference) - difference
    if rules.sampling_gradient:
        penalty = penalty * torch.exp(difference.detach() - difference)  # 1, with the gradient of log pi
    return penalty if rules.output_clamp is None else penalty.clamp(max=rules.output_clamp)


def _difference(a: Tensor, b: Tensor) -> Tensor:
    """Return a - b, and 0 where both are -inf (a token that is impossible under either policy). A nan stays a nan."""
    return torch.where(torch.isneginf(a) & torch.isneginf(b), torch.zeros_like(a), a - b)
