"""Compute log-probability and entropy of the next token over a vocabulary that may be split over ranks.

Eq. 7 of arXiv 2606.18844 needs log p(y_t) and the exact entropy H_t of the distribution that y_t came from. Both
fall out of one pass over the logits x: with m = max x, Z = sum exp(x - m) and D = sum p (x - m),

    log p(y) = x_y - m - log Z          H = log Z - D

Sums relative to m keep their precision when all logits share a large offset. Under tensor parallelism each rank
has its own m, Z and D; two all-reduces over [b, s] numbers bring them to the common maximum. Nothing of the
logits' size is made besides the gradient: the pass goes over pieces, and softmax is the one kernel in it (its exp is
twice as fast on a CPU as torch.exp); Z is 1 / max p, since the largest term of Z is exp(0).

On a GPU two Triton kernels (`vocab_triton.py`) take the place of the pieces where `kernels.find_kernels` has them: one
reads the logits for the sums, one reads them again for the gradient. What is here is their reference: before a process
uses them for the first time, it compares both on a few rows, and goes on without them if they differ.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from dataclasses import dataclass
from types import ModuleType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tapo.equations.kernels import find_kernels

# Sizes of a working buffer (there are two), in numbers. On a CPU it should stay in the cache between the passes over
# it; below SMALLEST_BUFFER its memory does not matter, and more, smaller steps would only cost time. On a GPU a piece
# costs the launch of its kernels, so that the chunk alone bounds it.
CPU_BUFFER = 1 << 18
SMALLEST_BUFFER = 1 << 15
BUFFER_SHARE = 28  # at most this part of the logits' bytes: 7% in both
SMALLEST_EXPONENT = -800.0  # exp of it is 0 even in fp64: keeps -inf out of 0 * -inf


@dataclass(frozen=True)
class VocabShard:
    """The columns [start, start + V_local) of the vocabulary, as this rank's logits hold them.

    Columns from `size` on are padding: they have probability 0 and gradient 0, whatever they hold.
    """

    start: int
    size: int  # the true vocabulary, padding excluded
    chunk: int = 1024  # most tokens worked on at once
    group: dist.ProcessGroup | None = None  # the ranks that share the vocabulary; None: this one has all of it

    def columns(self, width: int) -> int:
        """Return how many of this rank's `width` columns are real tokens, not padding.

        >>> VocabShard(start=4, size=6).columns(4)
        2
        """
        return max(0, min(width, self.size - self.start))


def token_logprobs_and_entropy(
    logits: Tensor, targets: Tensor, vocab: VocabShard, with_entropy: bool = True
) -> tuple[Tensor, Tensor | None]:
    """Return log p(target) and entropy of every position, in nats: the two terms of s_t in Eq. 7 of arXiv 2606.18844.

    `logits` [b, s, V_local] of any float type and any strides; `targets` [b, s] int64, global token ids. Returns
    (logp [b, s], entropy [b, s] or None), fp32 (fp64 for fp64 logits), equal on all ranks of `vocab.group`.

    The log-probability is differentiable, the entropy is not: in TAPO it is part of a weight. A logit of -inf is a
    token of probability 0 and adds nothing to the entropy; as a target its log-probability is -inf. A target that
    is no token of the vocabulary has log-probability -inf as well. A position without any finite logit gives nan.

    >>> logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    >>> token_logprobs_and_entropy(logits, torch.tensor([[0]]), VocabShard(0, 3))  # ln 0.5; 1.5 ln 2
    (tensor([[-0.6931]]), tensor([[1.0397]]))
    """
    if logits.ndim != 3 or targets.shape != logits.shape[:2]:
        raise ValueError(
            f"logits {tuple(logits.shape)} and targets {tuple(targets.shape)} are not [b, s, V] and [b, s]."
        )
    if logits.stride(0) < logits.stride(1):  # Megatron's [s, b, V] seen as [b, s, V]: go through memory in its order
        across, entropy = token_logprobs_and_entropy(logits.transpose(0, 1), targets.t(), vocab, with_entropy)
        return across.t(), None if entropy is None else entropy.t()
    logp, entropy = _Scores.apply(logits, targets, vocab, with_entropy)  # type: ignore[no-untyped-call]
    return logp, entropy if with_entropy else None


class _Scores(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, logits: Tensor, targets: Tensor, vocab: VocabShard, with_entropy: bool
    ) -> tuple[Tensor, Tensor]:
        """Return (logp, entropy); entropy is empty when not asked for."""
        ctx.kernels, share = choose_kernels(logits), None
        if ctx.kernels is None:
            top, mass, drift = _local_sums(logits, vocab, with_entropy)
            chosen = _own_targets(logits, targets, vocab, top.dtype)
        else:
            width = vocab.columns(logits.shape[-1])
            top, mass, drift, chosen = ctx.kernels.terms(logits, targets, vocab.start, width, with_entropy)
        if vocab.group is not None:
            top, mass, drift, chosen, share = _combine(top, mass, drift, chosen, vocab.group)
        log_mass = mass.log()
        logp = chosen - top - log_mass
        entropy = log_mass - drift if with_entropy else torch.empty(0)
        ctx.save_for_backward(logits, targets, top, mass, share)
        ctx.vocab = vocab
        ctx.mark_non_differentiable(entropy)
        ctx.set_materialize_grads(False)
        return logp, entropy

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        """Return the gradient of the logits, slope * (onehot(target) - p)."""
        slope = gradients[0]
        if slope is None or not ctx.needs_input_grad[0]:
            return None, None, None, None
        logits, targets, top, mass, share = ctx.saved_tensors
        vocab: VocabShard = ctx.vocab
        if ctx.kernels is None:
            return _gradient(logits, targets, share, slope, vocab), None, None, None
        width = vocab.columns(logits.shape[-1])
        return ctx.kernels.gradient(logits, targets, top, mass, slope, vocab.start, width), None, None, None


def _gradient(logits: Tensor, targets: Tensor, share: Tensor | None, slope: Tensor, vocab: VocabShard) -> Tensor:
    """Write slope * d logp / d logits piece by piece into a tensor [b, s, V_local] and return it.

    `share` [b, s] is this rank's part of the whole vocabulary's Z; None: it has all of it.
    """
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    width = vocab.columns(logits.shape[-1])
    out[..., width:] = 0
    if not width:
        return out
    index, mine = _local_index(targets, vocab, width)
    onehot = torch.where(mine, slope, 0).unsqueeze(-1)
    # p over all ranks' columns is the local softmax times this rank's share of the mass; without any: 0 * nan
    scale = (-slope if share is None else torch.where(share > 0, -slope * share, 0)).unsqueeze(-1)
    # on a GPU the answer would have to wait for all that is queued there
    hollow = share is not None and (share.is_cuda or bool((share == 0).any()))
    work = _Workspace(slope.dtype, logits.device)
    for piece in _pieces(logits, vocab.chunk):
        result = out[piece][..., :width]
        p = work.softmax(logits[piece][..., :width], into=result)
        if hollow and share is not None:
            p.masked_fill_((share[piece] == 0).unsqueeze(-1), 0)
        p.mul_(scale[piece]).scatter_add_(-1, index[piece].unsqueeze(-1), onehot[piece])
        if p is not result:
            result.copy_(p)
    return out


COMPARED_ROWS, COMPARED_COLUMNS = 8, 20_017  # several blocks of a kernel and a rest; the last columns are padding
LARGEST_DIFFERENCE = 1e-3  # of log p and entropy, nats; of the gradient, beside its type's rounding
_agreeing: dict[tuple[torch.dtype, str], bool] = {}  # found by this process


def choose_kernels(logits: Tensor) -> ModuleType | None:
    """Return the GPU kernels for these logits, if there are some and they agree with this file on this device."""
    kernels = find_kernels(logits)
    if kernels is None:
        return None
    key = (logits.dtype, str(logits.device))
    if key not in _agreeing:
        difference = compare_kernels(kernels, logits.dtype, logits.device)
        _agreeing[key] = difference <= LARGEST_DIFFERENCE  # nan is not
        if not _agreeing[key]:
            warnings.warn(
                f"the Triton kernels of the log-probability pass are off by {difference:.3g} on {logits.device}, so "
                f"they are not used; tools/bench_gpu.py says more.",
                stacklevel=2,
            )
    return kernels if _agreeing[key] else None


def compare_kernels(kernels: ModuleType, dtype: torch.dtype, device: torch.device) -> float:
    """Return the largest difference between the kernels and the code of this file, on random logits of one type.

    Of the gradient, what its type rounds away is not counted.
    """
    draw = torch.Generator().manual_seed(0)  # leaves the process's own random numbers alone
    shape, width = (2, COMPARED_ROWS // 2), COMPARED_COLUMNS - 17
    logits = 4 * torch.randn(*shape, COMPARED_COLUMNS, generator=draw)
    logits[0, 0, :100], logits[1, 0] = -torch.inf, logits[1, 0] + 1000
    logits = logits.to(device, dtype)
    targets = torch.randint(width, shape, generator=draw).to(device)
    vocab = VocabShard(0, width)
    top, mass, drift = _local_sums(logits, vocab, True)
    slope = torch.ones_like(top)
    chosen = _own_targets(logits, targets, vocab, top.dtype)
    found_top, found_mass, found_drift, found_chosen = kernels.terms(logits, targets, 0, width, True)
    gradient = _gradient(logits, targets, None, slope, vocab)
    found = kernels.gradient(logits, targets, found_top, found_mass, slope, 0, width)
    differences = (
        (chosen - top - mass.log()) - (found_chosen - found_top - found_mass.log()),
        (mass.log() - drift) - (found_mass.log() - found_drift),
        ((gradient.to(top.dtype) - found.to(top.dtype)).abs() - torch.finfo(dtype).eps).clamp_min(0),
    )
    return max(float(difference.abs().max()) for difference in differences)


class _Workspace:
    """Two buffers that are used for one piece after the other; a piece is as large as the last one, or smaller."""

    def __init__(self, dtype: torch.dtype, device: torch.device) -> None:
        self._dtype, self._device = dtype, device
        self._buffers = [torch.empty(0, dtype=dtype, device=device)] * 2

    def _buffer(self, which: int, shape: torch.Size) -> Tensor:
        count = shape.numel()
        if self._buffers[which].numel() < count:
            self._buffers[which] = torch.empty(count, dtype=self._dtype, device=self._device)
        return self._buffers[which][:count].view(shape)

    def widened(self, x: Tensor) -> Tensor:
        """Return `x` itself if it is contiguous and of the working type, else a copy that is."""
        if x.dtype == self._dtype and x.is_contiguous():
            return x
        return self._buffer(0, x.shape).copy_(x)

    def softmax(self, x: Tensor, into: Tensor | None = None) -> Tensor:
        """Take the softmax over the last dimension: into `into` where that can hold it directly, else into a buffer."""
        fits = into is not None and into.dtype == self._dtype and into.is_contiguous()
        return torch.softmax(self.widened(x), -1, out=into if fits else self._buffer(1, x.shape))

    def deviation(self, x: Tensor, top: Tensor) -> Tensor:
        """Write x - top to a buffer, with -inf replaced by a number whose exp is 0."""
        out = self._buffer(0, x.shape)  # may be x itself, widened
        return torch.sub(x, top.unsqueeze(-1), out=out).clamp_min_(SMALLEST_EXPONENT)


def _compute_dtype(logits: Tensor) -> torch.dtype:
    return torch.float64 if logits.dtype == torch.float64 else torch.float32


def _pieces(logits: Tensor, chunk: int) -> Iterator[tuple[slice, slice]]:
    """Cut [b, s] into rectangles of bounded size: whole rows, or parts of one row.

    Rectangles, because a view of them exists for any strides: `logits[:, :-1]` is never copied.
    """
    rows, length, width = logits.shape
    wanted = chunk
    if logits.device.type == "cpu":
        share = rows * length * logits.element_size() // (BUFFER_SHARE * _compute_dtype(logits).itemsize)
        wanted = min(max(share, SMALLEST_BUFFER // max(width, 1)), CPU_BUFFER // max(width, 1))
    tokens = max(1, min(chunk, wanted))
    if length <= tokens:
        step = tokens // max(length, 1)
        for start in range(0, rows if length else 0, step):
            yield slice(start, start + step), slice(0, length)
        return
    for row in range(rows):
        for start in range(0, length, tokens):
            yield slice(row, row + 1), slice(start, start + tokens)


def _local_sums(logits: Tensor, vocab: VocabShard, with_entropy: bool) -> tuple[Tensor, Tensor, Tensor]:
    """Return (m, Z, D) over this rank's columns, each [b, s]; see the module's text. D stays 0 without entropy.

    Without a finite logit Z and D are 0 and m is a number smaller than any logit.
    """
    dtype = _compute_dtype(logits)
    top = torch.full(logits.shape[:2], -torch.inf, dtype=dtype, device=logits.device)
    mass, drift = torch.zeros_like(top), torch.zeros_like(top)
    width = vocab.columns(logits.shape[-1])
    work = _Workspace(dtype, logits.device)
    for piece in _pieces(logits, vocab.chunk) if width else ():
        x = work.widened(logits[piece][..., :width])
        p = work.softmax(x)
        top[piece] = x.amax(-1)
        mass[piece] = p.amax(-1)
        if with_entropy:
            drift[piece] = p.mul_(work.deviation(x, top[piece])).sum(-1)
    empty = top == -torch.inf
    mass = torch.where(empty, 0, mass.reciprocal_())
    return top.masked_fill_(empty, torch.finfo(dtype).min / 4), mass, drift.masked_fill_(empty, 0)


def _local_index(targets: Tensor, vocab: VocabShard, width: int) -> tuple[Tensor, Tensor]:
    """Return the column of each target in this rank's logits (0 if it is on another rank), and a mask of those here."""
    local = targets - vocab.start
    mine = (local >= 0) & (local < width)
    return torch.where(mine, local, 0), mine


