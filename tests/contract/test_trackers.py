"""The services' own packages, offline, as NeMo-RL's environment has them: what a run sends can be read back."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from nemo_tapo.config.sections import LoggerConfig, MlflowConfig
from nemo_tapo.tracking.trackers import Trackers, check_trackers

pytestmark = pytest.mark.nemo_rl
SETTINGS = {f"section.key{i}": "x" * 600 for i in range(150)}


def test_mlflow_keeps_the_numbers_of_a_resumed_run(tmp_path: Path) -> None:
    from mlflow import MlflowClient

    uri = f"sqlite:///{tmp_path}/mlflow.db"
    cfg = LoggerConfig(mlflow_enabled=True, mlflow=MlflowConfig(tracking_uri=uri, experiment_name="e", run_name="r"))
    check_trackers(cfg)
    for steps in ((1, 2, 3), (3, 4)):  # the second process makes step 3 again
        trackers = Trackers(cfg, tmp_path, SETTINGS, pytest.fail)
        for step in steps:
            trackers.log(step, {"loss": step / 4, "grade/no answer?": 1.0, "entropy": float("nan")})
        trackers.close()
    client = MlflowClient(uri)
    (run,) = client.search_runs([client.get_experiment_by_name("e").experiment_id])
    assert (run.info.run_name, run.info.status, len(run.data.params)) == ("r", "FINISHED", 150)
    history = client.get_metric_history(run.info.run_id, "loss")
    assert [(m.step, m.value) for m in history] == [(1, 0.25), (2, 0.5), (3, 0.75), (4, 1.0)]
    assert set(run.data.metrics) == {"loss", "grade/no answer_"}


@pytest.mark.parametrize("name", ["wandb", "swanlab"])
def test_offline_runs_are_written_below_the_output(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "offline")
    monkeypatch.setenv("WANDB_SILENT", "true")
    monkeypatch.setenv("SWANLAB_MODE", "offline")
    cfg = LoggerConfig(**{f"{name}_enabled": True})
    check_trackers(cfg)
    for steps in ((1, 2), (3,)):
        trackers = Trackers(cfg, tmp_path, {"seed": 0}, pytest.fail)
        for step in steps:
            trackers.log(step, {"loss": step / 4})
        trackers.close()
    written = b"".join(Path(top, file).read_bytes() for top, _, files in os.walk(tmp_path) for file in files)
    assert b"loss" in written
