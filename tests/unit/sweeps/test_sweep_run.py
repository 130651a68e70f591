"""`nemo-tapo sweep` as real processes on the scripted runtime: skips, continues, fails, stops, is killed."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from nemo_tapo.commands.sweep import parse_request
from nemo_tapo.sweeps.expand import SweepJob, expand_sweeps
from nemo_tapo.sweeps.serial import ChildProcess, get_log_size, read_failure_reason, run_jobs
from nemo_tapo.sweeps.state import Failure, RunState, list_changed_settings, read_failure, read_run_state

ROOT = Path(__file__).parents[3]
BASE = ROOT / "examples" / "configs" / "sweep-tiny-1n0g.yaml"
SMALL = [
    "runtime=scripted", "steps=4", "rollout.max_tokens=300", "tapo.max_tokens=700", "model.max_length=3000",
    "rollout.queries_per_step=4", "task.arithmetic.train_queries=64", "evaluation.problems=12", "evaluation.runs=1",
    "checkpoint.every=1", "checkpoint.min_free_gib=0", f"model.path={ROOT / 'assets' / 'tiny-coldstart'}",
]  # fmt: skip
TWO = "title: two rows\nrows: [{name: coldstart, label: C, train: false}, {name: tapo, label: T}]\n"


def words(folder: Path, *more: str) -> list[str]:
    (folder / "two.yaml").write_text(TWO)
    return [str(folder / "two.yaml"), f"output={folder / 'out'}", *SMALL, *more]


def start(folder: Path, *more: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_tapo.cli", "sweep", "--config", str(BASE), *words(folder, *more)],
        env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
    )  # fmt: skip


def run(folder: Path, *more: str, expect: int = 0) -> str:
    process = start(folder, *more)
    printed, _ = process.communicate(timeout=120)
    assert process.returncode == expect, printed[-3000:]
    assert "Traceback" not in printed
    return printed


def states(folder: Path, *more: str) -> dict[str, str]:
    found = expand_sweeps(parse_request(words(folder, *more), BASE)).jobs
    return {job.name: read_run_state(job).value for job in found}


def until(seen: Path, process: subprocess.Popen[str], lines: int = 1) -> None:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.poll() is None:
        if seen.is_file() and seen.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.01)
    pytest.fail(f"{seen} did not come")


def child_of(process: subprocess.Popen[str]) -> psutil.Process:
    [child] = psutil.Process(process.pid).children()
    return child


@pytest.fixture(scope="module")
def done(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep that went through; not to be changed."""
    folder = tmp_path_factory.mktemp("done")
    printed = run(folder)
    assert "1 of 2, coldstart/seed-0: starts" in printed
    assert "2 of 2 runs are done" in printed
    return folder


def test_what_is_done_is_skipped(done: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in done.rglob("*") if path.is_file() and path.suffix != ".yaml"}
    again = run(done)
    assert "starts" not in again
    assert "2 of 2 runs are done" in again
    assert {path: path.stat().st_mtime_ns for path in before} == before
    assert states(done, "seeds=2") == {
        "coldstart/seed-0": "done", "tapo/seed-0": "done", "coldstart/seed-1": "new", "tapo/seed-1": "new",
    }  # fmt: skip
    assert states(done, "evaluation.runs=2") == {"coldstart/seed-0": "half-way", "tapo/seed-0": "half-way"}


def test_other_settings_are_one_sentence_and_nothing_is_overwritten(done: Path) -> None:
    before = (done / "out" / "tapo" / "seed-0" / "config.yaml").read_bytes()
    printed = run(done, "optimizer.lr=1e-5", expect=2)
    assert (
        f"{done / 'out' / 'tapo' / 'seed-0'} holds a run with other settings (optimizer.lr: 0.0001 -> 1e-05)" in printed
    )
    assert "coldstart" not in printed  # an evaluation has no learning rate
    assert (done / "out" / "tapo" / "seed-0" / "config.yaml").read_bytes() == before


