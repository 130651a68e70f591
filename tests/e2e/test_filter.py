"""`nemo-tapo filter` with the real engine and the verifier's processes: sorted, killed, resumed.

The data is one JSONL file of two kinds: problems of GSM8K, at which the tiny model is hopeless, and chains of additions
such as it was trained on, at which it is sometimes right.
"""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.tasks import arithmetic
from tests.helpers.data_files import data_file

pytestmark = pytest.mark.e2e
MODEL = Path(__file__).parents[2] / "assets" / "tiny-coldstart"
CHAINS, WORDS = 24, 8
FILES = ("kept", "too_easy", "too_hard", "failed")


def mixed(path: Path) -> Path:
    chains = [
        {"id": f"chain-{i}", "problem": p.question, "answer": p.answer}
        for i, p in enumerate(arithmetic.draw_problems(CHAINS, 11, 2, 4))
    ]
    words = [json.loads(line) for line in data_file("gsm8k_test_700.jsonl").read_text().splitlines()[:WORDS]]
    path.write_text("".join(json.dumps(row) + "\n" for row in [*chains, *words]))
    return path


def command(data: Path, output: Path) -> list[str]:
    return [
        sys.executable, "-m", "nemo_tapo.cli", "filter", "--model", str(MODEL), "--data", str(data),
        "task.mathematics.prompt='{question}'", "task.mathematics.train.uid=id", "model.max_length=1024",
        "rollout.max_tokens=112", "local.max_num_seqs=16", "checkpoint.min_free_gib=0", f"output={output}",
    ]  # fmt: skip


def run(data: Path, output: Path) -> None:
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command(data, output), check=False, capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]


def rows(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    folder = tmp_path_factory.mktemp("filter")
    data = mixed(folder / "data.jsonl")
    run(data, folder / "out")
    return data, folder / "out"


def test_queries_are_sorted_by_what_the_model_can_do(whole: tuple[Path, Path]) -> None:
    _, output = whole
    summary = json.loads((output / "summary.json").read_text())
    assert summary["rows"] == CHAINS + WORDS == sum(summary[name] for name in FILES)
    assert summary["failed"] == 0
    too_hard = {row["id"] for row in rows(output, "too_hard")}
    assert {f"gsm8k-{i}" for i in range(WORDS)} <= too_hard
    kept = rows(output, "kept")
    assert len(kept) >= CHAINS // 4  # right sometimes
    assert {row["id"][:5] for row in kept} == {"chain"}
    for row in kept:
        assert 1 <= row["outcomes"].count("right") <= 7
    assert sum(summary["outcomes"].values()) == 8 * (CHAINS + WORDS)


def test_sigkill_and_resume_give_the_same_files(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = whole
    samples = tmp_path / "out" / "samples" / "train.jsonl"
    process = subprocess.Popen(command(data, tmp_path / "out"), stderr=subprocess.DEVNULL, stdout=subprocess.DEVNULL)
    deadline = time.monotonic() + 300
    while process.poll() is None and time.monotonic() < deadline:
        if samples.exists() and samples.read_bytes().count(b"\n") > 20:
            break
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    held = samples.read_bytes().count(b"\n")
    assert 20 <= held < 8 * (CHAINS + WORDS)
    run(data, tmp_path / "out")
    for name in FILES:
        assert (tmp_path / "out" / f"{name}.jsonl").read_bytes() == (output / f"{name}.jsonl").read_bytes()
    assert len(rows(tmp_path / "out", "samples/train")) == 8 * (CHAINS + WORDS)
