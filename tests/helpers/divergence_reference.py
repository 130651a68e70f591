"""The divergences of OPSD (arXiv 2601.18734) once more: dense, float64, left to autograd.

Written from the paper's definitions alone; shares no code with `nemo_tapo`. 0 log 0 = 0 is had by masking before the
logarithm, so that autograd meets no infinity where there is none.
"""

from __future__ import annotations

import torch
from torch import Tensor


def reference(
    student: Tensor,
    teacher: Tensor,
    tokens: Tensor,
    beta: float,
    clip: float | None,
    temperature: float,
    entries: bool = False,
) -> dict[str, Tensor]:
    """Of logits [n, V] and tokens [n]: value, clipped, logp, teacher_logp, entropy, each [n]; or the entries [n, V].

    beta 0: sum p_T log(p_T / p_S). beta 1: sum p_S log(p_S / p_T). Between: beta KL(T || m) + (1 - beta) KL(S || m).
    """
    p = torch.softmax(student.double() / temperature, -1)
    q = torch.softmax(teacher.double() / temperature, -1)
    if beta == 0:
        terms = relative(q, p)
    elif beta == 1:
        terms = relative(p, q)
    else:
        m = beta * q + (1 - beta) * p
        terms = beta * relative(q, m) + (1 - beta) * relative(p, m)
    if entries:
        return {"entries": terms.detach()}
    kept = terms if clip is None else torch.minimum(terms, torch.full_like(terms, clip))
    if clip is not None:  # torch.minimum halves the gradient at a tie; the cut entries have none
        kept = torch.where(terms > clip, torch.full_like(terms, clip), terms)
    index = tokens[:, None]
    return {
        "value": kept.sum(-1),
        "clipped": (torch.zeros_like(terms) if clip is None else terms > clip).sum(-1).double(),
        "logp": p.gather(-1, index)[:, 0].log(),
        "teacher_logp": q.gather(-1, index)[:, 0].log(),
        "entropy": -relative(p, torch.ones_like(p)).sum(-1),
    }


def relative(a: Tensor, b: Tensor) -> Tensor:
    """a log(a / b) by entry, 0 where a is 0."""
    possible = a > 0
    ratio = torch.where(possible, a, torch.ones_like(a)) / torch.where(possible, b, torch.ones_like(b))
    return torch.where(possible, a * ratio.log(), torch.zeros_like(a))
