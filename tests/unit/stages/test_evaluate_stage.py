"""`nemo-tapo evaluate` as a process on the scripted runtime: which model a path means, killed and resumed."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.checkpoint import make_manifest
from nemo_tapo.evaluation import results
from nemo_tapo.evaluation.model_files import hash_weights, locate_model, make_evaluation_name
from nemo_tapo.runtime.scripted_runtime import arithmetic_script
from nemo_tapo.types import Request
from tests.helpers.command import nemo_tapo
from tests.helpers.endpoint_servers import Answer, completion, error, listing, scripted

CONFIG = Path(__file__).parents[3] / "examples" / "configs" / "tapo-tiny-1n0g.yaml"


SMALL = [
    "runtime=scripted", "rollout.max_tokens=300", "tapo.max_tokens=700", "model.max_length=3000",
    "rollout.queries_per_step=4", "task.arithmetic.train_queries=64", "evaluation.problems=12",
    "evaluation.max_tokens=300", "evaluation.synthesis_queries=0", "checkpoint.min_free_gib=0", "steps=2",
]  # fmt: skip


def evaluated(folder: Path, *overrides: str) -> subprocess.CompletedProcess[str]:
    return nemo_tapo("evaluate", "--config", str(CONFIG), *SMALL, f"output={folder}", *overrides)


def test_runs_checkpoints_and_directories_can_be_evaluated(tmp_path: Path) -> None:
    run, out = tmp_path / "run", tmp_path / "out"
    done = nemo_tapo("train", "--config", str(CONFIG), *SMALL, "checkpoint.every=1", f"output={run}")
    assert done.returncode == 0, done.stderr
    trained = (run / "config.yaml").read_bytes()
    for path, name in ((run, "run"), (run / "hf", "run"), (run / "checkpoints" / "step-000001", "run-step-000001")):
        done = evaluated(out, f"model.path={path}")
        assert done.returncode == 0, done.stderr
        assert name in json.loads((out / "evaluation.json").read_text())
        assert "pass@1" in done.stdout
        assert f"{name}: " in done.stdout
    assembled = out / "evaluation" / "run-step-000001" / "model"
    assert (assembled / "config.json").read_bytes() == (Path("assets/tiny-base") / "config.json").read_bytes()
    assert (assembled / "model.safetensors").samefile(run / "checkpoints" / "step-000001" / "model.safetensors")
    assert hash_weights(assembled) != hash_weights(run / "hf")
    assert evaluated(run, f"model.path={run}").returncode == 0
    assert (run / "config.yaml").read_bytes() == trained  # the run's own stays as it was


def test_what_has_no_model_is_a_sentence(tmp_path: Path) -> None:
    run = tmp_path / "run"
    step = run / "checkpoints" / "step-000005"
    step.mkdir(parents=True)
    with pytest.raises(ValueError, match=r"run has no hf yet.*checkpoints/step-000005"):
        locate_model(run, tmp_path / "w")
    with pytest.raises(ValueError, match=r"step-000005: manifest\.json is missing"):
        locate_model(step, tmp_path / "w")
    (step / "state.json").write_text("{}")
    state = make_manifest(step)
    (step / "manifest.json").write_text(json.dumps(state))
    with pytest.raises(ValueError, match=r"model\.safetensors is missing; other layouts"):
        locate_model(step, tmp_path / "w")
    (step / "model.safetensors").write_bytes(b"x")
    with pytest.raises(ValueError, match="has weights alone, and the model it was started from is none of"):
        locate_model(step, tmp_path / "w")
    with pytest.raises(ValueError, match="step-000009: it is not there"):
        locate_model(step.with_name("step-000009"), tmp_path / "w")
    (step / "manifest.json").write_text(json.dumps({**state, "model.safetensors": {"bytes": 2, "sha256": ""}}))
    with pytest.raises(ValueError, match="has 1 bytes instead of 2"):
        locate_model(step, tmp_path / "w")
    with pytest.raises(ValueError, match=r"no \*\.safetensors"):
        hash_weights(run)


def test_names_of_evaluated_models(tmp_path: Path) -> None:
    assert make_evaluation_name(Path("assets/tiny-base")) == "tiny-base"
    assert make_evaluation_name(tmp_path / "demo" / "hf") == make_evaluation_name(tmp_path / "demo") == "demo"
    assert make_evaluation_name(tmp_path / "demo" / "coldstart" / "hf") == "demo-coldstart"
    assert make_evaluation_name(tmp_path / "demo" / "checkpoints" / "step-000050") == "demo-step-000050"


@pytest.mark.parametrize("sign", [signal.SIGKILL, signal.SIGTERM])
def test_a_killed_command_goes_on_to_the_same_result(tmp_path: Path, sign: int) -> None:
    arguments = ["evaluation.problems=64", "evaluation.runs=20"]
    whole = evaluated(tmp_path / "whole", *arguments)
    assert whole.returncode == 0, whole.stderr
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "nemo_tapo.cli", "evaluate", "--config", str(CONFIG), *SMALL, *arguments]
    process = subprocess.Popen([*command, f"output={folder}"], stderr=subprocess.PIPE, text=True)
    samples, deadline = folder / "evaluation" / "tiny-base" / "arithmetic.jsonl", time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if samples.is_file() and samples.read_bytes().count(b"\n") > 100:
            break
    process.send_signal(sign)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == (143 if sign == signal.SIGTERM else -sign), errors
    kept = samples.read_bytes().count(b"\n")
    assert 100 < kept < 64 * 20 * 5
    again = evaluated(folder, *arguments)
    assert again.returncode == 0, again.stderr
    assert f"{kept}/6400 samples" in again.stderr
    one, two = (json.loads((f / "evaluation.json").read_text()) for f in (tmp_path / "whole", folder))
    assert one == two
    assert results.read_results(folder)["tiny-base"]["benchmarks"]["arithmetic"]["responses"] == 6400


def answered(number: int, body: dict[str, Any]) -> Answer:
    """The scripted policy behind a server; every seventh request fails at first."""
    if number % 7 == 3:
        return error(503, "overloaded")
    request = Request("", (), body["seed"], body["max_tokens"])
    return completion(arithmetic_script(body["messages"][0]["content"], request))


def test_a_served_model_is_evaluated_and_nothing_is_started(tmp_path: Path) -> None:
    """No model directory; stumbling requests are asked again; a server that ends is resumed on another."""
    asked = ["model.path=nowhere", "evaluation.endpoint.pause=0.01", "evaluation.endpoint.concurrency=5"]
    asked.append("evaluation.endpoint.extra_body.chat_template_kwargs.enable_thinking=false")
    with scripted(answered, listing("org/tiny")) as server:
        done = evaluated(tmp_path / "whole", *asked, f"evaluation.endpoint.url={server.url}")
        assert done.returncode == 0, done.stderr
        assert server.most_at_once <= 5
        first = server.requests[0]
        assert (first["temperature"], first["top_p"], first["max_tokens"]) == (0.6, 0.9, 300)
        assert first["chat_template_kwargs"] == {"enable_thinking": False}
        assert len({body["seed"] for body in server.requests}) == 12 * 2 * 5  # each its own, the same when asked again
    found = json.loads((tmp_path / "whole" / "evaluation.json").read_text())["org/tiny"]
    assert found["benchmarks"]["arithmetic"]["responses"] == 120
    assert 0 < found["benchmarks"]["arithmetic"]["pass@1"] < 1
    assert "synthesis" not in found

    def dying(number: int, body: dict[str, Any]) -> Answer:
        return answered(number, body) if number < 60 else error(500, "out of memory")

    with scripted(dying, listing("org/tiny")) as server:
        done = evaluated(tmp_path / "cut", *asked, f"evaluation.endpoint.url={server.url}")
    assert done.returncode == 3, done.stderr
    assert "out of memory" in done.stderr
    assert "the same command goes on from there" in done.stderr
    with scripted(answered, listing("org/tiny")) as server:
        done = evaluated(tmp_path / "cut", *asked, f"evaluation.endpoint.url={server.url}")
        assert done.returncode == 0, done.stderr
        assert len(server.requests) < 110  # not what was answered before
    assert json.loads((tmp_path / "cut" / "evaluation.json").read_text())["org/tiny"] == found
