"""Checkpoints where NeMo-RL looks for them: `interfaces.CheckpointStore` over its CheckpointManager.

    <checkpointing.checkpoint_dir>/step_20/
        training_info.json       NeMo-RL's own: steps, and the metric that keep_top_k goes by
        config.yaml              the whole configuration: NeMo-RL's converters read it
        policy/{weights,optimizer,tokenizer}
        train_dataloader.pt      NeMo-RL's setup wants one; queries are a function of (seed, step), see datasets/query_order.py
        tapo.json                ours: step and the settings that decide the numbers

How many are kept is NeMo-RL's business too: keep_top_k, metric_name.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from nemo_tapo.checkpoint import Checkpoint, Warn, Write, whole_or_nothing
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.colocation import blocking
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.files import write_json

OURS = "tapo.json"


class NemoCheckpoints:
    """See the module's text. The final name may appear after `save` has returned: Megatron writes in the background."""

    def __init__(
        self, manager: Any, policy: Any, master: Any, dataloader: Any, queries_per_step: int, found: Checkpoint | None
    ) -> None:
        """`found`: the checkpoint that the policy was made from (see `newest`)."""
        self._manager, self._policy, self._master = manager, policy, master
        self._dataloader, self._queries, self._found = dataloader, queries_per_step, found
        self._under_way: Path | None = None

    def latest(self, warn: Warn) -> Checkpoint | None:
        """The checkpoint that the policy was made from: NeMo-RL loads weights only then."""
        return self._found

    async def save(self, state: dict[str, Any], write: Write, metrics: Mapping[str, float]) -> None:
        """Save as `interfaces.CheckpointStore` says.

        Raises DiskFull if there is no room, RuntimeFailure if the one before did not end well.
        """
        await self.settle()
        step = int(state["step"])
        final = Path(self._manager.checkpoint_dir) / f"step_{step}"
        info = self._training_info(step, metrics)
        with whole_or_nothing(final.with_name(f"tmp_step_{step}"), final):
            folder = Path(self._manager.init_tmp_checkpoint(step, info, self._master))
            await write(folder)
            compat.save_dataloader(self._dataloader, folder)
            write_json(folder / OURS, state)
        compat.begin_checkpoint(self._manager, folder, self._policy)
        self._under_way = final

    async def settle(self) -> None:
        """See `interfaces.CheckpointStore`. RuntimeFailure, naming the folder, if it did not reach its final name."""
        if self._under_way is None:
            return
        final, self._under_way = self._under_way, None
        try:
            await blocking(lambda: compat.end_checkpoints(self._manager))
        except Exception as error:  # NeMo-RL wraps whatever its thread met
            cause = error.__cause__ or error
            raise RuntimeFailure(f"checkpoint {final} was not completed: {cause!r}. The one before is kept.") from error

    def _training_info(self, step: int, metrics: Mapping[str, float]) -> dict[str, Any]:
        info: dict[str, Any] = {
            "consumed_samples": step * self._queries,
            "current_step": step,
            "current_epoch": 0,
            "total_steps": step,
            "total_valid_tokens": 0,  # its trainer's count for a plot; ours is in metrics.jsonl
        }
        name = self._manager.metric_name
        if name is not None and name.removeprefix("train:") in metrics:
            info[name] = float(metrics[name.removeprefix("train:")])
        return info


def newest(folder: Path) -> Checkpoint | None:
    """The newest finished checkpoint under a checkpoint_dir; None if there is none.

    Read before anything is started, as NeMo-RL makes the policy from it. Raises ValueError for a checkpoint of another
    program.
    """
    steps = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    if not steps:
        return None
    path = max(steps, key=lambda p: int(p.name.removeprefix("step_")))
    if not (path / OURS).is_file():
        raise ValueError(
            f"{path} has no {OURS}: another program wrote it. Choose another checkpointing.checkpoint_dir, or give its "
            "weights as policy.model_name."
        )
    return Checkpoint(path, json.loads((path / OURS).read_text()))
