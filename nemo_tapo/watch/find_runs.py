"""Find the run folders below the folders that `watch` is given, and give each a short name."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.tracking.records import METRICS_FILE, TRAJECTORIES_FILE
from nemo_tapo.tracking.rollout_store import ROLLOUTS_FOLDER
from nemo_tapo.utils.run_folder import CONFIG

DEPTH = 4  # folders below a given one: runs/sweep/<row>/seed-<k> and its coldstart
IGNORED = {"checkpoints", "hf", "tensorboard", "evaluation", ROLLOUTS_FOLDER}  # hold no run
MOST_RUNS = 200


def find_runs(folders: Sequence[Path]) -> dict[str, Path]:
    """Return {name: run folder} of every run in the folders and below them, in order.

    A folder that is given is a run if nothing below it is one, even if it is still empty. A name is the path below the
    last common folder.
    """
    found: list[Path] = []
    for folder in folders:
        inside = [path for path in _walk(folder.resolve(), DEPTH) if path not in found]
        found += inside if inside else [folder.resolve()] * (folder.resolve() not in found)
    found = found[:MOST_RUNS]
    if not found:
        return {}
    common = Path(os.path.commonpath([path.parent for path in found]))
    return {path.relative_to(common).as_posix(): path for path in found}


def is_run(folder: Path) -> bool:
    """Return True if a stage has begun to write into the folder."""
    return any((folder / name).is_file() for name in (METRICS_FILE, TRAJECTORIES_FILE, CONFIG))


def _walk(folder: Path, depth: int) -> list[Path]:
    try:
        inner = sorted(path for path in folder.iterdir() if path.is_dir() and path.name not in IGNORED)
    except OSError:
        return []
    runs = [folder] if is_run(folder) else []
    for path in inner if depth else ():
        runs += _walk(path, depth - 1)
    return runs
