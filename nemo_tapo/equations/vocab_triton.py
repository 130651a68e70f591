"""Compute the sums of `vocab.py`, and their gradient, on a GPU: each in one kernel that goes over the logits once.

    terms     reads the logits, writes (m, Z, D, x_y) of each row           one read
    gradient  reads the logits and each row's m and Z, writes onehot - p    one read, one write

`vocab.py` is the reference: it says what the sums are, and combines those of several ranks. Here a program takes the
vocabulary of one row block by block. When a block raises the maximum from m to m', what was summed so far is brought to
it (d = m - m', S = Z D), and then the block's own terms are added:

    S <- (S + Z d) exp(d)        Z <- Z exp(d)

All of it in fp32, or in fp64 for fp64 logits. A logit of nan or inf makes Z nan, so that it is seen. What follows from
these sums (log p, entropy and the weight of a constructed token) is [b, s] numbers, 1/V of what is read here, and stays
in torch.

This module needs Triton and is imported by no other: `kernels.load_kernels` makes it from its text. No GPU has run it
yet. Its values were tested in Triton's interpreter, and it compiles for NVIDIA's compute capabilities 8.0 and 9.0;
`tools/bench_gpu.py` compares and times it on the GPU that it finds.
"""

import torch
import triton
import triton.language as tl
from torch import Tensor
from triton.language.extra import libdevice

# Columns in a step of a program, and its warps: 32 and 16 numbers a thread. Guesses: `tools/bench_gpu.py --sweep`.
TERMS_BLOCK, TERMS_WARPS = 8192, 8
GRADIENT_BLOCK, GRADIENT_WARPS = 4096, 8
SMALLEST_EXPONENT = tl.constexpr(-800.0)  # as in vocab.py


