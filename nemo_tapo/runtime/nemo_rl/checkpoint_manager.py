"""Save checkpoints in NeMo-RL's layout: `interfaces.CheckpointStore` over its CheckpointManager.

    <checkpointing.checkpoint_dir>/step_20/
        training_info.json       NeMo-RL's: steps, and the metric by which keep_top_k ranks checkpoints
        config.yaml              NeMo-RL's: the whole configuration, which its converters read
        policy/{weights,optimizer,tokenizer}
        train_dataloader.pt      NeMo-RL's setup requires it; not used here, as queries are a function of (seed, step):
                                 see datasets/query_order.py
        tapo.json                this package's: the step and the settings that decide the numbers

NeMo-RL also decides which checkpoints are kept (keep_top_k, metric_name).
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_tapo.checkpoint import Checkpoint, Warn, Write, remove_on_failure
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.colocation import run_blocking
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.files import write_json

STATE_FILE = "tapo.json"


class NemoCheckpoints:
    """The CheckpointStore over NeMo-RL's CheckpointManager; see the module docstring.

    The final name may appear after `save` has returned: Megatron writes in the background.
    """

    def __init__(
        self, manager: Any, policy: Any, master: Any, dataloader: Any, queries_per_step: int, loaded: Checkpoint | None
    ) -> None:
        """Wrap `manager`, a CheckpointManager.

        `loaded` is the checkpoint that the policy was made from (see `find_newest_checkpoint`).
        """
        self._manager, self._policy, self._master = manager, policy, master
        self._dataloader, self._queries, self._loaded = dataloader, queries_per_step, loaded
        self._pending: Path | None = None

    def latest(self, warn: Warn) -> Checkpoint | None:
        """Return the checkpoint that the policy was made from: NeMo-RL loads weights only at that time."""
        return self._loaded

    async def save(self, state: dict[str, Any], write: Write, metrics: Mapping[str, float]) -> None:
        """Save as `interfaces.CheckpointStore` says.

        Raises DiskFull if there is no room, RuntimeFailure if the previous checkpoint was not completed.
        """
        await self.settle()
        step = int(state["step"])
        final = Path(self._manager.checkpoint_dir) / f"step_{step}"
        info = self._training_info(step, metrics)
        with remove_on_failure(final.with_name(f"tmp_step_{step}"), final):
            folder = Path(self._manager.init_tmp_checkpoint(step, info, self._master))
            await write(folder)
            compat.save_dataloader(self._dataloader, folder)
            write_json(folder / STATE_FILE, state)
        compat.begin_checkpoint(self._manager, folder, self._policy)
        self._pending = final

    async def settle(self) -> None:
        """Wait as `interfaces.CheckpointStore` says.

        Raises RuntimeFailure with the folder's name if the checkpoint did not reach its final name.
        """
        if self._pending is None:
            return
        final, self._pending = self._pending, None
        try:
            await run_blocking(lambda: compat.end_checkpoints(self._manager))
        except Exception as error:  # NeMo-RL wraps any error of its thread
            cause = error.__cause__ or error
            raise RuntimeFailure(f"checkpoint {final} was not completed: {cause!r}. The one before is kept.") from error

    def _training_info(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        info: dict[str, Any] = {
            "consumed_samples": step * self._queries,
            "current_step": step,
            "current_epoch": 0,
            "total_steps": step,
            "total_valid_tokens": 0,  # NeMo-RL's trainer plots it; this package counts tokens in metrics.jsonl
        }
        name = self._manager.metric_name
        if name is not None and name.removeprefix("train:") in metrics:
            info[name] = float(metrics[name.removeprefix("train:")])
        return info


def find_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest finished checkpoint under a checkpoint_dir; None if there is none.

    Called before anything is started, as NeMo-RL makes the policy from that checkpoint. Raises ValueError for a
    checkpoint that another program wrote.
    """
    steps = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    if not steps:
        return None
    path = max(steps, key=lambda p: int(p.name.removeprefix("step_")))
    if not (path / STATE_FILE).is_file():
        raise ValueError(
            f"{path} has no {STATE_FILE}: another program wrote it. Choose another checkpointing.checkpoint_dir, or "
            "give its weights as policy.model_name."
        )
    return Checkpoint(path, json.loads((path / STATE_FILE).read_text()))