def test_settings_that_change_no_number_do_not_matter(done: Path) -> None:
    for free in ("local.dp=1", "checkpoint.keep=3", "pipeline=barrier", "opsd.beta=1", "coldstart.epochs=9"):
        for job in expand_sweeps(parse_request(words(done, free), BASE)).jobs:
            assert list_changed_settings(job) == [], free


def test_a_failed_run_is_noted_and_the_others_go_on(tmp_path: Path) -> None:
    """The first row's folder holds samples of other weights: its evaluation refuses."""
    evaluation = tmp_path / "out" / "coldstart" / "seed-0" / "evaluation" / "before"
    evaluation.mkdir(parents=True)
    settings = {"model": {"weights": "others"}, "runs": 1, "samples": 5}
    (evaluation / "settings.json").write_text(json.dumps(settings))
    printed = run(tmp_path, expect=1)
    assert "2 of 2, tapo/seed-0: done" in printed
    assert "1 of 2 runs are done" in printed
    assert "coldstart/seed-0 failed with exit code 2: " in printed
    found = read_failure(tmp_path / "out" / "coldstart" / "seed-0")
    assert found is not None and found.code == 2
    assert "holds samples of other settings" in found.reason
    assert states(tmp_path) == {"coldstart/seed-0": "failed", "tapo/seed-0": "done"}
    (evaluation / "settings.json").unlink()  # what the sentence says
    assert "failed before, is tried again" in run(tmp_path)
    assert read_failure(tmp_path / "out" / "coldstart" / "seed-0") is None


def test_a_signal_stops_the_run_and_the_sweep_and_both_go_on(tmp_path: Path) -> None:
    long = "steps=60"
    process = start(tmp_path, long)
    until(tmp_path / "out" / "tapo" / "seed-0" / "metrics.jsonl", process, lines=2)
    child = child_of(process)
    process.send_signal(signal.SIGINT)
    printed, _ = process.communicate(timeout=60)
    assert process.returncode == 130, printed[-2000:]
    assert "the sweep was at tapo/seed-0, 1 of 2 runs are done. The same command goes on from there." in printed
    assert not child.is_running()
    assert states(tmp_path, long)["tapo/seed-0"] == "half-way"
    steps = (tmp_path / "out" / "tapo" / "seed-0" / "metrics.jsonl").read_text().count("\n")
    printed = run(tmp_path, long)
    assert "tapo/seed-0: goes on where it was stopped" in printed
    assert f"{steps}/60" in printed.split("goes on where it was stopped")[1]  # not from the beginning


def test_a_killed_sweep_goes_on_and_waits_for_the_run_that_it_left(tmp_path: Path) -> None:
    process = start(tmp_path, "steps=60")
    until(tmp_path / "out" / "tapo" / "seed-0" / "metrics.jsonl", process)
    orphan = child_of(process)
    process.kill()
    process.communicate(timeout=20)
    assert orphan.is_running()
    printed = run(tmp_path, "steps=60")
    assert "another process is at work" in printed or not orphan.is_running()
    assert "2 of 2 runs are done" in printed
    steps = [json.loads(line)["step"] for line in (tmp_path / "out/tapo/seed-0/metrics.jsonl").read_text().splitlines()]
    assert steps == list(range(1, 61))


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path: Path, done: Path) -> None:
    """SIGKILL to the sweep and its run."""
    process = start(tmp_path)
    until(tmp_path / "out" / "tapo" / "seed-0" / "metrics.jsonl", process)
    child = child_of(process)
    for each in (child, process):
        each.kill()
    process.communicate(timeout=20)
    run(tmp_path)
    one, two = (json.loads((f / "out/tapo/seed-0/evaluation.json").read_text()) for f in (tmp_path, done))
    assert one["after"]["benchmarks"] == two["after"]["benchmarks"]
    weights = [(f / "out/tapo/seed-0/hf/model.safetensors").read_bytes() for f in (tmp_path, done)]
    assert weights[0] == weights[1]