def terms(
    logits: Tensor, targets: Tensor, start: int, width: int, with_entropy: bool
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """Return (m, Z, D, x_y), each [b, s], as `_local_sums` and `_own_targets` of `vocab.py` do.

    `logits` [b, s, V_local], unit stride in the last dimension; its first `width` columns are the tokens from `start`
    on, the others are padding. `targets` [b, s], global ids. D stays 0 without entropy.
    """
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    top, mass, drift, chosen = torch.empty(4, *targets.shape, dtype=dtype, device=logits.device)
    if targets.numel():
        block = min(TERMS_BLOCK, triton.next_power_of_2(max(width, 1)))
        with torch.cuda.device_of(logits):
            _terms[(targets.numel(),)](
                logits, targets.contiguous(), top, mass, drift, chosen,
                logits.stride(0), logits.stride(1), targets.shape[1], start, width,
                BLOCK=block, WITH_ENTROPY=with_entropy, FLUSH=_flushes(logits), num_warps=TERMS_WARPS,
            )  # fmt: skip
    return top.masked_fill_(top == -torch.inf, torch.finfo(dtype).min / 4), mass, drift, chosen


def gradient(
    logits: Tensor, targets: Tensor, top: Tensor, mass: Tensor, slope: Tensor, start: int, width: int
) -> Tensor:
    """Return slope * d log p(target) / d logits, [b, s, V_local], contiguous, of the logits' type; 0 in the padding.

    `top` and `mass` [b, s] are m and Z of the whole vocabulary; `slope` [b, s]; the rest as in `terms`.
    """
    out = torch.empty(logits.shape, dtype=logits.dtype, device=logits.device)
    columns = logits.shape[-1]
    if out.numel():
        block = min(GRADIENT_BLOCK, triton.next_power_of_2(columns))
        blocks = triton.cdiv(columns, block)
        with torch.cuda.device_of(logits):
            _gradient[(targets.numel() * blocks,)](
                logits, targets.contiguous(), top.contiguous(), mass.contiguous(), slope.contiguous(), out,
                logits.stride(0), logits.stride(1), targets.shape[1], start, width, columns, blocks,
                BLOCK=block, FLUSH=_flushes(logits), num_warps=GRADIENT_WARPS,
            )  # fmt: skip
    return out


def _flushes(logits: Tensor) -> bool:
    """Return whether exp may give 0 for a subnormal number: a fifth fewer instructions on NVIDIA's GPUs."""
    return logits.is_cuda and logits.dtype != torch.float64 and torch.version.hip is None


@triton.jit
def _exp(x, FLUSH: tl.constexpr):
    return libdevice.fast_expf(x) if FLUSH else tl.exp(x)


@triton.jit
def _add_block(x, top, mass, drift, WITH_ENTROPY: tl.constexpr, FLUSH: tl.constexpr):
    """Add a block of logits to a row's m, Z and Z D (`drift`); a logit of -inf adds nothing."""
    higher = tl.maximum(top, tl.max(x, 0))
    origin = tl.where(higher == float("-inf"), 0.0, higher)  # -inf - -inf would be nan
    raised = tl.maximum(top - origin, SMALLEST_EXPONENT)
    shrink = tl.exp(raised)
    away = x - origin
    weights = _exp(away, FLUSH)
    if WITH_ENTROPY:
        drift = (drift + mass * raised) * shrink + tl.sum(weights * tl.maximum(away, SMALLEST_EXPONENT), 0)
    mass = mass * shrink + tl.sum(weights, 0)
    return higher, mass, drift


@triton.jit(do_not_specialize=["length", "start"])
def _terms(
    logits, targets, top_out, mass_out, drift_out, chosen_out,
    row_stride, token_stride, length, start, width,
    BLOCK: tl.constexpr, WITH_ENTROPY: tl.constexpr, FLUSH: tl.constexpr,
):  # fmt: skip
    """Sum over one row: program i has the token i % length of row i // length."""
    kind = top_out.dtype.element_ty
    place = tl.program_id(0)
    x = logits + (place // length).to(tl.int64) * row_stride + (place % length).to(tl.int64) * token_stride
    column = tl.arange(0, BLOCK)
    top = tl.full((), float("-inf"), kind)
    mass = tl.full((), 0.0, kind)
    drift = tl.full((), 0.0, kind)
    whole = width // BLOCK * BLOCK
    for first in range(0, whole, BLOCK):
        top, mass, drift = _add_block(tl.load(x + first + column).to(kind), top, mass, drift, WITH_ENTROPY, FLUSH)
    if whole < width:
        last = tl.load(x + whole + column, mask=whole + column < width, other=float("-inf"))
        top, mass, drift = _add_block(last.to(kind), top, mass, drift, WITH_ENTROPY, FLUSH)
    local = tl.load(targets + place) - start
    mine = (local >= 0) & (local < width)
    chosen = tl.load(x + tl.where(mine, local, 0), mask=mine, other=float("-inf"))
    tl.store(top_out + place, top)
    tl.store(mass_out + place, mass)
    tl.store(drift_out + place, drift / tl.where(mass == 0, 1.0, mass))
    tl.store(chosen_out + place, chosen.to(kind))


@triton.jit(do_not_specialize=["length", "start"])
def _gradient(
    logits, targets, top, mass, slope, out,
    row_stride, token_stride, length, start, width, columns, blocks,
    BLOCK: tl.constexpr, FLUSH: tl.constexpr,
):  # fmt: skip
    """Write one block of one row: program i has the block i % blocks of the token i // blocks."""
    kind = top.dtype.element_ty
    place = tl.program_id(0) // blocks
    column = tl.program_id(0) % blocks * BLOCK + tl.arange(0, BLOCK)
    x = logits + (place // length).to(tl.int64) * row_stride + (place % length).to(tl.int64) * token_stride
    real = column < width
    local = tl.load(targets + place) - start
    local = tl.where((local >= 0) & (local < width), local, -1).to(tl.int32)
    steep = tl.load(slope + place)
    seen = tl.load(x + column, mask=real, other=float("-inf")).to(kind)
    weights = _exp(seen - tl.load(top + place), FLUSH)
    result = tl.where(column == local, steep, 0.0) - weights * (steep / tl.load(mass + place))
    result = tl.where(real, result, 0.0)
    tl.store(out + place.to(tl.int64) * columns + column, result.to(out.dtype.element_ty), mask=column < columns)
