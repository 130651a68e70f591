"""Send the numbers of RL to Weights & Biases, MLflow and SwanLab as well, by the keys of NeMo-RL's `logger` section.

    logger: {wandb_enabled: true, wandb: {project: tapo, name: seed-0}}

The packages are optional (`pip install 'nemo-tapo[trackers]'`) and imported when a run begins. Where and whether they
send anything is theirs to decide: WANDB_MODE=offline, SWANLAB_MODE=offline, an MLflow `tracking_uri` on disk.

`<output>/trackers.json` has each one's run and its last step, so that a resumed run goes on in the same one and sends
no step twice. A service that fails is told and left out; metrics.jsonl has every number in any case.
"""

from __future__ import annotations

import importlib
import json
import math
import re
import time
from collections.abc import Callable, Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Protocol

from nemo_tapo.config.sections import LoggerConfig
from nemo_tapo.utils.files import write_json

STATE_FILE = "trackers.json"
Settings = Mapping[str, Any]  # of the run, flat: shown beside its numbers
MOST_PARAMETERS = 100  # of one call to MLflow, which also cuts values at 500 characters


class Tracker(Protocol):
    """One service with one run in it."""

    run_id: str  # by which a later process finds the run again

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send the numbers of a step."""

    def finish(self) -> None:
        """Say that the process ends."""


class Wandb:
    """Weights & Biases."""

    def __init__(self, cfg: LoggerConfig, folder: Path, settings: Settings, run_id: str | None) -> None:
        self._run = importlib.import_module("wandb").init(
            project=cfg.wandb.project,
            entity=cfg.wandb.entity,
            name=cfg.wandb.name or folder.resolve().name,
            dir=str(folder),
            config=dict(settings),
            id=run_id,
            resume="allow" if run_id else None,
        )
        self.run_id = str(self._run.id)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._run.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._run.finish()


class SwanLab:
    """SwanLab."""

    def __init__(self, cfg: LoggerConfig, folder: Path, settings: Settings, run_id: str | None) -> None:
        self._swanlab = importlib.import_module("swanlab")
        run = self._swanlab.init(
            project=cfg.swanlab.project,
            name=cfg.swanlab.name or folder.resolve().name,
            log_dir=str(folder / "swanlog"),
            config=dict(settings),
            **({"id": run_id, "resume": "allow"} if run_id else {}),
        )
        self.run_id = str(getattr(run, "id", "") or "")

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        self._swanlab.log(dict(metrics), step=step)

    def finish(self) -> None:
        self._swanlab.finish()


class MLflow:
    """MLflow, through its client: no state of the process is touched."""

    def __init__(self, cfg: LoggerConfig, folder: Path, settings: Settings, run_id: str | None) -> None:
        entities = importlib.import_module("mlflow.entities")
        self._make_metric = entities.Metric
        self._client = importlib.import_module("mlflow").MlflowClient(cfg.mlflow.tracking_uri)
        if run_id:
            self.run_id = run_id
            self._client.update_run(run_id, "RUNNING")
            return
        found = self._client.get_experiment_by_name(cfg.mlflow.experiment_name)
        experiment = found.experiment_id if found else self._client.create_experiment(cfg.mlflow.experiment_name)
        run = self._client.create_run(experiment, run_name=cfg.mlflow.run_name or folder.resolve().name)
        self.run_id = str(run.info.run_id)
        parameters = [entities.Param(_clean(key), str(value)[:500]) for key, value in settings.items()]
        for begin in range(0, len(parameters), MOST_PARAMETERS):
            self._client.log_batch(self.run_id, params=parameters[begin : begin + MOST_PARAMETERS])

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        now = int(time.time() * 1000)
        self._client.log_batch(
            self.run_id, metrics=[self._make_metric(_clean(key), value, now, step) for key, value in metrics.items()]
        )

    def finish(self) -> None:
        self._client.set_terminated(self.run_id)


def _clean(name: str) -> str:
    """Return a name that MLflow takes.

    >>> _clean("grade/no answer?")
    'grade/no answer_'
    """
    return re.sub(r"[^\w\-./ ]", "_", name)


KINDS: dict[str, Callable[[LoggerConfig, Path, Settings, str | None], Tracker]] = {
    "wandb": Wandb,
    "swanlab": SwanLab,
    "mlflow": MLflow,
}


def list_enabled(cfg: LoggerConfig) -> list[str]:
    """Return the packages whose services are enabled.

    >>> list_enabled(LoggerConfig(mlflow_enabled=True))
    ['mlflow']
    """
    return [name for name in KINDS if getattr(cfg, f"{name}_enabled")]


def check_trackers(cfg: LoggerConfig) -> None:
    """Raise ValueError if a service is enabled whose package is not installed."""
    for name in list_enabled(cfg):
        spec = find_spec(name)
        if spec is None or spec.origin is None:  # no origin: a folder of that name, as these packages leave behind
            raise ValueError(f"logger.{name}_enabled needs the package {name}: pip install 'nemo-tapo[trackers]'.")


class Trackers:
    """The enabled services of a run."""

    def __init__(self, cfg: LoggerConfig, folder: Path, settings: Settings, warn: Callable[[str], None]) -> None:
        """Begin or continue the run of each service in `folder`. Raises ValueError if one cannot begin."""
        self._file, self._warn = folder / STATE_FILE, warn
        self._known: dict[str, dict[str, Any]] = json.loads(self._file.read_text()) if self._file.is_file() else {}
        self._open: dict[str, Tracker] = {}
        for name in list_enabled(cfg):
            try:
                tracker = KINDS[name](cfg, folder, settings, self._known.get(name, {}).get("run") or None)
            except Exception as error:  # each package has errors of its own
                raise ValueError(f"logger.{name}_enabled: {name} does not start ({error}).") from error
            self._open[name] = tracker
            self._known[name] = {"run": tracker.run_id, "step": self._known.get(name, {}).get("step", 0)}
        if self._open:
            folder.mkdir(parents=True, exist_ok=True)
            write_json(self._file, self._known)

    def log(self, step: int, metrics: Mapping[str, float]) -> None:
        """Send a step to every service that has not had it; numbers that are not finite are left out."""
        finite = {key: float(value) for key, value in metrics.items() if math.isfinite(value)}
        for name, tracker in list(self._open.items()):
            if step <= self._known[name]["step"]:
                continue
            try:
                tracker.log(step, finite)
            except Exception as error:  # a service that is down must not end a training run
                del self._open[name]
                self._warn(f"{name} failed at step {step} ({error}); it gets no more numbers, metrics.jsonl has all")
                continue
            self._known[name]["step"] = step
            write_json(self._file, self._known)

    def close(self) -> None:
        """End the process's part; a service that fails at it is told."""
        for name, tracker in self._open.items():
            try:
                tracker.finish()
            except Exception as error:
                self._warn(f"{name} failed at its end ({error}); metrics.jsonl has every number")
        self._open = {}
