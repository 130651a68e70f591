"""Measure the log-probability and entropy pass on a GPU: time, extra peak memory, share of the copy bandwidth.

    python tools/bench_gpu.py [--tokens 4096] [--vocab 151936] [--dtype bfloat16] [--chunk 1024] [--repeats 20]
                              [--sweep]

It needs a CUDA device and takes a few minutes; without one it says so and ends with exit code 2. Read it as follows:

- The pass is bound by memory. It has to read the logits once, and with gradient also to write one gradient of their
  size. `floor` is the time of moving that many bytes by a plain copy on the same device, and `share of copy` is
  floor / time: 100% would be as fast as copying. The goal is 85% for `fused`.
- `fused` is the Triton kernels, `one_pass` the same sums in pieces (their reference), `plain` log_softmax + gather +
  entropy in fp32, as most trainers have it.
- Extra peak memory is in multiples of the logits' bytes; with gradient the gradient itself is 1.
- First it compares `fused` and `one_pass` with float64 on a few tokens. Exit code 1: they differ too much.
- `--sweep` times the kernels with other blocks and numbers of warps: the constants of equations/vocab_triton.py.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from importlib.util import find_spec

import torch
from torch import Tensor

from nemo_tapo.equations.kernels import SWITCH, load_kernels
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy

WARM_UP = 3
COMPARED_TOKENS = 64
LARGEST_DIFFERENCE = 1e-4  # nats; the gradient may differ by its type's rounding as well
BLOCKS, WARPS = (1024, 2048, 4096, 8192, 16384), (4, 8, 16)
Scores = tuple[Tensor, Tensor]
Scored = Callable[..., Scores]


@dataclass(frozen=True)
class Measured:
    """Medians of one implementation."""

    milliseconds: float
    extra: float  # peak memory beyond the logits, in multiples of their bytes


def fused(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Scores:
    """Return log p and entropy by the kernels where they can be used: on a GPU, with Triton."""
    os.environ[SWITCH] = "1"
    return _scores(logits, targets, chunk)


def one_pass(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Scores:
    """Return log p and entropy by this package's pass in pieces."""
    os.environ[SWITCH] = "0"
    return _scores(logits, targets, chunk)


def _scores(logits: Tensor, targets: Tensor, chunk: int) -> Scores:
    logp, entropy = token_logprobs_and_entropy(logits, targets, VocabShard(0, logits.shape[-1], chunk))
    assert entropy is not None
    return logp, entropy


