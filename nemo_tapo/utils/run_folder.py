"""Claim a run's folder: one command at a time works in it, and its config.yaml is what its numbers were made with."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_tapo.utils.files import refuse_foreign_link, replace_lines, replace_text, require_own_link

CONFIG, LOCK = "config.yaml", "run.lock"


@contextmanager
def claim_run_folder(folder: Path, config: str, command: str) -> Iterator[None]:
    """Lock `folder` inside the block and write the resolved configuration to its config.yaml.

    `nemo-tapo <command> --config <folder>/config.yaml` runs the same again. A command that is refused, for example
    because its settings differ from those of the run in the folder, puts the former config.yaml back. An evaluation
    neither locks nor replaces it: it may write into a folder in which a run is at work.
    Raises ValueError if another process has the lock, or if another user placed a link in the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for entry in folder.iterdir():
        if entry.is_symlink():
            require_own_link(entry)
    file = folder / CONFIG
    before = file.read_bytes() if file.is_file() else None
    if command == "evaluate":
        if before is None:
            replace_text(file, config)
        yield
        return
    with lock_folder(folder):
        replace_text(file, config)
        try:
            yield
        except ValueError:
            if before is not None:
                replace_lines(file, [before])
            raise


@contextmanager
def lock_folder(folder: Path) -> Iterator[None]:
    """Lock the folder inside the block; the lock ends with the process, however it ends.

    On a file system without locks nothing is locked.
    """
    with open(folder / LOCK, "ab", opener=refuse_foreign_link) as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}: wait for it, or end it first.") from None
        except OSError:
            pass
        yield
