"""The command line on the scripted runtime: exit codes, sentences; as real processes: stop, kill, resume."""

from __future__ import annotations

import hashlib
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from nemo_tapo.tracking.rollout_store import read_index, read_queries
from nemo_tapo.utils.run_folder import lock_folder
from tests.helpers.command import nemo_tapo

CONFIG = Path(__file__).parents[2] / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SMALL = [
    "runtime=scripted",
    "steps=6",
    "rollout.max_tokens=300",
    "tapo.max_tokens=700",
    "model.max_length=3000",
    "rollout.queries_per_step=4",
    "task.arithmetic.train_queries=64",
    "coldstart.queries=16",
    "evaluation.problems=12",
    "evaluation.runs=1",
    "evaluation.synthesis_queries=12",
    "checkpoint.every=1",
    "checkpoint.min_free_gib=0",
]


def command(name: str, *arguments: str) -> list[str]:
    return [sys.executable, "-m", "nemo_tapo.cli", name, *arguments]


def call(name: str, *arguments: str) -> subprocess.CompletedProcess[str]:
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    return subprocess.run(
        command(name, *arguments), check=False, capture_output=True, text=True, timeout=120, env=environment
    )


def digest(folder: Path) -> str:
    return hashlib.sha256((folder / "hf" / "model.safetensors").read_bytes()).hexdigest()


def train(folder: Path) -> list[str]:
    return ["--config", str(CONFIG), *SMALL, f"output={folder}"]


@pytest.mark.parametrize(
    ("arguments", "sentence"),
    [
        (["tapo.n_poss=3"], "did you mean 'tapo.n_pos'?"),
        (["task.mathematics.benchmark.b.path=x"], "did you mean 'task.mathematics.benchmarks.NAME.path'?"),
        (["rollout.samples_per_query=5"], "is more than rollout.samples_per_query = 5"),
        (["--config", "nothing.yaml"], "no config file nothing.yaml"),
        (["steps=x"], "steps: Input should be a valid integer"),
        (["runtime=scripted", "checkpoint.min_free_gib=1e9"], "GiB free"),
        (["runtime=scripted", "rollout.max_tokens=505", "checkpoint.min_free_gib=0"], "were set aside"),
    ],
)
def test_bad_input_is_one_sentence_and_exit_2(tmp_path: Path, arguments: list[str], sentence: str) -> None:
    done = nemo_tapo("train", *arguments, f"output={tmp_path / 'out'}")
    assert done.returncode == 2, done.stderr
    assert sentence in done.stderr
    assert "Traceback" not in done.stderr


def test_dry_run_prints_the_plan_and_starts_nothing(tmp_path: Path) -> None:
    done = nemo_tapo("run", "--dry-run", *train(tmp_path / "out"))
    assert done.returncode == 0
    assert "n_pos: 2" not in done.stdout
    assert "n_pos: 2" in nemo_tapo("run", "--dry-run", "--full", *train(tmp_path / "out")).stdout
    assert "6 steps of 4 queries x 8 rollouts = 32 rows, and at most 16 constructed rows" in done.stdout
    assert not (tmp_path / "out").exists()


def test_help_names_every_command_and_exit_code() -> None:
    done = call("--help")
    assert done.returncode == 0
    for word in ("run", "pretrain", "coldstart", "evaluate", "report", "show", "130 / 143"):
        assert word in done.stdout


def test_main_job_leaves_everything_it_promises(tmp_path: Path) -> None:
    validated = ("evaluation.every=4", "evaluation.validation_problems=6", "checkpoint.keep_best=true")
    done = nemo_tapo("run", *train(tmp_path / "out"), *validated)
    assert done.returncode == 0, done.stderr
    out = tmp_path / "out"
    names = {p.name for p in out.iterdir()}
    assert names >= {
        "metrics.jsonl", "evaluation.json", "trajectories.jsonl", "report.html", "figure3.png", "construction.png",
        "tensorboard", "checkpoints", "hf", "config.yaml", "coldstart",
    }  # fmt: skip
    metrics = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2, 3, 4, 5, 6]
    promised = (
        "loss grad_norm reward/mean response_length/mean kl_ref tapo/eligible tapo/mastered tapo/beyond tapo/pairs "
        "tapo/parsed tapo/correct tapo/groups tapo/mixed_groups tapo/dropped/truncated time/step time/update"
    ).split()
    assert all(set(promised) <= m.keys() for m in metrics)
    assert any("tapo/ots_weight_mean" in m for m in metrics)
    assert [m["step"] for m in metrics if 0 <= m.get("validation/arithmetic/accuracy", -1.0) <= 1] == [4, 6]
    assert "Validation on held-out problems" in (out / "report.html").read_text()
    evaluation = json.loads((out / "evaluation.json").read_text())
    for when in ("before", "after"):
        measured = evaluation[when]["benchmarks"]["arithmetic"]
        values = [measured[f"pass@{k}"] for k in range(1, 6)]
        assert values == sorted(values)
        assert all(measured[f"pass@{k}/interval95"][0] <= measured[f"pass@{k}"] for k in range(1, 6))
        assert evaluation[when]["synthesis"]["pairs"] >= evaluation[when]["synthesis"]["parsed"]
    # The scripted engine does not look at weights: problem by problem, nothing changes.
    assert evaluation["after"]["change"]["benchmarks"]["arithmetic"]["pass@1/interval95"] == [0.0, 0.0]
    shown = nemo_tapo("show", str(out))
    assert shown.returncode == 0, shown.stderr
    assert "pass@1" in shown.stdout
    assert "Validation" in shown.stdout and "(best)" in shown.stdout