def test_a_folder_at_work_is_waited_for_and_ctrl_c_ends_the_wait(tmp_path: Path) -> None:
    folder = tmp_path / "out" / "coldstart" / "seed-0"
    folder.mkdir(parents=True)
    with (folder / "sweep.lock").open("ab") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        process = start(tmp_path)
        assert process.stdout is not None
        assert "another process is at work" in process.stdout.readline()
        process.send_signal(signal.SIGINT)
        printed, _ = process.communicate(timeout=20)
    assert process.returncode == 130, printed
    assert not (folder / "config.yaml").exists()


def test_half_written_folders(tmp_path: Path) -> None:
    """Whatever a kill may leave is a run that goes on, or a sentence."""
    [_, job] = expand_sweeps(parse_request(words(tmp_path), BASE)).jobs
    assert read_run_state(job) is RunState.NEW
    job.folder.mkdir(parents=True)
    assert read_run_state(job) is RunState.NEW
    (job.folder / "evaluation.json").write_text('{"before": {"settings": {"runs": 1, "samples": 5}}}')
    assert read_run_state(job) is RunState.NEW  # the row ends in "after"
    (job.folder / "evaluation.json").write_text('{"after": {"set')
    with pytest.raises(ValueError, match=r"evaluation\.json is not JSON: remove it"):
        read_run_state(job)
    (job.folder / "config.yaml").write_text("steps: [")
    with pytest.raises(ValueError, match=r"config\.yaml: "):
        list_changed_settings(job)


def test_an_attempt_is_explained_by_its_own_words(tmp_path: Path) -> None:
    """What an earlier attempt said stands before it in the same log."""
    log = tmp_path / "sweep.log"
    log.write_text("nemo-tapo: no room on the disk\nsome line\n")
    begin = get_log_size(log)
    with log.open("a") as file:
        file.write("Traceback\nMemoryError: of this attempt\n")
    assert read_failure_reason(log, 1, begin) == "MemoryError: of this attempt"
    assert read_failure_reason(log, 1) == "no room on the disk"
    assert read_failure_reason(log, 1, get_log_size(log)) == "it said nothing"
    assert read_failure_reason(log, -9, begin) == "killed by SIGKILL"
    assert get_log_size(tmp_path / "none") == 0


def test_a_second_failure_is_not_told_in_the_words_of_the_first(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    [job, _] = expand_sweeps(parse_request(words(tmp_path), BASE)).jobs
    job.folder.mkdir(parents=True)
    (job.folder / "sweep.log").write_text("nemo-tapo: the old reason\n")

    def fails(job: SweepJob, config: Path, child: ChildProcess, lock: int) -> int:
        with (job.folder / "sweep.log").open("a") as log:
            log.write("the new reason\n")
        return 1

    monkeypatch.setattr("nemo_tapo.sweeps.serial.run_one", fails)
    [(_, found)] = run_jobs([job], BASE)
    assert found == read_failure(job.folder) == Failure(1, "the new reason")


def test_dry_run_starts_nothing(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    from nemo_tapo.cli import main

    assert main(["sweep", *words(tmp_path), "--config", str(BASE), "--dry-run", "seeds=2"]) == 0
    printed = capfd.readouterr().out
    assert printed.count("nemo-tapo run --config") == 4
    assert "4 runs" in printed
    assert not (tmp_path / "out").exists()
    assert main(["sweep", *words(tmp_path), "--config", str(BASE), "--list", str(tmp_path / "list.jsonl")]) == 0
    assert (tmp_path / "list.jsonl").read_text().count("\n") == 2
    assert not (tmp_path / "out").exists()


def test_slurm_gets_the_same_runs(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    """The launcher's own dry run: nothing is submitted."""
    from nemo_tapo.cli import main

    options = f"--dry-run --nodes 1 --time 1:00:00 --python {sys.executable}"
    assert main(["sweep", *words(tmp_path), "--config", str(BASE), "--slurm", options]) == 0
    script = capfd.readouterr().out
    assert "#SBATCH --array=0-1" in script
    for name in ("coldstart", "tapo"):
        assert f"export NT_RUN={tmp_path / 'out' / name / 'seed-0'}" in script
    assert (tmp_path / "out" / "sweeps" / "two.yaml").is_file()
