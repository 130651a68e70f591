"""Save checkpoints that survive kill -9, a damaged file and a full disk.

    <folder>/step-000020/          appears by one rename, when everything in it is on disk
        manifest.json              {file: {"bytes": n, "sha256": ...}} of every other file
        state.json                 step, the settings that decide the numbers
        model.safetensors ...      whatever the actor writes

Random states are not stored because none is carried along: every draw is seeded from (run seed, purpose, step, uid),
see utils/seeding.py.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Awaitable, Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.utils.errors import name_full_disk
from nemo_tapo.utils.files import sha256, sync_folder, sync_tree, write_json

MANIFEST, STATE = "manifest.json", "state.json"
Warn = Callable[[str], None]
Write = Callable[[Path], Awaitable[None]]


@dataclass(frozen=True)
class CheckpointFolder:
    """`interfaces.CheckpointStore` in a folder of this package's own layout; the `keep` newest stay.

    So does the best one that `state["validation"]` names, if `state["keep_best"]` is true.
    """

    path: Path
    keep: int

    def latest(self, warn: Warn) -> Checkpoint | None:
        return find_latest(self.path, warn)

    async def save(self, state: dict[str, Any], write: Write, metrics: Mapping[str, float]) -> None:
        best = state["validation"]["best_step"] if state.get("keep_best") else None
        await save_checkpoint(self.path, state, write, self.keep, best)

    async def settle(self) -> None:
        """Return at once: `save` returns when everything is on the disk."""


@dataclass(frozen=True)
class Checkpoint:
    """A verified checkpoint."""

    path: Path
    state: dict[str, Any]

    @property
    def step(self) -> int:
        """Steps of the loop done when it was written."""
        return int(self.state["step"])


async def save_checkpoint(
    folder: Path, state: dict[str, Any], write: Write, keep: int, best_step: int | None = None
) -> Path:
    """Write a checkpoint of `state["step"]`, then remove all but the `keep` newest and that of `best_step`.

    Returns its folder.

    `write(path)` puts the actor's files into `path`. Raises DiskFull if the disk has no room for it; then nothing
    of the attempt is left and older checkpoints are untouched.
    """
    folder.mkdir(parents=True, exist_ok=True)
    final = _get_folder(folder, state["step"])
    temporary = folder / f"tmp-{final.name}"
    shutil.rmtree(temporary, ignore_errors=True)
    with remove_on_failure(temporary, final):
        temporary.mkdir()
        await write(temporary)
        write_json(temporary / STATE, state)
        write_json(temporary / MANIFEST, make_manifest(temporary))
        sync_tree(temporary)
    if final.exists():  # the same step again, after falling back past a damaged newer one
        shutil.rmtree(final)
    os.replace(temporary, final)
    sync_folder(folder)
    kept = None if best_step is None else _get_folder(folder, best_step)
    for old in _steps(folder)[keep:]:
        if old != kept:
            shutil.rmtree(old)
    return final


@contextmanager
def remove_on_failure(temporary: Path, final: Path) -> Iterator[None]:
    """Remove `temporary` if writing fails in the block; turn a full disk into DiskFull, which names `final`."""
    with name_full_disk(final, "the last good checkpoint is kept"):
        try:
            yield
        except BaseException:
            shutil.rmtree(temporary, ignore_errors=True)
            raise


def find_latest(folder: Path, warn: Warn) -> Checkpoint | None:
    """Return the newest checkpoint that verifies, or None if there is no checkpoint at all.

    A damaged one is named through `warn` and skipped. Raises ValueError if there are checkpoints and all of them
    are damaged: starting over silently would lose the run.
    """
    candidates = _steps(folder)
    for path in candidates:
        fault = find_fault(path)
        if fault is None:
            return Checkpoint(path, json.loads((path / STATE).read_text()))
        warn(f"checkpoint {path} is damaged ({fault}); falling back to the one before")
    if candidates:
        raise ValueError(f"every checkpoint under {folder} is damaged; remove the folder to start over")
    return None


def find_fault(path: Path, state: str = STATE) -> str | None:
    """Say in words what is wrong with a checkpoint folder; None if every file is as the manifest says.

    `state`: the file that the manifest has to list in any case.
    """
    try:
        listed = json.loads((path / MANIFEST).read_text())
    except FileNotFoundError:
        return f"{MANIFEST} is missing"
    except ValueError:
        return f"{MANIFEST} does not parse"
    try:
        return find_file_fault(path, listed) if state in listed else f"{MANIFEST} does not list {state}"
    except (AttributeError, KeyError, TypeError):
        return f"{MANIFEST} is no manifest"


def find_file_fault(path: Path, listed: Mapping[str, Mapping[str, Any]]) -> str | None:
    """Say which file below `path` is not as `make_manifest` listed it; None if every one is."""
    for name, entry in listed.items():
        file = path / name
        if not file.is_file():
            return f"{name} is missing"
        if file.stat().st_size != entry["bytes"]:
            return f"{name} has {file.stat().st_size} bytes instead of {entry['bytes']}"
        if sha256(file) != entry["sha256"]:
            return f"{name} has another sha256 than when it was written"
    return None


def require_same_run(found: Checkpoint, fingerprint: Mapping[str, Any]) -> None:
    """Raise ValueError naming the settings in which a checkpoint and this run differ, if there are any."""
    before = found.state["fingerprint"]
    changed = sorted(k for k in before.keys() | fingerprint.keys() if before.get(k) != fingerprint.get(k))
    if changed:
        differences = ", ".join(f"{k}: {before.get(k)} -> {fingerprint.get(k)}" for k in changed)
        raise ValueError(
            f"{found.path} belongs to a run with other settings ({differences}). Choose another `output`, or restore "
            "the settings."
        )


def make_manifest(path: Path) -> dict[str, dict[str, Any]]:
    """Return size and sha256 of every file below `path` except the manifest itself."""
    files = sorted(f for f in path.rglob("*") if f.is_file() and f.name != MANIFEST)
    return {str(f.relative_to(path)): {"bytes": f.stat().st_size, "sha256": sha256(f)} for f in files}


def _get_folder(folder: Path, step: int) -> Path:
    return folder / f"step-{step:06d}"


def _steps(folder: Path) -> list[Path]:
    """List checkpoint folders, newest first, without the temporary ones of a killed save."""
    return sorted((p for p in folder.glob("step-*") if p.is_dir()), reverse=True)
