"""NeMo-RL's real CheckpointManager and what we write through it; a policy that writes in the background."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from nemo_tapo.checkpoint import Checkpoint, find_fault
from nemo_tapo.runtime.nemo_rl.checkpoint_manager import (
    NemoCheckpoints,
    choose_checkpoint,
    find_newest_checkpoint,
    seal,
)
from nemo_tapo.runtime.nemo_rl.nemo_logger import NemoRecorder
from nemo_tapo.types import Experience, StepRecord
from nemo_tapo.utils.errors import DiskFull, RuntimeFailure
from nemo_tapo.utils.signals import Stop

nemo_rl = pytest.mark.nemo_rl
CONFIG = {
    "enabled": True, "metric_name": "train:reward/mean", "higher_is_better": True, "keep_top_k": 2, "save_period": 1,
    "save_optimizer": True,
}  # fmt: skip


async def write(path: Path) -> None:
    for part in ("weights", "optimizer"):
        (path / "policy" / part).mkdir(parents=True)
        (path / "policy" / part / "file").write_text(part)


def manager(folder: Path, **changes: Any) -> Any:
    from nemo_tapo.runtime.nemo_rl import compat

    return compat.load("CheckpointManager")({**CONFIG, "checkpoint_dir": str(folder), **changes})


def store(folder: Path, wait: Callable[[], None] = lambda: None, **changes: Any) -> NemoCheckpoints:
    from pydantic import BaseModel

    class Master(BaseModel):
        policy: dict[str, str] = {"model_name": "m"}
        tapo: dict[str, int] = {"m_max": 4}

    loader = SimpleNamespace(state_dict=lambda: {"position": 0})
    policy = SimpleNamespace(finalize_async_save=wait)
    return NemoCheckpoints(manager(folder, **changes), policy, Master(), loader, 32, None, timeout=60.0)


def save(where: NemoCheckpoints, *rewards: float) -> None:
    async def all_of_them() -> None:
        for step, reward in enumerate(rewards, 1):
            await where.save({"step": step, "fingerprint": {"seed": 0}}, write, {"reward/mean": reward})
        await where.settle()

    asyncio.run(all_of_them())


@nemo_rl
def test_nemo_rls_manager_reads_what_we_wrote(tmp_path: Path) -> None:
    save(store(tmp_path), 0.5)
    reader = manager(tmp_path)
    path = reader.get_latest_checkpoint_path()
    assert Path(path).name == "step_1"
    weights, optimizer = reader.get_resume_paths(path)
    assert (weights / "file").read_text() == "weights" and (optimizer / "file").read_text() == "optimizer"
    info = reader.load_training_info(path)
    assert (info["total_steps"], info["current_step"], info["consumed_samples"]) == (1, 1, 32)
    assert info["train:reward/mean"] == 0.5
    assert (Path(path) / "train_dataloader.pt").is_file()
    assert "m_max: 4" in (Path(path) / "config.yaml").read_text()
    found = find_newest_checkpoint(tmp_path)
    assert found is not None and found.step == 1 and found.state["fingerprint"] == {"seed": 0}


@nemo_rl
def test_nemo_rls_setup_reads_the_state(tmp_path: Path) -> None:
    from nemo_rl.algorithms import grpo

    save(store(tmp_path), 0.5)
    info = manager(tmp_path).load_training_info(find_newest_checkpoint(tmp_path).path)  # type: ignore[union-attr]
    if hasattr(grpo, "_get_grpo_save_state"):
        assert grpo._get_grpo_save_state(info).total_steps == 1
    else:  # v0.7.0: the file is the state
        assert info.keys() >= {"consumed_samples", "current_step", "current_epoch", "total_steps", "total_valid_tokens"}


@nemo_rl
def test_the_best_by_metric_and_the_newest_are_kept(tmp_path: Path) -> None:
    save(store(tmp_path), 0.9, 0.1, 0.8, 0.2)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_1", "step_3", "step_4"]


@nemo_rl
def test_the_best_by_validation_is_kept(tmp_path: Path) -> None:
    where = store(tmp_path, metric_name="val:accuracy", keep_top_k=1)

    async def save_all() -> None:
        for step, accuracy in enumerate((0.4, 0.7, 0.5), 1):
            await where.save({"step": step, "fingerprint": {}}, write, {"validation/accuracy": accuracy, "accuracy": 9})
        await where.settle()

    asyncio.run(save_all())
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_2", "step_3"]


@nemo_rl
def test_the_newest_are_kept_without_a_metric(tmp_path: Path) -> None:
    save(store(tmp_path, metric_name=None), 0.9, 0.1, 0.8)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step_2", "step_3"]


@nemo_rl
def test_a_checkpoint_appears_when_the_policy_has_written_it(tmp_path: Path) -> None:
    """main moves the folder in the background; v0.7.0 knows no background writing."""
    written = threading.Event()
    here = store(tmp_path, wait=lambda: written.wait(20) and None)
    if not hasattr(here._manager, "begin_finalization"):
        pytest.skip("this NeMo-RL finishes checkpoints at once")

    async def run() -> None:
        await here.save({"step": 1, "fingerprint": {}}, write, {})
        assert find_newest_checkpoint(tmp_path) is None
        written.set()
        await here.settle()

    asyncio.run(run())
    assert find_newest_checkpoint(tmp_path) is not None


@nemo_rl
def test_writing_that_fails_in_the_background_names_the_checkpoint(tmp_path: Path) -> None:
    def fail() -> None:
        raise OSError("disk gone")

    here = store(tmp_path, wait=fail)
    if not hasattr(here._manager, "begin_finalization"):
        pytest.skip("this NeMo-RL finishes checkpoints at once")
    with pytest.raises(RuntimeFailure, match=r"step_1 was not completed.*disk gone"):
        save(here, 0.5)
    assert find_newest_checkpoint(tmp_path) is None


@nemo_rl
def test_the_manifest_covers_what_was_written_in_the_background(tmp_path: Path) -> None:
    """The folder gets its name when the manifest is in it: nothing of it may come later."""
    here = store(tmp_path, wait=lambda: (tmp_path / "tmp_step_1" / "policy" / "late").write_text("x") and None)
    if not hasattr(here._manager, "begin_finalization"):
        pytest.skip("this NeMo-RL finishes checkpoints at once")
    save(here, 0.5)
    listed = json.loads((tmp_path / "step_1" / "manifest.json").read_text())
    assert listed["policy/late"]["bytes"] == 1 and "tapo.json" in listed and "train_dataloader.pt" in listed
    assert find_fault(tmp_path / "step_1", "tapo.json") is None


@nemo_rl
def test_nemo_rls_setup_loads_the_last_good_checkpoint(tmp_path: Path) -> None:
    save(store(tmp_path), 0.5, 0.6)
    file = tmp_path / "step_2" / "policy" / "weights" / "file"
    file.write_text("wEights")  # of the same length: one bit of a disk
    told: list[str] = []
    found = choose_checkpoint(tmp_path, told.append)
    assert found is not None and found.path == tmp_path / "step_1"
    assert Path(manager(tmp_path).get_latest_checkpoint_path()) == tmp_path / "step_1"
    assert len(told) == 1 and "step_2 is damaged (policy/weights/file has another sha256" in told[0]
    assert "now called damaged_step_2; the run goes on from step_1" in told[0]
    save(store(tmp_path), 0.5, 0.6, 0.7)  # the step again; the manager keeps two and leaves what was set aside
    assert sorted(p.name for p in tmp_path.iterdir()) == ["damaged_step_2", "step_2", "step_3"]
    assert choose_checkpoint(tmp_path, told.append) == find_newest_checkpoint(tmp_path)
    assert len(told) == 1


@nemo_rl
def test_the_loop_is_told_of_a_damaged_checkpoint(tmp_path: Path) -> None:
    told: list[str] = []
    loaded = Checkpoint(tmp_path / "step_1", {"step": 1})
    here = NemoCheckpoints(manager(tmp_path), None, None, None, 32, loaded, ["step_2 is damaged"])
    assert here.latest(told.append) == loaded and told == ["step_2 is damaged"]


@nemo_rl
def test_a_full_disk_leaves_nothing_of_the_attempt(tmp_path: Path) -> None:
    here = store(tmp_path)
    save(here, 0.5)

    async def full(path: Path) -> None:
        (path / "part").write_text("x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFull, match="step_2"):
        asyncio.run(here.save({"step": 2, "fingerprint": {}}, full, {}))
    assert [p.name for p in tmp_path.iterdir()] == ["step_1"]


def test_another_programs_checkpoint_is_refused(tmp_path: Path) -> None:
    (tmp_path / "step_9").mkdir()
    (tmp_path / "tmp_step_10").mkdir()
    with pytest.raises(ValueError, match=r"step_9 has no tapo\.json"):
        find_newest_checkpoint(tmp_path)
    (tmp_path / "step_9" / "tapo.json").write_text(json.dumps({"step": 9, "fingerprint": {}}))
    (tmp_path / "step_10").mkdir()
    (tmp_path / "step_10" / "tapo.json").write_text(json.dumps({"step": 10, "fingerprint": {}}))
    assert find_newest_checkpoint(tmp_path) == Checkpoint(tmp_path / "step_10", {"step": 10, "fingerprint": {}})
    assert find_newest_checkpoint(tmp_path / "nothing") is None


def own(folder: Path, step: int) -> Path:
    path = folder / f"step_{step}"
    path.mkdir()
    (path / "tapo.json").write_text(json.dumps({"step": step}))
    seal(path)
    return path


def test_a_checkpoint_without_its_state_or_manifest_is_damaged_and_all_damaged_is_an_end(tmp_path: Path) -> None:
    told: list[str] = []
    for step in (8, 9, 10):
        own(tmp_path, step)
    (tmp_path / "step_10" / "tapo.json").unlink()
    (tmp_path / "step_9" / "manifest.json").unlink()
    found = choose_checkpoint(tmp_path, told.append)
    assert found == Checkpoint(tmp_path / "step_8", {"step": 8})
    assert [("step_10" in told[0], "step_9" in told[1])] == [(True, True)]
    (tmp_path / "step_8" / "tapo.json").write_text("{}")
    with pytest.raises(ValueError, match=r"every checkpoint under .* is damaged \(step_8: tapo\.json has 2 bytes"):
        choose_checkpoint(tmp_path, told.append)
    assert (tmp_path / "step_8").is_dir()
    assert choose_checkpoint(tmp_path / "nothing", told.append) is None


# ---- NeMo-RL's time limit and logger ---------------------------------------------------------------------------------


class Notes:
    """Our own recorder and NeMo-RL's Logger, both as lists."""

    def __init__(self) -> None:
        self.warnings: list[str] = []
        self.steps: list[dict[str, float]] = []
        self.logged: dict[str, dict[str, float]] = {}

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None:
        self.warnings.append(text)

    def resume(self, step: int, history: object) -> None: ...

    def history(self) -> list[str]:
        return []

    def step(self, record: StepRecord) -> None:
        self.steps.append(dict(record.metrics))

    def log_metrics(self, metrics: dict[str, float], step: int, prefix: str = "", step_finished: bool = False) -> None:
        self.logged[prefix] = metrics


