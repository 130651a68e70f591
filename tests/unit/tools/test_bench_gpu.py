"""tools/bench_gpu.py where there is no GPU: what it says, what it compares, and the pieces that a GPU would get."""

from __future__ import annotations

import importlib
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.equations.kernels import SWITCH
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


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Any:
    monkeypatch.syspath_prepend(str(ROOT / "tools"))
    monkeypatch.setenv(SWITCH, "1")  # so that it is put back
    return importlib.import_module("bench_gpu")


def test_it_tells_a_right_implementation_from_a_wrong_one(bench: Any, capsys: pytest.CaptureFixture[str]) -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(1, 5, 60), torch.randint(0, 60, (1, 5))

    def wrong(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logp, entropy = bench.one_pass(logits, targets)
        return logp, entropy + 1e-3

    def undefined(logits: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        logp, entropy = bench.one_pass(logits, targets)
        return logp * torch.nan, entropy

    assert max(bench.differences(bench.one_pass, logits, targets)) < 1e-6
    assert bench.differences(wrong, logits, targets)[1] == pytest.approx(1e-3, abs=1e-5)
    assert bench.print_differences([bench.fused, bench.one_pass], logits, targets)
    assert not bench.print_differences([wrong, bench.one_pass], logits, targets)
    assert not bench.print_differences([undefined], logits, targets)
    assert "| wrong | " in capsys.readouterr().out
