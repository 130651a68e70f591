"""Compute the divergence between a teacher's and the student's next-token distribution; ranks may share the vocabulary.

OPSD (arXiv 2601.18734) sums over the vocabulary, with s = log p_S and t = log p_T of the logits divided by the
sampling temperature,

    beta 0    l_v = p_T (t - s)                                      KL(T || S), the forward one
    beta 1    l_v = p_S (s - t)                                      KL(S || T)
    between   l_v = beta p_T (t - log m) + (1 - beta) p_S (s - log m),   m = beta p_T + (1 - beta) p_S

and may cut each entry off first, min(l_v, c), which takes the gradient of that entry away. With g_v = d l_v / d s_v

    beta 0    g = -p_T        beta 1    g = p_S (s - t + 1)        between    g = (1 - beta) p_S (s - log m)

the gradient by the student's logits x is (g_v - p_v sum_u g_u) / temperature. Under tensor parallelism the sums over v
are one all-reduce of [n] numbers. Nothing of the logits' size is made besides the gradient: the tokens that count are
worked on a piece at a time, the others are not looked at.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tapo.equations.teacher import Places
from nemo_tapo.equations.vocab import CPU_BUFFER, SMALLEST_BUFFER, VocabShard

FEWEST_PIECES = 128  # about a dozen buffers of a piece's size are in use at once: a tenth of the logits


@dataclass(frozen=True)
class DivergenceRules:
    """Which divergence is computed; see the module's text.

    >>> DivergenceRules(beta=0.5, entry_clip=0.05).temperature
    1.0
    """

    beta: float = 0.0
    entry_clip: float | None = None  # c, nats; None: nothing is cut off
    temperature: float = 1.0


class TokenDivergence(NamedTuple):
    """Of n tokens, each [n], fp32 (fp64 for fp64 logits), equal on all ranks. Only `value` is differentiable."""

    value: Tensor  # nats, the sum over the vocabulary
    clipped: Tensor  # vocabulary entries that were cut off
    logp: Tensor  # log p_S of the token itself
    teacher_logp: Tensor  # log p_T of it
    entropy: Tensor  # of p_S


def token_divergence(
    logits: Tensor, places: Places, tokens: Tensor, teacher: Tensor, rules: DivergenceRules, vocab: VocabShard
) -> TokenDivergence:
    """Return the divergence at n places (equations of arXiv 2601.18734; see the module's text).

    `logits` [b, s, V_local] of the student, any float type and strides; `places` (row, column) [n] are those that
    predict the tokens, `tokens` [n] the global ids that were sampled there; `teacher` [n, V_local] the teacher's logits
    at these places. Columns from `vocab.size` on are padding. A logit of -inf is a token of probability 0, and
    0 log 0 = 0: what the student excludes and the teacher does not is infinite under beta = 0 without a clip.
    """
    if teacher.shape != (len(tokens), logits.shape[-1]):
        raise ValueError(
            f"the teacher's logits {tuple(teacher.shape)} are not [n, V] = [{len(tokens)}, {logits.shape[-1]}]."
        )
    return TokenDivergence(*_Divergence.apply(logits, *places, tokens, teacher, rules, vocab))  # type: ignore[no-untyped-call]


class _Divergence(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any,
        logits: Tensor,
        rows: Tensor,
        columns: Tensor,
        tokens: Tensor,
        teacher: Tensor,
        rules: DivergenceRules,
        vocab: VocabShard,
    ) -> tuple[Tensor, ...]:
        view = _View(logits, rows, columns, teacher, rules, vocab)
        norms = _log_normalisers(view)
        sums, chosen = view.numbers(4), view.numbers(2).fill_(-math.inf)
        for piece in view.pieces():
            s, t = view.log_probabilities(piece, norms)
            p, terms, slopes, cut = _clipped_terms(s, t, rules)
            sums[0, piece], sums[1, piece], sums[2, piece] = terms.sum(-1), cut, slopes.sum(-1)
            sums[3, piece] = -torch.where(p > 0, p * s, 0).sum(-1)
            chosen[:, piece] = _of_tokens((s, t), tokens[piece], vocab)
        if vocab.group is not None:
            dist.all_reduce(sums, group=vocab.group)
            dist.all_reduce(chosen, op=dist.ReduceOp.MAX, group=vocab.group)  # one rank at most has the token
        value, clipped, slope, entropy = sums
        ctx.save_for_backward(logits, rows, columns, teacher, norms, slope)
        ctx.rules, ctx.vocab = rules, vocab
        rest = (clipped, chosen[0], chosen[1], entropy)
        ctx.mark_non_differentiable(*rest)
        ctx.set_materialize_grads(False)
        return value.clone(), *rest

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, ...]:
        """Write (g_v - p_v sum_u g_u) / temperature piece by piece into the one gradient tensor."""
        wanted = gradients[0]
        nothing = (None,) * 6
        if wanted is None or not ctx.needs_input_grad[0]:
            return None, *nothing
        logits, rows, columns, teacher, norms, slope = ctx.saved_tensors
        rules: DivergenceRules = ctx.rules
        view = _View(logits, rows, columns, teacher, rules, ctx.vocab)
        out = torch.zeros_like(logits)  # in the logits' own order of memory
        for piece in view.pieces():
            s, t = view.log_probabilities(piece, norms)
            p, _, slopes, _ = _clipped_terms(s, t, rules)
            result = slopes.sub_(p.mul_(slope[piece, None])).mul_(wanted[piece, None] / rules.temperature)
            out[rows[piece], columns[piece], : view.width] = result.to(out.dtype)
        return out, *nothing


@dataclass(frozen=True)
class _View:
    """The taught tokens' logits, and how they are cut into pieces."""

    logits: Tensor
    rows: Tensor
    columns: Tensor
    teacher: Tensor
    rules: DivergenceRules
    vocab: VocabShard

    @property
    def width(self) -> int:
        """This rank's columns without padding."""
        return self.vocab.columns(self.logits.shape[-1])

    @property
    def dtype(self) -> torch.dtype:
        return torch.float64 if self.logits.dtype == torch.float64 else torch.float32

    def numbers(self, kinds: int) -> Tensor:
        """Return zeros [kinds, n]."""
        return torch.zeros(kinds, len(self.rows), dtype=self.dtype, device=self.logits.device)

    def pieces(self) -> Iterator[slice]:
        """Yield runs of tokens whose [tokens, V] is small against the logits and fits the cache of a CPU.

        A rank without columns yields none.
        """
        count, width = len(self.rows), self.width
        if not width:
            return
        wanted = max(count // FEWEST_PIECES, SMALLEST_BUFFER // width)
        if self.logits.device.type == "cpu":
            wanted = min(wanted, CPU_BUFFER // width)
        tokens = max(1, min(self.vocab.chunk, wanted))
        for start in range(0, count, tokens):
            yield slice(start, min(start + tokens, count))

    def scaled(self, piece: slice) -> tuple[Tensor, Tensor]:
        """Return logits / temperature [tokens, width] of student and teacher, copied to the working type."""
        student = self.logits[self.rows[piece], self.columns[piece]][:, : self.width]
        teacher = self.teacher[piece, : self.width]
        return student.to(self.dtype) / self.rules.temperature, teacher.to(self.dtype) / self.rules.temperature

    def log_probabilities(self, piece: slice, norms: Tensor) -> tuple[Tensor, Tensor]:
        """Return (s, t) [tokens, width]; `norms` [2, n] are those of `_log_normalisers`."""
        student, teacher = self.scaled(piece)
        return student.sub_(norms[0, piece, None]), teacher.sub_(norms[1, piece, None])


def _log_normalisers(view: _View) -> Tensor:
    """Return log sum exp of student and teacher over the whole vocabulary, [2, n]."""
    own = view.numbers(2).fill_(-math.inf)
    for piece in view.pieces():
        for which, values in enumerate(view.scaled(piece)):
            own[which, piece] = torch.logsumexp(values, -1)
    if view.vocab.group is None:
        return own
    top = own.clone()
    dist.all_reduce(top, op=dist.ReduceOp.MAX, group=view.vocab.group)
    mass = torch.where(own == -math.inf, 0, (own - top).exp())  # a rank may have no possible token
    dist.all_reduce(mass, group=view.vocab.group)
    return top + mass.log()


def _clipped_terms(s: Tensor, t: Tensor, rules: DivergenceRules) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (p_S, l_v, g_v), each of the shape of `s`, clipped; and how many entries of each token were cut off."""
    p, terms, slopes = _unclipped(s, t, rules.beta)
    if rules.entry_clip is None:
        return p, terms, slopes, torch.zeros_like(s[:, 0])
    cut = terms > rules.entry_clip
    return p, terms.clamp_(max=rules.entry_clip), slopes.masked_fill_(cut, 0), cut.sum(-1).to(s.dtype)


def _unclipped(s: Tensor, t: Tensor, beta: float) -> tuple[Tensor, Tensor, Tensor]:
    """Return (p_S, l_v, g_v): see the module's text."""
    p, q = s.exp(), t.exp()
    if beta == 0:
        return p, _times(q, t - s), q.neg_()
    if beta == 1:
        gap = s - t
        return p, _times(p, gap), _times(p, gap + 1)
    mixture = torch.logaddexp(t + math.log(beta), s + math.log1p(-beta))
    below = _times(p, s - mixture).mul_(1 - beta)
    return p, _times(q, t - mixture).mul_(beta).add_(below), below


def _times(probability: Tensor, difference: Tensor) -> Tensor:
    """Multiply them; the product is 0 where the probability is 0, whatever the difference is."""
    return torch.where(probability > 0, probability * difference, 0)


def _of_tokens(logs: tuple[Tensor, Tensor], tokens: Tensor, vocab: VocabShard) -> Tensor:
    """Return the log-probabilities of the tokens themselves, [2, tokens]; -inf where another rank has the token."""
    local = tokens - vocab.start
    mine = (local >= 0) & (local < logs[0].shape[-1])
    index = torch.where(mine, local, 0).unsqueeze(-1)
    found = torch.stack([log.gather(-1, index).squeeze(-1) for log in logs])
    return torch.where(mine, found, -math.inf)