METRICS = {"reward/mean": 0.5, "loss": 0.1, "time/step": 3.0, "time/update": 1.0, "tokens/trained": 10.0}


@nemo_rl
@pytest.mark.parametrize(("limit", "stops"), [("00:00:00:00", True), ("01:00:00:00", False), (None, False)])
def test_the_time_limit_asks_for_a_checkpoint_and_an_end(limit: str | None, stops: bool) -> None:
    from nemo_tapo.runtime.nemo_rl import compat

    notes, stop = Notes(), Stop()
    timeout = compat.load("TimeoutChecker")(timeout=limit, fit_last_save_time=True)
    recorder = NemoRecorder(notes, notes, timeout, stop, lambda: {"training_prep": 0.5})
    recorder.resume(1, ())
    recorder.step(StepRecord(1, dict(METRICS), Experience(), [], []))
    assert stop.requested is stops
    assert bool(notes.warnings) is stops
    if stops:
        assert stop.signum == signal.SIGUSR1  # the launcher requeues the job
        stop._on_signal(signal.SIGUSR1, None)  # the scheduler's own follows: still one request


def test_numbers_go_to_nemo_rls_logger_under_its_names() -> None:
    notes = Notes()
    timeout = SimpleNamespace(start_iterations=lambda: None, mark_iteration=lambda: None, check_save=lambda: False)
    recorder = NemoRecorder(notes, notes, timeout, Stop(), lambda: {"training_prep": 0.5})
    recorder.step(StepRecord(1, dict(METRICS), Experience(), [], []))
    assert notes.logged["train"] == {
        "reward/mean": 0.5, "reward": 0.5, "loss": 0.1, "tokens/trained": 10.0, "global_valid_toks": 10.0,
    }  # fmt: skip
    assert "validation" not in notes.logged
    validated = {"validation/accuracy": 0.25, "validation/sums/accuracy": 0.25, "time/validation": 2.0}
    recorder.step(StepRecord(2, METRICS | validated, Experience(), [], []))
    assert notes.logged["validation"] == {"accuracy": 0.25, "sums/accuracy": 0.25}
    assert not any("validation" in name for name in notes.logged["train"])
    assert notes.logged["timing/train"] == {"total_step_time": 3.0, "policy_training": 1.0, "training_prep": 0.5}
    assert notes.steps[0]["time/nemo_rl/training_prep"] == 0.5