def plain(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Scores:
    """Return log p and entropy by log_softmax + gather, in fp32, or in fp64 for fp64 logits."""
    logp = torch.log_softmax(logits if logits.dtype == torch.float64 else logits.float(), -1)
    entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
    return logp.gather(-1, targets[..., None])[..., 0], entropy


def differences(which: Scored, logits: Tensor, targets: Tensor) -> list[float]:
    """Return the largest absolute difference from float64: of log p, of the entropy, of the gradient of sum log p."""

    def run(function: Scored, leaf: Tensor) -> list[Tensor]:
        leaf = leaf.detach().requires_grad_()
        logp, entropy = function(leaf, targets)
        logp.sum().backward()
        assert leaf.grad is not None
        return [logp.detach(), entropy.detach(), leaf.grad]

    pairs = zip(run(which, logits), run(plain, logits.double()), strict=True)
    return [float((ours.double() - exact).abs().max()) for ours, exact in pairs]


def time_ms(run: Callable[[], object], repeats: int) -> float:
    """Return the median milliseconds of `run` by the device's own clock."""
    seen = []
    for i in range(WARM_UP + repeats):
        begin, end = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        begin.record()
        run()
        end.record()
        end.synchronize()
        if i >= WARM_UP:
            seen.append(begin.elapsed_time(end))
    return statistics.median(seen)


def measure(which: Scored, logits: Tensor, targets: Tensor, chunk: int, repeats: int) -> Measured:
    """Measure one implementation, forward alone or with its gradient if the logits ask for one."""

    def run() -> None:
        logits.grad = None
        logp, _ = which(logits, targets, chunk)
        if logits.requires_grad:
            logp.sum().backward()

    run()
    logits.grad = None
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    extra = (torch.cuda.max_memory_allocated() - before) / (logits.numel() * logits.element_size())
    return Measured(time_ms(run, repeats), extra)


def copy_bytes_per_ms(logits: Tensor, repeats: int) -> float:
    """Return the bytes that a plain copy of the logits moves in a millisecond, reads and writes together."""
    other = torch.empty_like(logits)
    with torch.no_grad():
        took = time_ms(lambda: other.copy_(logits), repeats)
    return 2 * logits.numel() * logits.element_size() / took


def print_differences(those: Sequence[Scored], logits: Tensor, targets: Tensor) -> bool:
    """Print how far each implementation is from float64; return whether all are near."""
    print("| largest difference from float64 | log p | entropy | gradient |\n| --- | --- | --- | --- |")
    rounding = torch.finfo(logits.dtype).eps
    near = True
    for which in those:
        logp, entropy, gradient = differences(which, logits, targets)
        print(f"| {which.__name__} | {logp:.1e} | {entropy:.1e} | {gradient:.1e} |")
        limits = ((logp, LARGEST_DIFFERENCE), (entropy, LARGEST_DIFFERENCE), (gradient, LARGEST_DIFFERENCE + rounding))
        near &= all(seen <= limit for seen, limit in limits)  # nan is not
    print()
    return near


def sweep(logits: Tensor, targets: Tensor, speed: float, repeats: int) -> None:
    """Print the kernels' share of the copy bandwidth by block and warps; the logits ask for a gradient."""
    kernels, size = load_kernels(), logits.numel() * logits.element_size()
    leaf, (rows, width) = logits.detach(), (targets.numel(), logits.shape[-1])
    top, mass, _, _ = kernels.terms(leaf, targets, 0, width, True)
    slope = torch.ones(targets.shape, device=logits.device)
    runs: dict[str, tuple[Callable[[], object], int]] = {
        "TERMS": (lambda: kernels.terms(leaf, targets, 0, width, True), size),
        "GRADIENT": (lambda: kernels.gradient(leaf, targets, top, mass, slope, 0, width), 2 * size),
    }
    print(f"\n| {rows} tokens, share of copy | " + " | ".join(f"{w} warps" for w in WARPS) + " |")
    print("| --- |" + " --- |" * len(WARPS))
    for name, (run, moved) in runs.items():
        before = getattr(kernels, f"{name}_BLOCK"), getattr(kernels, f"{name}_WARPS")
        for block in BLOCKS:
            shares = []
            for warps in WARPS:
                setattr(kernels, f"{name}_BLOCK", block)
                setattr(kernels, f"{name}_WARPS", warps)
                shares.append(f"{moved / speed / time_ms(run, repeats):.0%}")
            print(f"| {name}, block {block} | " + " | ".join(shares) + " |")
        setattr(kernels, f"{name}_BLOCK", before[0])
        setattr(kernels, f"{name}_WARPS", before[1])


def main() -> int:
    """Print Markdown tables of the implementations: how exact they are, and how fast, forward and with gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 4096), ("vocab", 151936), ("chunk", 1024), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    parser.add_argument("--sweep", action="store_true", help="time the kernels with other blocks and numbers of warps")
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py needs a CUDA device, and torch finds none here.", file=sys.stderr)
        return 2
    has_triton = find_spec("triton") is not None
    if not has_triton:
        print("Triton is not installed, so there are no rows of the fused kernels: pip install triton", file=sys.stderr)
    torch.manual_seed(0)
    shape = (1, given.tokens, given.vocab)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {given.tokens} x {given.vocab:,} {given.dtype}\n"
    )
    logits = torch.empty(shape, dtype=getattr(torch, given.dtype), device="cuda").normal_()
    targets = torch.randint(given.vocab, shape[:2], device="cuda")
    ours: list[Scored] = [fused, one_pass] if has_triton else [one_pass]
    near = print_differences(ours, logits[:, :COMPARED_TOKENS], targets[:, :COMPARED_TOKENS])
    speed = copy_bytes_per_ms(logits, given.repeats)
    print("| | ms | floor, ms | share of copy | extra peak memory |\n| --- | --- | --- | --- | --- |")
    for gradient in (False, True):
        logits.requires_grad_(gradient)
        # the gradient's pass reads the logits again and writes as much
        moved = logits.numel() * logits.element_size() * (3 if gradient else 1)
        for which in (*ours, plain):
            seen = measure(which, logits, targets, given.chunk, given.repeats)
            name = f"{which.__name__}, {'with gradient' if gradient else 'forward'}"
            floor, took = moved / speed, seen.milliseconds
            print(f"| {name} | {took:.2f} | {floor:.2f} | {floor / took:.0%} | {seen.extra:.2f} |")
    logits.grad = None
    if given.sweep and has_triton:
        sweep(logits, targets, speed, given.repeats)
    if not near:
        print("The differences from float64 are too large: see the first table.", file=sys.stderr)
    return 0 if near else 1


if __name__ == "__main__":
    sys.exit(main())
