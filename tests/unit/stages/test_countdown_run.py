"""Countdown on the command line with the scripted runtime: data, cold start by the oracle, TAPO, tools/attempts.py."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from nemo_tapo.config.run_config import validate
from nemo_tapo.stages.pretrain import prepare_initial_model
from nemo_tapo.tasks.countdown import diagnose, parse_question, verify_response
from nemo_tapo.tasks.generated import open_task_corpus
from tests.helpers.command import nemo_tapo

ROOT = Path(__file__).parents[3]
SMALL = [
    "runtime=scripted", "task.name=countdown", "task.countdown.train_queries=30", "task.countdown.held_out_queries=8",
    "rollout.max_tokens=300", "tapo.max_tokens=600", "model.max_length=3000", "checkpoint.min_free_gib=0",
    "rollout.queries_per_step=8", "tapo.n_neg=2", "steps=2", "coldstart.queries=20", "coldstart.examples_per_step=8",
    "coldstart.epochs=1", "coldstart.sft_examples=12", "coldstart.ift_examples=12", "evaluation.runs=1",
    "evaluation.max_tokens=300", "evaluation.synthesis_queries=4",
]  # fmt: skip


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    pytest.importorskip("reasoning_gym")
    folder = tmp_path_factory.mktemp("countdown") / "run"
    done = nemo_tapo("run", *SMALL, f"output={folder}")
    assert done.returncode == 0, done.stderr
    return folder


def read_rows(path: Path) -> list[dict[str, object]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_the_oracle_corrects_every_failure_and_keeps_it(run: Path) -> None:
    told = json.loads((run / "coldstart" / "statistics.json").read_text())
    assert told["corrections"]["accepted"] == told["corrections"]["pairs"] > 0
    assert told["corrections"]["rejected"] == {} and told["corrections"]["nothing_kept"] == 0
    corrective = [e for e in read_rows(run / "coldstart" / "examples.jsonl") if e["origin"] == "corrective"]
    assert corrective
    for example in corrective:
        question, response = (str(turn["content"]) for turn in example["messages"])  # type: ignore[attr-defined]
        problem = parse_question(question)
        first, turn, rest = response.partition("\nWait, ")
        result, verdict = first.rpartition("=")[2].split("\n")
        assert verdict == f"{result} vs {problem.target} no"
        assert turn and rest.split("\n")[0] == f"{result} is not {problem.target}."
        assert verify_response(problem, response) == (1.0, "right") and diagnose(problem, response) is None


def test_constructions_of_rl_keep_the_failed_attempt(run: Path) -> None:
    steps = read_rows(run / "metrics.jsonl")
    assert len(steps) == 2
    assert sum(float(s["tapo/parsed"]) for s in steps) > 0  # type: ignore[arg-type]
    assert all(float(s.get("tapo/kept_steps", 2)) >= 2 for s in steps)  # type: ignore[arg-type]


def test_the_tool_counts_turns_after_failed_and_other_attempts(run: Path) -> None:
    """The scripted policy's verdicts are true, and it never turns: detection is 0, every response has no turn."""
    tool = [sys.executable, str(ROOT / "tools" / "attempts.py")]
    done = subprocess.run([*tool, str(run)], capture_output=True, text=True, check=True)
    lines = [line.strip() for line in done.stdout.splitlines()]
    assert lines[0].startswith(f"{run}: 40 responses, ") and "detection: +0.0 points" in lines
    assert all(line.endswith(", verdicts true 100.0%, a turn follows 0.0%") for line in lines[1:3])
    assert lines[-1].startswith("turns 0: 40 (100.0%), right ")
    failed = subprocess.run([*tool, str(run / "coldstart")], capture_output=True, text=True, check=False)
    assert failed.returncode == 1 and "evaluation" in failed.stderr and "Traceback" not in failed.stderr


def test_a_task_without_a_corpus_has_no_base(tmp_path: Path) -> None:
    cfg = validate({"task": {"name": "reasoning_gym"}, "tapo": {"correct_at": 1}, "output": tmp_path})
    with pytest.raises(ValueError, match=r"task\.name = reasoning_gym: set it to arithmetic or countdown"):
        prepare_initial_model(cfg)


def test_the_corpus_of_a_config_leaves_its_held_out_problems_out() -> None:
    pytest.importorskip("reasoning_gym")
    small = {"max_value": 4, "max_target": 16, "held_out_queries": 30, "train_queries": 40}
    cfg = validate({"task": {"name": "countdown", "countdown": small}})
    from nemo_tapo.tasks.registry import make_task

    held_out = {query.question for query in make_task(cfg.task, 0).benchmarks()["countdown"]}
    draw = open_task_corpus(cfg.task)
    asked = {e.prompt for e in draw(600, 0, False, 0.5) if e.kind == "attempt"}
    assert len(asked) > 3 and not asked & held_out
    assert draw(5, 0, True, 0.5) == draw(5, 0, True, 0.5)