def _own_targets(logits: Tensor, targets: Tensor, vocab: VocabShard, dtype: torch.dtype) -> Tensor:
    """Return the logit of each target, [b, s]; -inf where another rank has it, or no rank."""
    width = vocab.columns(logits.shape[-1])
    if not width:
        return torch.full(targets.shape, -torch.inf, dtype=dtype, device=logits.device)
    index, mine = _local_index(targets, vocab, width)
    found = logits.gather(-1, index.unsqueeze(-1)).squeeze(-1).to(dtype)
    return torch.where(mine, found, -torch.inf)


def _combine(
    top: Tensor, mass: Tensor, drift: Tensor, chosen: Tensor, group: dist.ProcessGroup
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Combine the ranks' (m, Z, D, x_y) to those of the whole vocabulary; return them and this rank's share of Z."""
    highest = torch.stack([top, chosen])  # at most one rank has the target: its logit is the largest of all
    dist.all_reduce(highest, op=dist.ReduceOp.MAX, group=group)
    common = highest[0]
    shift = (top - common).clamp_min(SMALLEST_EXPONENT)
    own = mass * shift.exp()
    sums = torch.stack([own, own * (drift + shift)])
    dist.all_reduce(sums, group=group)
    return common, sums[0], sums[1] / sums[0], highest[1], own / sums[0]
