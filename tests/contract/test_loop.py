"""Three steps of TAPO through NeMo-RL's setup, Policy, engine interface, Logger and checkpoints; killed, resumed."""

from __future__ import annotations

import hashlib
import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

pytestmark = [pytest.mark.nemo_rl, pytest.mark.timeout(900)]
STEPS, PATIENCE = 3, 300  # seconds


def start(folder: Path) -> subprocess.Popen[str]:
    driver = Path(__file__).with_name("run_training.py")
    folder.mkdir(exist_ok=True)
    with (folder / "driver.log").open("a") as log:
        return subprocess.Popen(
            [sys.executable, str(driver), str(folder), str(STEPS)], stdout=log, stderr=log, text=True
        )


def finish(process: subprocess.Popen[str], folder: Path) -> None:
    assert process.wait(PATIENCE) == 0, (folder / "driver.log").read_text()[-4000:]


def lines(file: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in file.read_text().splitlines()]


def digest(folder: Path) -> str:
    weights = folder / "checkpoints" / f"step_{STEPS}" / "policy" / "weights" / "model.safetensors"
    return hashlib.sha256(weights.read_bytes()).hexdigest()


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("whole")
    finish(start(folder), folder)
    return folder


def test_a_whole_run(whole: Path) -> None:
    metrics = lines(whole / "metrics.jsonl")
    assert [m["step"] for m in metrics] == [1, 2, 3]
    first = metrics[0]
    assert first["ratio_deviation"] == 0.0
    assert 0 < first["engine_gap"] < 1e-4  # nats: the engine samples from the actor's weights
    assert first["token_mult_prob_error"] == pytest.approx(1.0, abs=1e-3)
    assert any(m["tapo/parsed"] > 0 for m in metrics)
    for m in metrics:
        assert m["num_valid_samples"] == m["rows"] == 32 + m["tapo/parsed"] <= 48
    # an update, a step of the schedule: Megatron counts the updates done, 2 of them from lr_warmup_init to lr
    assert [m["lr"] for m in metrics] == pytest.approx([1.5e-4, 2.25e-4, 3e-4])
    kept = sorted(p.name for p in (whole / "checkpoints").iterdir())
    assert f"step_{STEPS}" in kept and not any(name.startswith("tmp") for name in kept)
    assert list((whole / "logs").rglob("events.out.tfevents.*"))
    listed = json.loads((whole / "checkpoints" / f"step_{STEPS}" / "manifest.json").read_text())
    assert listed["policy/weights/model.safetensors"]["sha256"] == digest(whole)


def test_killed_and_resumed_it_chooses_the_same_pairs_and_ends_with_the_same_weights(
    whole: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "killed"
    process = start(folder)
    deadline = time.monotonic() + PATIENCE
    while not (folder / "checkpoints" / "step_1").is_dir():
        assert process.poll() is None and time.monotonic() < deadline, (folder / "driver.log").read_text()[-4000:]
        time.sleep(0.05)
    family = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGKILL)
    process.wait()
    psutil.wait_procs(family, timeout=30)
    finish(start(folder), folder)
    assert [m["step"] for m in lines(folder / "metrics.jsonl")] == [1, 2, 3]
    pairs = [
        [(r["step"], r.get("uid"), r.get("wrong"), r.get("reference")) for r in lines(f / "trajectories.jsonl")]
        for f in (whole, folder)
    ]
    assert pairs[0] == pairs[1]
    assert digest(folder) == digest(whole)
