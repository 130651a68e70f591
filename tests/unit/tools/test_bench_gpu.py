"""tools/bench_gpu.py where there is no GPU; and the pieces that a GPU would get."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

from nemo_tapo.equations.vocab import _pieces

ROOT = Path(__file__).parents[3]


@pytest.mark.skipif(torch.cuda.is_available(), reason="a CUDA device is here: the bench would run")
def test_it_says_that_it_needs_a_gpu() -> None:
    command = [sys.executable, str(ROOT / "tools" / "bench_gpu.py")]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=120)
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr == "bench_gpu.py needs a CUDA device, and torch finds none here.\n"


def test_on_a_device_that_is_no_cpu_the_chunk_alone_bounds_a_piece() -> None:
    """4,096 tokens in chunks of 1,024 are four pieces; on a CPU the cache asks for many more."""
    logits = torch.empty(1, 4096, 151936, device="meta", dtype=torch.bfloat16)
    assert [piece[1] for piece in _pieces(logits, 1024)] == [slice(i, i + 1024) for i in range(0, 4096, 1024)]
