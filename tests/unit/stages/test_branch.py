"""stages/branch.py through the command line on the scripted runtime: a finished run goes on with more steps."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.checkpoint import find_fault
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.stages import branch
from nemo_tapo.utils.run_folder import lock_folder
from tests.helpers.command import nemo_tapo

CONFIG = Path(__file__).parents[3] / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SMALL = (
    "runtime=scripted", "rollout.max_tokens=300", "tapo.max_tokens=700", "model.max_length=3000",
    "rollout.queries_per_step=4", "task.arithmetic.train_queries=64", "coldstart.queries=16", "evaluation.problems=4",
    "evaluation.runs=1", "evaluation.synthesis_queries=4", "checkpoint.every=50", "checkpoint.min_free_gib=0",
    "optimizer.schedule=constant",
)  # fmt: skip


def call(command: str, folder: Path, steps: int, *more: str) -> Any:
    return nemo_tapo(command, "--config", str(CONFIG), *SMALL, f"output={folder}", f"steps={steps}", *more)


def contents(folder: Path) -> dict[str, bytes]:
    return {str(f.relative_to(folder)): f.read_bytes() for f in sorted(folder.rglob("*")) if f.is_file()}


def numbers(folder: Path) -> list[dict[str, float]]:
    """The metrics of every step but for times, memory, and what is compared in a process's first step only."""
    steps = [json.loads(line) for line in (folder / "metrics.jsonl").read_text().splitlines()]
    return [{k: v for k, v in s.items() if not k.startswith(("time/", "memory/", "engine"))} for s in steps]


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A finished run of two steps, which no test changes."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    assert call("train", folder, 2, "pipeline=deferred").returncode == 0
    return folder


def test_two_steps_and_two_more_are_four(tmp_path: Path, finished: Path) -> None:
    """Also the pairs that wait from one step to the next in the deferred pipeline."""
    assert call("train", tmp_path / "whole", 4, "pipeline=deferred").returncode == 0
    parent = contents(finished)
    done = call("train", finished, 4, "pipeline=deferred")
    assert done.returncode == 0, done.stderr
    longer = finished.with_name("run-steps-4")
    assert f"is a finished run of 2 steps: it goes on to 4 in {longer}" in done.stdout
    assert "so the result is that of one run of 4 steps" in done.stdout
    weights = "hf/model.safetensors"
    assert (longer / weights).read_bytes() == (tmp_path / "whole" / weights).read_bytes()
    assert (longer / weights).read_bytes() != (finished / weights).read_bytes()
    assert numbers(longer)[2:] == numbers(tmp_path / "whole")[2:]
    assert numbers(longer)[:2] == numbers(finished)
    assert contents(finished) == parent
    origin = json.loads((longer / "parent.json").read_text())
    assert (origin["folder"], origin["step"]) == (str(finished), 2)
    state = json.loads((longer / "checkpoints" / "step-000002" / "state.json").read_text())
    assert state["parent"] == origin and find_fault(longer / "checkpoints" / "step-000002") is None


def test_the_main_job_goes_on_with_its_cold_start_and_first_evaluation(tmp_path: Path) -> None:
    assert call("run", tmp_path / "run", 1).returncode == 0
    plan = call("run", tmp_path / "run", 2, "--dry-run")
    assert "#  " in plan.stdout and f"goes on to 2 in {tmp_path / 'run-steps-2'}" in plan.stdout
    assert not (tmp_path / "run-steps-2").exists()
    done = call("run", tmp_path / "run", 2)
    assert done.returncode == 0, done.stderr
    first, second = (json.loads((tmp_path / n / "evaluation.json").read_text()) for n in ("run", "run-steps-2"))
    assert second["before"] | {"model": ""} == first["before"] | {"model": ""}
    assert second["after"]["model"] == str(tmp_path / "run-steps-2" / "hf")
    made = [(tmp_path / n / "coldstart" / "hf" / "model.safetensors").read_bytes() for n in ("run", "run-steps-2")]
    assert made[0] == made[1]


def test_what_is_no_finished_run_of_fewer_steps_is_refused(finished: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refused(steps: int, *more: str) -> str:
        done = call("train", finished, steps, "pipeline=deferred", *more)
        assert done.returncode == 2
        return str(done.stderr)

    assert "rollout.temperature: 1.0 -> 0.5, steps: 2 -> 3" in refused(3, "rollout.temperature=0.5")
    assert "steps: 2 -> 1" in refused(1)
    with lock_folder(finished):
        assert f"another process is at work in {finished}" in refused(3)
    finished.with_name("run-steps-7").mkdir()
    assert "which is there and is no branch of it" in refused(7)
    stopped = branch.find_latest(finished / "checkpoints", print)
    assert stopped is not None
    stopped.state["fingerprint"]["steps"] = 9
    monkeypatch.setattr(branch, "find_latest", lambda path, warn: stopped)
    assert "is a run of 9 steps that has done 2: finish it with steps=9, then steps=12 goes on" in refused(12)


def test_the_sentence_on_a_cosine_has_its_rates() -> None:
    """lr 1, no warm-up: at the end of 100 steps 0; in step 101 of 200 it is (1 + cos(pi 101 / 200)) / 2 = 0.49215."""
    cfg = RunConfig.model_validate({"steps": 200, "optimizer": {"lr": 1.0, "warmup_steps": 0}})
    told = branch.describe_learning_rate(cfg, 100)
    assert "ended at 0; in step 101 it is 0.49 and follows the cosine of 200 steps" in told
    assert "the result is not that of one run of 200 steps" in told
