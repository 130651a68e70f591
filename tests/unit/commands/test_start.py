"""`nemo-tapo init` makes a folder that runs as written; `nemo-tapo demo` finds its files from anywhere."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

import nemo_tapo as nemo_tapo_package
from nemo_tapo.cli import main
from nemo_tapo.tasks.arithmetic import LARGEST_TOTAL, SMALLEST_TOTAL, parse_question
from nemo_tapo.utils.user_code import load_object
from tests.helpers.command import nemo_tapo

PACKAGE = Path(nemo_tapo_package.__file__).parent
ON_THE_SCRIPTED_RUNTIME = (
    "runtime=scripted", "steps=2", "model.max_length=3000", "rollout.max_tokens=300", "tapo.max_tokens=700",
    "evaluation.max_tokens=300", "evaluation.problems=4", "evaluation.runs=1", "checkpoint.min_free_gib=0",
    "rollout.queries_per_step=4",
)  # fmt: skip


@pytest.fixture
def project(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    done = nemo_tapo("init", "mine")
    assert done.returncode == 0, done.stderr
    monkeypatch.chdir(tmp_path / "mine")
    return tmp_path / "mine"


def test_the_folder_runs_as_it_is_written(project: Path) -> None:
    assert {p.name for p in project.iterdir()} == {"config.yaml", "task.py", "README.md", "model"}
    assert all("@NAME@" not in (project / name).read_text() for name in ("config.yaml", "task.py", "README.md"))
    plan = nemo_tapo("run", "--config", "config.yaml", "--dry-run")
    assert plan.returncode == 0 and "model: model: Qwen3ForCausalLM, 853,376 parameters" in plan.stdout
    assert "evaluation: 5 samples" in plan.stdout and "cold start" not in plan.stdout  # as config.yaml's parts say
    done = nemo_tapo("run", "--config", "config.yaml", *ON_THE_SCRIPTED_RUNTIME)
    assert done.returncode == 0, done.stderr
    metrics = [json.loads(line) for line in (project / "runs" / "first" / "metrics.jsonl").read_text().splitlines()]
    assert len(metrics) == 2 and all(m["grade/right"] > 0 and m["grade/wrong"] > 0 for m in metrics)
    assert sum(m["tapo/correct"] for m in metrics) > 0  # its synthesis prompt is one that the script answers
    evaluation = json.loads((project / "runs" / "first" / "evaluation.json").read_text())
    assert evaluation.keys() == {"before", "after"} and "chains" in evaluation["after"]["benchmarks"]
    assert json.loads((project / "runs" / "first" / "code.json").read_text())[0]["command"] == "run"


def test_its_queries_are_what_the_tiny_model_was_trained_on(project: Path) -> None:
    task = load_object("task.py:Chains", "task.target")(number=100)
    queries = [*task.train_queries(), *task.benchmarks()["chains"]]
    assert len({query.uid for query in queries}) == len(queries) == 356
    for query in queries:
        problem = parse_question(query.question)
        assert problem.answer == query.answer and 2 <= len(problem.steps) <= 4
        assert all(SMALLEST_TOTAL <= total <= LARGEST_TOTAL for total in problem.totals)


def test_a_folder_that_is_there_is_left_alone(project: Path) -> None:
    (project / "task.py").write_text("mine")
    done = nemo_tapo("init", str(project))
    assert done.returncode == 2 and "is there already" in done.stderr
    assert (project / "task.py").read_text() == "mine"


def test_the_demo_needs_no_checkout_as_working_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    done = nemo_tapo("demo", "--dry-run", "steps=3")
    assert done.returncode == 0, done.stderr
    assert "output: runs/demo" in done.stdout and "tapo: 3 steps of 32 queries" in done.stdout
    assert "Qwen3ForCausalLM, 853,376 parameters" in done.stdout
    assert not (tmp_path / "runs").exists()


def test_a_copy_of_the_code_alone_runs(tmp_path: Path) -> None:
    """As a queued job has it, beside neither configs nor models."""
    shutil.copytree(PACKAGE, tmp_path / "code" / "nemo_tapo", ignore=shutil.ignore_patterns("__pycache__"))
    command = [sys.executable, "-m", "nemo_tapo.cli", "--help"]
    environment = {**os.environ, "PYTHONPATH": str(tmp_path / "code")}
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=tmp_path, env=environment)
    assert done.returncode == 0, done.stderr


def test_init_removes_no_folder_of_the_user(tmp_path: Path) -> None:
    (tmp_path / "tmp-mine").mkdir()
    (tmp_path / "tmp-mine" / "precious").write_text("mine")
    assert main(["init", str(tmp_path / "mine")]) == 0
    assert (tmp_path / "tmp-mine" / "precious").read_text() == "mine"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine", "tmp-mine"]


def test_init_refuses_a_name_that_no_config_can_hold(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / "new\nline")]) == 2
    assert "control characters" in capsys.readouterr().err and not list(tmp_path.iterdir())


def test_a_path_that_cannot_be_is_a_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["init", str(tmp_path / ("x" * 300))]) == 2
    assert "File name too long" in capsys.readouterr().err