def test_a_refused_command_leaves_the_configuration_as_it_was(tmp_path: Path) -> None:
    out = tmp_path / "out"
    assert nemo_tapo("train", *train(out), "steps=1").returncode == 0
    before = (out / "config.yaml").read_bytes()
    done = nemo_tapo("train", *train(out), "steps=1", "seed=5")
    assert done.returncode == 2 and "seed: 0 -> 5" in done.stderr
    assert (out / "config.yaml").read_bytes() == before
    assert nemo_tapo("train", *train(out), "steps=1", "local.threads=1").returncode == 0  # decides no number
    assert b"threads: 1" in (out / "config.yaml").read_bytes()


def test_two_commands_do_not_work_in_one_folder(tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    with lock_folder(out):
        done = nemo_tapo("train", *train(out), "steps=1")
        assert done.returncode == 2 and f"another process is at work in {out}" in done.stderr
        assert not (out / "config.yaml").exists()
        assert nemo_tapo("evaluate", *train(out), "evaluation.problems=2").returncode == 0  # of a checkpoint, say
    assert nemo_tapo("train", *train(out), "steps=1").returncode == 0


def test_a_reader_that_has_read_enough_is_no_failure(tmp_path: Path) -> None:
    process = subprocess.Popen(command("run", "--dry-run", *train(tmp_path)), stdout=-1, stderr=-1, text=True)
    assert process.stdout is not None and process.stderr is not None
    process.stdout.close()
    assert process.wait(timeout=60) == 0, process.stderr.read()
    assert process.stderr.read() == ""


def test_the_same_command_again_does_nothing_twice(tmp_path: Path) -> None:
    assert nemo_tapo("train", *train(tmp_path / "out")).returncode == 0
    before = (tmp_path / "out" / "metrics.jsonl").read_bytes()
    assert nemo_tapo("train", *train(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out" / "metrics.jsonl").read_bytes() == before


def test_lost_metrics_come_back_from_the_checkpoint(tmp_path: Path) -> None:
    """And a damaged trajectories.jsonl, which only people read, is told, set aside and ends no run."""
    out, command = tmp_path / "out", ("run", *train(tmp_path / "out"), "steps=3", "parts=[train]")
    assert nemo_tapo(*command).returncode == 0
    before = (out / "metrics.jsonl").read_bytes()
    flipped = bytes([before[0], before[1] ^ 1, *before[2:]])  # the quote of the first key
    for damaged in (flipped, before[: len(before) // 2], b"", None):
        if damaged is None:
            (out / "metrics.jsonl").unlink()
        else:
            (out / "metrics.jsonl").write_bytes(damaged)
        done = nemo_tapo(*command)
        assert done.returncode == 0, done.stderr
        assert (out / "metrics.jsonl").read_bytes() == before
        assert f"{out / 'metrics.jsonl'} had lost steps; they are back, from the checkpoint" in done.stderr
    lines = (out / "trajectories.jsonl").read_bytes().splitlines(keepends=True)
    (out / "trajectories.jsonl").write_bytes(b"".join([lines[0][1:], *lines[1:]]))
    done = nemo_tapo(*command)
    assert done.returncode == 0, done.stderr
    assert f"trajectories.jsonl is damaged: 1 of {len(lines)} lines" in done.stderr
    assert (out / "trajectories.jsonl").read_bytes() == b"".join(lines[1:])
    assert (out / "trajectories.jsonl.damaged").is_file()


def test_sigkill_at_random_points_then_resume_gives_the_same_weights(tmp_path: Path) -> None:
    whole = tmp_path / "whole"
    assert call("train", *train(whole)).returncode == 0
    killed = tmp_path / "killed"
    for steps_before_death in (1, 4):
        process = subprocess.Popen(command("train", *train(killed)), stderr=subprocess.DEVNULL)
        wait_for_steps(killed, steps_before_death, process)
        process.send_signal(signal.SIGKILL)
        process.wait()
    assert call("train", *train(killed)).returncode == 0
    assert digest(killed) == digest(whole)
    steps = [json.loads(line)["step"] for line in (killed / "metrics.jsonl").read_text().splitlines()]
    assert steps == [1, 2, 3, 4, 5, 6]
    for folder in (whole, killed):
        assert list(read_index(folder).steps) == steps
    for step in steps:  # every rollout once, with the same texts, rewards and advantages
        one, other = (list(read_queries(folder, read_index(folder).steps[step])) for folder in (whole, killed))
        for query in (*one, *other):  # a process asks the engine for more log-probabilities at its first step
            for rollout in query["rollouts"]:
                rollout.pop("logprobs", None), rollout.pop("tokens", None)
        assert one == other and [len(query["rollouts"]) for query in one] == [8, 8, 8, 8]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGUSR1, 138)])
def test_signals_save_and_say_so(tmp_path: Path, signum: int, code: int) -> None:
    folder = tmp_path / "out"
    arguments = [*train(folder), "steps=400", "checkpoint.every=1000"]
    process = subprocess.Popen(command("train", *arguments), stderr=subprocess.PIPE, text=True)
    wait_for_steps(folder, 2, process)
    process.send_signal(signum)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == code, errors
    assert "The same command goes on from there" in errors
    assert list((folder / "checkpoints").glob("step-*"))
    assert not list((folder / "checkpoints").glob("tmp-*"))


def wait_for_steps(folder: Path, count: int, process: subprocess.Popen[str] | subprocess.Popen[bytes]) -> None:
    """Until metrics.jsonl has `count` lines, or the process has ended."""
    file = folder / "metrics.jsonl"
    deadline = time.monotonic() + 90
    while time.monotonic() < deadline and process.poll() is None:
        if file.exists() and file.read_bytes().count(b"\n") >= count:
            return
        time.sleep(0.005)
