"""`nemo-tapo sweep` with the real Ray, Megatron-core and vLLM: two rows; killed in the middle, continued."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
SWEEP = """
title: two rows
paper: table1
rows:
  - {name: coldstart, label: Cold-start, train: false}
  - {name: tapo, label: Cold-start + TAPO}
"""
SMALLEST = [
    f"model.path={ROOT / 'assets' / 'tiny-coldstart'}", "steps=2", "rollout.queries_per_step=6", "optimizer.lr=3e-4",
    "evaluation.problems=16", "evaluation.runs=1", "checkpoint.every=1", "checkpoint.min_free_gib=0",
    "local.dp=1",
]  # fmt: skip
RUNS = ["coldstart/seed-0", "tapo/seed-0"]


def start(folder: Path) -> subprocess.Popen[str]:
    sweep = folder / "two.yaml"
    sweep.write_text(SWEEP)
    words = ["sweep", str(sweep), f"output={folder / 'out'}", *SMALLEST]
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_tapo.cli", *words], cwd=ROOT, env=environment, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
    )  # fmt: skip


def kill_family(process: subprocess.Popen[str]) -> None:
    """The sweep and its run, as when the machine goes down."""
    family = [*psutil.Process(process.pid).children(recursive=True), psutil.Process(process.pid)]
    for each in family:
        if each.is_running():
            each.send_signal(signal.SIGKILL)
    psutil.wait_procs(family, timeout=20)
    process.wait()


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 200
    while time.monotonic() < deadline and process.poll() is None:
        if path.is_file() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.02)
    pytest.fail(f"{path} has not {lines} lines")


def test_killed_in_the_middle_and_continued(tmp_path: Path) -> None:
    out = tmp_path / "out"
    first = start(tmp_path)
    wait_for(out / "tapo" / "seed-0" / "metrics.jsonl", 1, first)
    kill_family(first)
    evaluated_before = (out / "coldstart" / "seed-0" / "evaluation.json").stat().st_mtime_ns
    second = start(tmp_path)
    printed, _ = second.communicate(timeout=400)
    assert second.returncode == 0, printed[-4000:]
    assert "2 of 2 runs are done" in printed
    assert "tapo/seed-0: goes on where it was stopped" in printed
    assert (out / "coldstart" / "seed-0" / "evaluation.json").stat().st_mtime_ns == evaluated_before
    for run in RUNS:
        [(name, result)] = json.loads((out / run / "evaluation.json").read_text()).items()
        assert name == ("after" if run.startswith("tapo") else "before")
        assert 0 <= result["benchmarks"]["arithmetic"]["pass@1"] <= 1
    steps = [json.loads(line)["step"] for line in (out / "tapo" / "seed-0" / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2]
