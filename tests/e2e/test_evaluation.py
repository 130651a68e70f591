"""`nemo-tapo evaluate` with the real engine, the verifier's processes and vLLM's own server: killed, resumed, compared.

Two benchmarks of the mathematics task: problems of AIME 2024, at which the tiny model is hopeless, and chains of
additions such as it was trained on.
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
from unittest.mock import ANY

import psutil
import pytest

from nemo_tapo.tasks import arithmetic
from tests.helpers.data_files import data_rows
from tests.helpers.endpoint_servers import vllm_server

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(600)]
ROOT = Path(__file__).parents[2]
MODEL, CONFIG = ROOT / "assets" / "tiny-coldstart", ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
CHAINS, WORDS, RUNS, SAMPLES = 40, 5, 2, 5
TOTAL = (CHAINS + WORDS) * RUNS * SAMPLES


@pytest.fixture(scope="module")
def settings(tmp_path_factory: pytest.TempPathFactory) -> list[str]:
    folder = tmp_path_factory.mktemp("data")
    chains = [
        {"id": f"chain-{i}", "problem": p.question, "answer": p.answer}
        for i, p in enumerate(arithmetic.draw_problems(CHAINS, 11, 2, 4))
    ]
    for name, rows in (("chains", chains), ("aime24", data_rows("aime24.jsonl")[:WORDS])):
        (folder / f"{name}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    benchmarks = [
        f"task.mathematics.benchmarks.{name}={{path: {folder}/{name}.jsonl, uid: id}}" for name in ("aime24", "chains")
    ]
    return [
        "task.name=mathematics", "task.mathematics.prompt='{question}'", *benchmarks, f"model.path={MODEL}",
        "model.max_length=1024", "evaluation.max_tokens=112", f"evaluation.runs={RUNS}", "local.max_num_seqs=16",
        "checkpoint.min_free_gib=0",
    ]  # fmt: skip


def command(settings: list[str], output: Path, name: str = "evaluate") -> list[str]:
    return [sys.executable, "-m", "nemo_tapo.cli", name, *settings, f"output={output}"]


def run(settings: list[str], output: Path, name: str = "evaluate") -> str:
    """To the end; returns what it printed."""
    environment = {k: v for k, v in os.environ.items() if k != "OMP_NUM_THREADS"}
    done = subprocess.run(
        command(settings, output, name), check=False, capture_output=True, text=True, timeout=400, env=environment
    )
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


def results(output: Path) -> dict[str, Any]:
    [result] = json.loads((output / "evaluation.json").read_text()).values()
    return dict(result)


def samples(output: Path) -> list[str]:
    """Every line, in an order that does not tell who came first."""
    return sorted(line for path in output.glob("evaluation/*/*.jsonl") for line in path.read_text().splitlines())


@pytest.fixture(scope="module")
def whole(settings: list[str], tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole")
    printed = run(settings, output)
    for word in ("aime24", "chains", "average", "pass@5", "first@1", "maj@5"):
        assert word in printed
    return output


def test_what_it_finds(whole: Path) -> None:
    found = results(whole)["benchmarks"]
    assert {name: b["problems"] for name, b in found.items()} == {"aime24": WORDS, "chains": CHAINS}
    assert found["aime24"]["pass@5"] == 0.0
    assert 0.1 < found["chains"]["pass@1"] < found["chains"]["pass@5"] < 1
    low, high = found["chains"]["pass@1/interval95"]
    assert low < found["chains"]["pass@1"] < high
    rows = [json.loads(line) for line in samples(whole)]
    assert len(rows) == TOTAL == len({(r["benchmark"], r["uid"], r["run"], r["index"]) for r in rows})
    answers = {f"chain-{i}": p.answer for i, p in enumerate(arithmetic.draw_problems(CHAINS, 11, 2, 4))}
    right = [r["reward"] for r in rows if r["benchmark"] == "chains"]
    assert right == [
        arithmetic.verify_response(answers[r["uid"]], r["text"])[0] for r in rows if r["benchmark"] == "chains"
    ]
    assert found["chains"]["pass@1"] == pytest.approx(sum(right) / len(right))


def test_killed_it_goes_on_to_the_same_samples_and_starts_no_actor(
    whole: Path, settings: list[str], tmp_path: Path
) -> None:
    process = subprocess.Popen(command(settings, tmp_path), stderr=subprocess.PIPE, text=True)
    deadline, kept = time.monotonic() + 300, []
    while time.monotonic() < deadline and process.poll() is None and not kept:
        time.sleep(0.02)
        kept = samples(tmp_path)
    names = " ".join(" ".join(p.cmdline()) for p in psutil.Process(process.pid).children(recursive=True))
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert "VllmEngine" in names
    assert "MegatronWorker" not in names
    assert 0 < len(kept) < TOTAL
    run(settings, tmp_path)
    assert samples(tmp_path) == samples(whole)
    assert results(tmp_path) == results(whole)


def test_a_served_model_scores_as_the_engine_does(whole: Path, settings: list[str], tmp_path: Path) -> None:
    """vLLM's server applies the chat template and samples with seeds of its own: the same model, other samples."""
    with vllm_server(MODEL, tmp_path / "log", "--max-model-len", "1024") as url:
        served = [s for s in settings if not s.startswith("model.path")]
        run([*served, f"evaluation.endpoint.url={url}", "model.path=nowhere"], tmp_path / "out")
    one, other = results(whole)["benchmarks"], results(tmp_path / "out")["benchmarks"]
    assert results(tmp_path / "out")["model"] == "tiny"
    assert other["aime24"]["pass@5"] == 0.0
    assert abs(one["chains"]["pass@1"] - other["chains"]["pass@1"]) < 0.12  # 400 samples each: 4 standard errors
    assert one["chains"]["response_length/mean"] == pytest.approx(other["chains"]["response_length/mean"], rel=0.1)
    compared = subprocess.run(
        [sys.executable, "-m", "nemo_tapo.cli", "compare", str(whole), str(tmp_path / "out")],
        check=False, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "140"},
    )  # fmt: skip
    assert compared.returncode == 0, compared.stderr
    assert "up / down" in compared.stdout


def test_a_checkpoint_is_the_model_that_its_run_exports(tmp_path: Path) -> None:
    """The generated task: a run's last checkpoint, and its result."""
    config = ["--config", str(CONFIG), "checkpoint.min_free_gib=0"]
    trained = ["rollout.queries_per_step=4", "optimizer.lr=1e-3", "optimizer.schedule=constant", "local.dp=1"]
    trained.append("optimizer.warmup_steps=0")
    run([*config, *trained, f"model.path={MODEL}", "steps=1"], tmp_path / "run", "train")
    weights = [folder / "model.safetensors" for folder in (tmp_path / "run" / "hf", MODEL)]
    assert weights[0].read_bytes() != weights[1].read_bytes()
    few = [*config, "evaluation.problems=12", "evaluation.runs=1", "evaluation.synthesis_queries=12"]
    out = tmp_path / "out"
    for path in (tmp_path / "run" / "checkpoints" / "step-000001", tmp_path / "run"):
        run([*few, f"model.path={path}"], out)
    checkpoint, result = (
        sorted((out / "evaluation" / name / "arithmetic.jsonl").read_text().splitlines())
        for name in ("run-step-000001", "run")
    )
    assert len(checkpoint) == 60
    assert checkpoint == result
    found = json.loads((out / "evaluation.json").read_text())
    assert found["run"]["synthesis"] == {**found["run-step-000001"]["synthesis"], "settings": ANY}
    assert sum(found["run"]["synthesis"][zone] for zone in ("eligible", "mastered", "beyond")) == 12
