"""Ranks as processes of their own, for tests: started together, awaited together, gone afterwards."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parents[2]


def run_ranks(module: str, ranks: int, *arguments: str | Path, timeout: float = 120) -> None:
    """Runs `python -m <module> <rank> <ranks> <arguments>` for every rank and waits for all of them.

    When one fails, or time runs out, the others are ended, and AssertionError shows what the first to fail wrote.
    """
    environment = os.environ | {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE", "PYTHONWARNINGS": "ignore"}
    processes = [
        subprocess.Popen(
            [sys.executable, "-m", module, str(rank), str(ranks), *map(str, arguments)],
            cwd=ROOT, env=environment, text=True, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )
        for rank in range(ranks)
    ]  # fmt: skip
    try:
        deadline = time.monotonic() + timeout
        while any(p.poll() is None for p in processes) and not any(p.poll() for p in processes):
            assert time.monotonic() < deadline, f"{module}: ranks still ran after {timeout} s"
            time.sleep(0.05)
    finally:
        failed = [p for p in processes if p.poll()]
        for process in processes:
            process.kill()
        said = {process: process.communicate()[0] for process in processes}
    assert not failed, f"{module}: rank {processes.index(failed[0])} failed:\n{said[failed[0]][-4000:]}"
