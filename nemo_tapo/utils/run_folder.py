"""A run's folder while a command works in it: one command at a time, and the configuration that its numbers have."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from nemo_tapo.utils.files import replace_text

CONFIG, LOCK = "config.yaml", "run.lock"


@contextmanager
def folder_of_run(folder: Path, config: str, command: str) -> Iterator[None]:
    """Holds `folder` and leaves the resolved configuration in it: `nemo-tapo <command> --config` takes it again.

    A command that is refused, as for settings that differ from those the folder's run was begun with, leaves the
    configuration that was there. So does an evaluation, which may also go into a folder in which a run is at work.
    Raises ValueError if another process holds the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    file = folder / CONFIG
    before = file.read_text(encoding="utf-8") if file.is_file() else None
    if command == "evaluate":
        if before is None:
            replace_text(file, config)
        yield
        return
    with held(folder):
        replace_text(file, config)
        try:
            yield
        except ValueError:
            if before is not None:
                replace_text(file, before)
            raise


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """The folder to this process; it is free again when the process ends, however it ends.

    A file system without locks is taken as free.
    """
    with (folder / LOCK).open("ab") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise ValueError(f"another process is at work in {folder}: wait for it, or end it first.") from None
        except OSError:
            pass
        yield
