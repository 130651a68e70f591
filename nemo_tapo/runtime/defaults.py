"""What a runtime keeps in this package's own way: checkpoints, records, the task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo import checkpoint, interfaces
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Task
from nemo_tapo.tasks.registry import make_task

if TYPE_CHECKING:
    from nemo_tapo.interfaces import Recorder
    from nemo_tapo.utils.signals import Stop


class OwnServices:
    """The part of `interface.Runtime` for runtimes that bring none of these themselves."""

    def checkpoints(self, folder: Path, keep: int) -> interfaces.Store:
        """Checkpoints in `folder`, the `keep` newest kept."""
        return checkpoint.Folder(folder, keep)

    def recorder(self, own: Recorder, stop: Stop) -> Recorder:
        """`own`, and nothing beside it."""
        return own

    def task(self, cfg: RunConfig) -> Task:
        """The task that `cfg.task` names."""
        return make_task(cfg.task, cfg.seed)
