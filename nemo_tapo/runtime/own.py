"""What a runtime keeps in this package's own way: checkpoints, records, the task."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo import checkpoint
from nemo_tapo.config import RunConfig
from nemo_tapo.tasks.interface import Task
from nemo_tapo.tasks.make import make_task

if TYPE_CHECKING:
    from nemo_tapo.stop import Stop
    from nemo_tapo.train import Recorder


class OwnServices:
    """The part of `interface.Runtime` for runtimes that bring none of these themselves."""

    def checkpoints(self, folder: Path, keep: int) -> checkpoint.Store:
        """Checkpoints in `folder`, the `keep` newest kept."""
        return checkpoint.Folder(folder, keep)

    def recorder(self, own: Recorder, stop: Stop) -> Recorder:
        """`own`, and nothing beside it."""
        return own

    def task(self, cfg: RunConfig) -> Task:
        """The task that `cfg.task` names."""
        return make_task(cfg.task, cfg.seed)
