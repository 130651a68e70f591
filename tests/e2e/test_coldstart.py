"""`nemo-tapo coldstart` with the real vLLM, Ray and Megatron-core: the model writes; kill -9, and the same bytes."""

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

pytestmark = pytest.mark.e2e
ROOT = Path(__file__).parents[2]
FILES = ("data.jsonl", "examples.jsonl", "statistics.json")


def command(folder: Path) -> list[str]:
    config = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
    return [
        sys.executable, "-m", "nemo_tapo.cli", "coldstart", "--config", str(config),
        f"model.path={ROOT / 'assets' / 'tiny-coldstart'}", "coldstart.queries=160", "coldstart.samples_per_query=4",
        "coldstart.writer=model", "coldstart.corrections_per_query=1", "coldstart.sft_examples=40",
        "coldstart.ift_examples=40", "coldstart.epochs=1", "local.dp=1", f"output={folder}",
    ]  # fmt: skip


def environment() -> dict[str, str]:
    return {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}


def run(folder: Path) -> str:
    done = subprocess.run(
        command(folder), check=False, capture_output=True, text=True, timeout=400, env=environment(), cwd=ROOT
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stderr


def kill_when(folder: Path, file: str, lines: int) -> None:
    """Starts the command and kills it, and what it started, once `file` has so many lines."""
    process = subprocess.Popen(
        command(folder), stderr=subprocess.DEVNULL, env=environment(), cwd=ROOT, start_new_session=True
    )
    deadline = time.monotonic() + 200
    path = folder / file
    while not (path.exists() and path.read_bytes().count(b"\n") >= lines):
        assert process.poll() is None and time.monotonic() < deadline, f"{file} never had {lines} lines"
        time.sleep(0.005)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=30)


def test_killed_while_sampling_it_ends_with_the_same_bytes(tmp_path: Path) -> None:
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    run(whole)
    kill_when(killed, "samples/train.jsonl", 5)
    sampled = (killed / "samples" / "train.jsonl").read_bytes()
    assert 5 <= sampled.count(b"\n") < 160
    run(killed)
    assert (killed / "samples" / "train.jsonl").read_bytes().startswith(sampled[: sampled.rfind(b"\n") + 1])
    for name in FILES:
        assert (killed / name).read_bytes() == (whole / name).read_bytes(), name
    same = Path("hf") / "model.safetensors"
    assert (killed / same).read_bytes() == (whole / same).read_bytes()
    told = json.loads((whole / "statistics.json").read_text())
    assert told["corrections"]["accepted"] > 0.3 * told["corrections"]["pairs"] > 10  # the model was taught to
