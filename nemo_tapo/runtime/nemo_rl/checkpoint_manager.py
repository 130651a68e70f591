"""Save checkpoints in NeMo-RL's layout: `interfaces.CheckpointStore` over its CheckpointManager.

    <checkpointing.checkpoint_dir>/step_20/
        training_info.json       NeMo-RL's: steps, and the metric by which keep_top_k ranks checkpoints
        config.yaml              NeMo-RL's: the whole configuration, which its converters read
        policy/{weights,optimizer,tokenizer}
        train_dataloader.pt      NeMo-RL's setup requires it; not used here, as queries are a function of (seed, step):
                                 see datasets/query_order.py
        tapo.json                this package's: the step and the settings that decide the numbers
        manifest.json            this package's: size and sha256 of every other file

NeMo-RL also decides which checkpoints are kept (keep_top_k, metric_name). Its setup loads the newest one and checks
nothing. So a damaged one is renamed to damaged_step_20 before the setup, which then loads the one before it.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tapo.checkpoint import MANIFEST, Checkpoint, Warn, Write, find_fault, make_manifest, remove_on_failure
from nemo_tapo.metrics import VALIDATION_PREFIX
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.nemo_calls import CALL_TIMEOUT, run_blocking
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.files import write_json

STATE_FILE = "tapo.json"
DAMAGED = "damaged_"  # prefix of a folder that was set aside; NeMo-RL's manager looks for step_* alone
WRITER = "the writer of NeMo-RL's checkpoints"


class NemoCheckpoints:
    """The CheckpointStore over NeMo-RL's CheckpointManager; see the module docstring.

    The final name may appear after `save` has returned: main computes the manifest and renames in the background.
    """

    def __init__(
        self,
        manager: Any,
        policy: Any,
        master: Any,
        dataloader: Any,
        queries_per_step: int,
        loaded: Checkpoint | None,
        warnings: Sequence[str] = (),
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Wrap `manager`, a CheckpointManager.

        `loaded` is the checkpoint that the policy was made from and `warnings` what `choose_checkpoint` said of it.
        `timeout` is the deadline of a call, seconds.
        """
        self._warnings, self._timeout = tuple(warnings), timeout
        self._manager, self._policy, self._master = manager, policy, master
        self._dataloader, self._queries, self._loaded = dataloader, queries_per_step, loaded
        self._pending: Path | None = None

    def latest(self, warn: Warn) -> Checkpoint | None:
        """Return the checkpoint that the policy was made from: NeMo-RL loads weights only at that time.

        It was verified then; what was found is told through `warn` now.
        """
        for sentence in self._warnings:
            warn(sentence)
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
            begin = partial(compat.begin_checkpoint, self._manager, folder, self._policy, partial(seal, folder))
            await run_blocking(begin, WRITER, self._timeout)
        self._pending = final

    async def settle(self) -> None:
        """Wait as `interfaces.CheckpointStore` says.

        Raises RuntimeFailure with the folder's name if the checkpoint did not reach its final name.
        """
        if self._pending is None:
            return
        final, self._pending = self._pending, None
        try:
            await run_blocking(partial(compat.end_checkpoints, self._manager), WRITER, self._timeout)
        except Exception as error:  # NeMo-RL wraps any error of its thread
            cause = find_first_cause(error)
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
        key = "" if name is None else name.removeprefix("train:").replace("val:", VALIDATION_PREFIX, 1)
        if key in metrics:
            info[name] = float(metrics[key])
        return info


def seal(folder: Path) -> None:
    """Write the manifest of a complete checkpoint folder."""
    write_json(folder / MANIFEST, make_manifest(folder))


def find_first_cause(error: BaseException) -> BaseException:
    """Follow a chain of `raise ... from ...` to what happened first."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def find_newest_checkpoint(folder: Path) -> Checkpoint | None:
    """Return the newest finished checkpoint under a checkpoint_dir, unverified; None if there is none.

    Raises ValueError for a checkpoint that another program wrote.
    """
    for path in _list_steps(folder):
        _require_own(path)
        return _read(path)
    return None


def choose_checkpoint(folder: Path, warn: Warn) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, and make it the one that NeMo-RL's setup loads.

    Called before anything is started; None if there is no checkpoint. A damaged one is renamed, and named through
    `warn`. Raises ValueError for a checkpoint that another program wrote, and if all are damaged: starting over
    silently would lose the run.
    """
    damaged: list[tuple[Path, str]] = []
    for path in _list_steps(folder):
        _require_own(path)
        fault = find_fault(path, STATE_FILE)
        if fault is None:
            _set_aside(damaged, path, warn)
            return _read(path)
        damaged.append((path, fault))
    if damaged:
        raise ValueError(
            f"every checkpoint under {folder} is damaged ({damaged[0][0].name}: {damaged[0][1]}); remove the folder to "
            "start over."
        )
    return None


def _set_aside(damaged: Sequence[tuple[Path, str]], good: Path, warn: Warn) -> None:
    for path, fault in damaged:
        aside = path.with_name(DAMAGED + path.name)
        shutil.rmtree(aside, ignore_errors=True)
        path.rename(aside)
        warn(f"checkpoint {path} is damaged ({fault}) and now called {aside.name}; the run goes on from {good.name}")


def _list_steps(folder: Path) -> list[Path]:
    """List the finished checkpoints, newest first."""
    steps = [p for p in folder.glob("step_*") if p.name.removeprefix("step_").isdigit()]
    return sorted(steps, key=lambda p: int(p.name.removeprefix("step_")), reverse=True)


def _require_own(path: Path) -> None:
    if not (path / STATE_FILE).is_file() and not (path / MANIFEST).is_file():
        raise ValueError(
            f"{path} has no {STATE_FILE}: another program wrote it. Choose another checkpointing.checkpoint_dir, or "
            "give its weights as policy.model_name."
        )


def _read(path: Path) -> Checkpoint:
    return Checkpoint(path, json.loads((path / STATE_FILE).read_text()))
