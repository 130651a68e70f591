"""Tell the state of one run that may still be at work, from the files in its folder."""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.evaluation.tables import make_tables
from nemo_tapo.report import summary
from nemo_tapo.tracking.records import METRICS_FILE
from nemo_tapo.utils.run_folder import CONFIG, LOCK
from nemo_tapo.watch.run_metrics import RunMetrics
from nemo_tapo.watch.samples import RunSamples

RECENT = 120.0  # seconds: a run whose lock cannot be seen (another machine's) is at work if it wrote so lately
LOCK_TABLE = Path("/proc/locks")


class WatchedRun:
    """One run folder. `refresh` reads what was added; hold `lock` while using the rest."""

    def __init__(self, name: str, folder: Path) -> None:
        self.name, self.folder = name, folder
        self.lock = threading.Lock()
        self.metrics, self.samples = RunMetrics(folder), RunSamples(folder)
        self._config: Mapping[str, Any] = {}
        self._config_time = 0.0
        self._config_note = ""

    def refresh(self) -> None:
        """Read what was added to the run's files."""
        self._read_config()
        self.metrics.refresh()
        self.samples.refresh()

    def describe(self) -> dict[str, Any]:
        """Return the state of the run as the page shows it at its head."""
        steps = self.metrics.steps
        updated = _modified(self.folder / METRICS_FILE)
        planned = self._config.get("steps")
        return {
            "name": self.name,
            "folder": str(self.folder),
            "state": self._find_state(planned, updated),
            "step": steps[-1] if steps else 0,
            "planned": planned if isinstance(planned, int) else None,
            "algorithm": self._config.get("algorithm"),
            "seconds_ago": round(time.time() - updated, 1) if updated else None,
            "rows": len(steps),
            "versions": [self.metrics.version, self.samples.version],
            "sample_steps": len(self.samples.steps),
            "notes": self.notes(),
        }

    def describe_settings(self) -> dict[str, Any]:
        """Return the settings that distinguish runs and the tables of the evaluation."""
        notes: list[str] = []
        tables = []
        try:
            tables = make_tables(summary.read_evaluation(self.folder))
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            notes.append(f"evaluation.json cannot be shown: {error}")
        return {
            "settings": summary.list_highlights(self._config),
            "tables": [{"title": table.title, "head": list(table.head), "rows": table.rows} for table in tables],
            "notes": notes,
        }

    def notes(self) -> list[str]:
        """Return a sentence for everything that is not there or cannot be read."""
        notes = [self._config_note] * bool(self._config_note)
        if not self.metrics.steps:
            notes.append(f"{METRICS_FILE} has no step yet, so there are no curves.")
        return notes + self.metrics.notes() + self.samples.notes()

    def _find_state(self, planned: Any, updated: float) -> str:
        if is_locked(self.folder / LOCK):
            return "running"
        if isinstance(planned, int) and self.metrics.steps and self.metrics.steps[-1] >= planned:
            return "finished"
        if updated and time.time() - updated < RECENT:
            return "running"
        return "stopped" if self.metrics.steps else "not started"

    def _read_config(self) -> None:
        path = self.folder / CONFIG
        modified = _modified(path)
        if modified == self._config_time:
            return
        self._config_time, self._config_note = modified, ""
        try:
            config = yaml.safe_load(path.read_text(encoding="utf-8"))
            self._config = config if isinstance(config, dict) else {}
        except (OSError, UnicodeDecodeError, yaml.YAMLError):
            self._config, self._config_note = {}, f"{CONFIG} cannot be read, so the settings are not shown."


def is_locked(path: Path) -> bool:
    """Return True if a process of this machine holds the file's lock. Taking it to find out could turn a run away."""
    try:
        status = path.stat()
        table = LOCK_TABLE.read_text()
    except OSError:
        return False
    place = f"{os.major(status.st_dev):02x}:{os.minor(status.st_dev):02x}:{status.st_ino}"
    return any(place in line.split() for line in table.splitlines())


def _modified(path: Path) -> float:
    """Return when a file was last written, seconds since 1970; 0 if it is not there."""
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
