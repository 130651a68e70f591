"""Provide what a runtime keeps in this package's own way: checkpoints, records, the task."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.checkpoint import CheckpointFolder
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import CheckpointStore, Recorder, Task
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.utils.signals import Stop


class RuntimeDefaults:
    """The part of `interfaces.Runtime` for runtimes that bring none of it themselves."""

    def checkpoints(self, folder: Path, keep: int) -> CheckpointStore:
        """Return checkpoints in `folder`, of which the `keep` newest stay."""
        return CheckpointFolder(folder, keep)

    def wrap_recorder(self, recorder: Recorder, stop: Stop) -> Recorder:
        """Return `recorder`: nothing is recorded beside it."""
        return recorder

    def task(self, cfg: RunConfig) -> Task:
        """Return the task that `cfg.task` names."""
        return make_task(cfg.task, cfg.seed)
