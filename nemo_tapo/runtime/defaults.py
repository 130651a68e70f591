"""Default implementations of checkpoints, recording and the task for a runtime."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from nemo_tapo.checkpoint import CheckpointFolder
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import CheckpointStore, Recorder, Task
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.utils.signals import Stop


class RuntimeDefaults:
    """The part of `interfaces.Runtime` that most runtimes share. A runtime overrides what it does differently."""

    def checkpoints(self, folder: Path, keep: int) -> CheckpointStore:
        """Return a store that writes checkpoints into `folder` and keeps the newest `keep`."""
        return CheckpointFolder(folder, keep)

    def wrap_recorder(self, recorder: Recorder, stop: Stop) -> Recorder:
        """Return `recorder` unchanged: the runtime records nothing of its own."""
        return recorder

    def processes(self) -> Mapping[str, Sequence[int]]:
        """Return nothing: the runtime has no process of its own on this machine."""
        return {}

    def task(self, cfg: RunConfig) -> Task:
        """Return the task that `cfg.task` names."""
        return make_task(cfg.task, cfg.seed)
