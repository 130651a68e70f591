"""Measure the log-probability and entropy pass on a GPU: time, extra peak memory, share of the copy bandwidth.

    python tools/bench_gpu.py [--tokens 4096] [--vocab 151936] [--dtype bfloat16] [--chunk 1024] [--repeats 20]

It needs a CUDA device and takes a few minutes; without one it says so and ends with exit code 2. Read it as follows:

- The pass is bound by memory. It has to read the logits once, and with gradient also to write one gradient of their
  size. `floor` is the time of moving that many bytes by a plain copy on the same device, and `share of copy` is
  floor / time: 100% would be as fast as copying.
- `plain` is log_softmax + gather + entropy in fp32, as most trainers have it.
- Extra peak memory is in multiples of the logits' bytes; with gradient the gradient itself is 1.
"""

from __future__ import annotations

import argparse
import statistics
import sys
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy

WARM_UP = 3


@dataclass(frozen=True)
class Measured:
    """Medians of one implementation."""

    milliseconds: float
    extra: float  # peak memory beyond the logits, in multiples of their bytes


def one_pass(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Return log p by this package's pass, which computes the entropy too."""
    return token_logprobs_and_entropy(logits, targets, VocabShard(0, logits.shape[-1], chunk))[0]


def plain(logits: Tensor, targets: Tensor, chunk: int = 1024) -> Tensor:
    """Return log p by log_softmax + gather, and compute the entropy as well."""
    logp = torch.log_softmax(logits.float(), -1)
    _entropy = -(logp.detach().exp() * logp.detach()).sum(-1)
    return logp.gather(-1, targets[..., None])[..., 0]


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


def measure(which: Callable[..., Tensor], logits: Tensor, targets: Tensor, chunk: int, repeats: int) -> Measured:
    """Measure one implementation, forward alone or with its gradient if the logits ask for one."""

    def run() -> None:
        logits.grad = None
        out = which(logits, targets, chunk)
        if logits.requires_grad:
            out.sum().backward()

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


def main() -> int:
    """Print a Markdown table of both implementations, forward and with gradient."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    for name, default in (("tokens", 4096), ("vocab", 151936), ("chunk", 1024), ("repeats", 20)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--dtype", default="bfloat16", choices=("bfloat16", "float16", "float32"))
    given = parser.parse_args()
    if not torch.cuda.is_available():
        print("bench_gpu.py needs a CUDA device, and torch finds none here.", file=sys.stderr)
        return 2
    torch.manual_seed(0)
    shape = (1, given.tokens, given.vocab)
    print(
        f"{torch.cuda.get_device_name()}, torch {torch.__version__}; {given.tokens} x {given.vocab:,} {given.dtype}\n"
    )
    print("| | ms | floor, ms | share of copy | extra peak memory |\n| --- | --- | --- | --- | --- |")
    for gradient in (False, True):
        logits = torch.empty(shape, dtype=getattr(torch, given.dtype), device="cuda").normal_()
        speed = copy_bytes_per_ms(logits, given.repeats)
        logits.requires_grad_(gradient)
        targets = torch.randint(given.vocab, shape[:2], device="cuda")
        # the gradient's pass reads the logits again and writes as much
        moved = logits.numel() * logits.element_size() * (3 if gradient else 1)
        for which in (one_pass, plain):
            seen = measure(which, logits, targets, given.chunk, given.repeats)
            name = f"{which.__name__}, {'with gradient' if gradient else 'forward'}"
            floor, took = moved / speed, seen.milliseconds
            print(f"| {name} | {took:.2f} | {floor:.2f} | {floor / took:.0%} | {seen.extra:.2f} |")
        del logits
    return 0


if __name__ == "__main__":
    sys.exit(main())
