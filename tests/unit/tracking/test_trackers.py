"""Trackers: what a run sends where, once a step, over resumes and failures; a missing package is named."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.sections import LoggerConfig
from nemo_tapo.tracking import trackers
from nemo_tapo.tracking.trackers import Trackers, check_trackers
from tests.helpers.command import nemo_tapo

BOTH = LoggerConfig(wandb_enabled=True, mlflow_enabled=True)


class Service:
    """A stand-in for a service: keeps what it is sent, and fails at the steps in `fails`."""

    def __init__(self, run_id: str | None, fails: tuple[int, ...] = ()) -> None:
        self.run_id, self.fails = run_id or "first", fails
        self.sent: dict[int, dict[str, float]] = {}
        self.finished = False

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        if step in self.fails:
            raise ConnectionError("no route")
        assert step not in self.sent
        self.sent[step] = dict(metrics)

    def finish(self) -> None:
        self.finished = True


@pytest.fixture
def services(monkeypatch: pytest.MonkeyPatch) -> dict[str, Service]:
    made: dict[str, Service] = {}

    def make(name: str, fails: tuple[int, ...] = ()) -> Any:
        def begin(cfg: LoggerConfig, folder: Path, settings: Any, run_id: str | None) -> Service:
            made[name] = Service(run_id, fails)
            return made[name]

        return begin

    monkeypatch.setattr(
        trackers, "KINDS", {"wandb": make("wandb"), "swanlab": make("swanlab"), "mlflow": make("mlflow", (2,))}
    )
    return made


def test_a_resumed_run_goes_on_where_each_service_was(tmp_path: Path, services: dict[str, Service]) -> None:
    cfg = LoggerConfig(wandb_enabled=True)
    first = Trackers(cfg, tmp_path, {}, pytest.fail)
    for step in (1, 2, 3):
        first.log(step, {"loss": float(step), "nothing": float("nan")})
    first.close()
    assert services["wandb"].sent == {1: {"loss": 1.0}, 2: {"loss": 2.0}, 3: {"loss": 3.0}}
    assert services["wandb"].finished and services.keys() == {"wandb"}
    services["wandb"].run_id = "of this run"
    (tmp_path / "trackers.json").write_text(json.dumps({"wandb": {"run": "of this run", "step": 3}}))
    again = Trackers(cfg, tmp_path, {}, pytest.fail)
    assert services["wandb"].run_id == "of this run"
    for step in (3, 4):  # step 3 is made again, after the checkpoint of step 2
        again.log(step, {"loss": float(step)})
    assert services["wandb"].sent == {4: {"loss": 4.0}}
    assert json.loads((tmp_path / "trackers.json").read_text()) == {"wandb": {"run": "of this run", "step": 4}}


def test_a_service_that_fails_is_told_once_and_left(tmp_path: Path, services: dict[str, Service]) -> None:
    told: list[str] = []
    both = Trackers(BOTH, tmp_path, {}, told.append)
    for step in (1, 2, 3):
        both.log(step, {"loss": 0.5})
    both.close()
    assert list(services["wandb"].sent) == [1, 2, 3] and list(services["mlflow"].sent) == [1]
    assert len(told) == 1 and told[0].startswith("mlflow failed at step 2 (no route)")
    assert not services["mlflow"].finished


def test_a_service_that_does_not_start_ends_the_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*arguments: Any) -> Service:
        raise RuntimeError("api_key not configured")

    monkeypatch.setattr(trackers, "KINDS", {"wandb": refuse})
    with pytest.raises(ValueError, match=r"wandb does not start .api_key not configured"):
        Trackers(LoggerConfig(wandb_enabled=True), tmp_path, {}, pytest.fail)


def test_a_missing_package_is_named_before_anything_starts(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, services: dict[str, Service]
) -> None:
    monkeypatch.setattr(trackers, "find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"mlflow_enabled needs the package mlflow: pip install 'nemo-tapo.trackers"):
        check_trackers(LoggerConfig(mlflow_enabled=True))
    check_trackers(LoggerConfig())
    done = nemo_tapo("train", f"output={tmp_path / 'run'}", "runtime=scripted", "logger.wandb_enabled=true")
    assert done.returncode == 2 and "needs the package wandb" in done.stderr
    assert not (tmp_path / "run").exists()
