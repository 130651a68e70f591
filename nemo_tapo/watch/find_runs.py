"""Find the run folders below the folders that `watch` is given, and give each a short name."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from nemo_tapo.tracking.records import METRICS_FILE, TRAJECTORIES_FILE
from nemo_tapo.tracking.rollout_store import ROLLOUTS_FOLDER
from nemo_tapo.utils.run_folder import CONFIG

DEPTH = 4  # folders below a given one: runs/sweep/<row>/seed-<k> and its coldstart
IGNORED = {"checkpoints", "hf", "tensorboard", "evaluation", ROLLOUTS_FOLDER}  # hold no run
MOST_RUNS, MOST_FOLDERS = 100, 5000


def find_runs(folders: Sequence[Path]) -> tuple[dict[str, Path], str]:
    """Return {name: run folder} of every run in the folders and below them, in order, and a sentence or "".

    A folder that is given is a run if nothing below it is one, even if it is still empty. A name is the path below the
    last common folder. The sentence says what was not looked at: more folders than MOST_FOLDERS, runs than MOST_RUNS.
    """
    found: dict[Path, None] = {}  # in order
    budget = MOST_FOLDERS
    for folder in map(Path.resolve, folders):
        inside = []
        for path in _walk(folder, DEPTH):
            budget -= 1
            if budget < 0:
                break
            inside += [path] * is_run(path)
        found |= dict.fromkeys(inside or [folder])
    paths = list(found)
    note = f"Only {MOST_FOLDERS:,} folders were searched for runs: name the runs' own." if budget < 0 else ""
    if len(paths) > MOST_RUNS:
        note = f"{MOST_RUNS} of {len(paths):,} runs are shown: name fewer."
    common = Path(os.path.commonpath([path.parent for path in paths[:MOST_RUNS]]))
    return {path.relative_to(common).as_posix(): path for path in paths[:MOST_RUNS]}, note


def is_run(folder: Path) -> bool:
    """Return True if a stage has begun to write into the folder."""
    return any((folder / name).is_file() for name in (METRICS_FILE, TRAJECTORIES_FILE, CONFIG))


def _walk(folder: Path, depth: int) -> Iterator[Path]:
    """Yield the folder and those below it, without hidden ones."""
    yield folder
    try:
        inside = sorted(folder.iterdir()) if depth else ()
    except OSError:
        return
    for path in inside:
        if path.name not in IGNORED and path.name[0] != "." and path.is_dir():
            yield from _walk(path, depth - 1)
