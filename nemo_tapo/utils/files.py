"""Write files and folders that nobody ever sees half-written."""

from __future__ import annotations

import errno
import glob
import hashlib
import json
import os
import re
import shutil
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from nemo_tapo.utils.errors import name_full_disk


def refuse_foreign_link(path: str, flags: int) -> int:
    """Open a file and return its descriptor: the `opener` of `open` for every file of a run that is written in place.

    A link is followed if it is the user's own or the administrator's. Raises ValueError for one that somebody else
    placed, who could so have any file of the user's overwritten.
    """
    try:
        return os.open(path, flags | os.O_NOFOLLOW, 0o666)
    except OSError as error:
        if error.errno != errno.ELOOP:
            raise
    require_own_link(path)
    return os.open(path, flags, 0o666)


def require_own_link(path: str | Path) -> None:
    """Raise ValueError if the link `path` was placed by another user than this one or the administrator."""
    owner = os.lstat(path).st_uid
    if owner not in (os.geteuid(), 0):
        raise ValueError(
            f"{path} is a link that another user placed (uid {owner}): remove it, or choose another folder."
        )


def sha256(file: Path) -> str:
    """Return the hex digest of a file's bytes."""
    with file.open("rb") as handle:
        return hashlib.file_digest(handle, "sha256").hexdigest()


def hash_json(value: Any) -> str:
    """Return the SHA-256 of a JSON value, in hex.

    >>> hash_json([1, "a"])[:8]
    '4a72386a'
    """
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


def sync_tree(path: Path) -> None:
    """Flush every file and folder below `path` to the disk."""
    for file in path.rglob("*"):
        if file.is_file():
            with file.open("rb") as handle:
                os.fsync(handle.fileno())
    for folder in [path, *(f for f in path.rglob("*") if f.is_dir())]:
        sync_folder(folder)


def sync_folder(folder: Path) -> None:
    """Flush a folder's entries to the disk: without this a rename may be lost in a power failure."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def _is_alive(pid: int) -> bool:
    """Return True if there is a process of this number on this machine other than this one."""
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:  # somebody else's
        return True
    return pid != os.getpid()


def make_building_folder(folder: Path) -> Path:
    """Make the folder beside `folder` in which it is built, and remove those that a killed command left."""
    for left in folder.parent.glob(f".{glob.escape(folder.name)}.*.part"):
        pid = re.fullmatch(rf"\.{re.escape(folder.name)}\.([0-9]+)\.part", left.name)
        if pid and not _is_alive(int(pid[1])):
            shutil.rmtree(left, ignore_errors=True)
    building = folder.with_name(f".{folder.name}.{os.getpid()}.part")
    building.mkdir(parents=True)
    return building


def publish_folder(folder: Path, build: Path) -> None:
    """Rename the finished `build` to `folder`, so that `folder` exists only when it is complete."""
    sync_tree(build)
    if folder.exists():
        shutil.rmtree(folder)
    os.replace(build, folder)
    sync_folder(folder.parent)


def require_free_disk(folder: Path, gib: float) -> None:
    """Raise ValueError if the disk of `folder` has less than `gib` GiB free."""
    make_output_folder(folder)
    free = shutil.disk_usage(folder).free / 2**30
    if free < gib:
        raise ValueError(
            f"{folder} has {free:.2f} GiB free, less than checkpoint.min_free_gib = {gib}. Free some, or choose "
            "another `output`."
        )


def make_output_folder(folder: Path) -> None:
    """Create a folder for results; raise ValueError if a file has its name or it may not be written."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"{folder} cannot be a folder for results ({error.strerror}): choose another.") from None


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON."""
    with open(path, "w", encoding="utf-8", opener=refuse_foreign_link) as file:
        json.dump(value, file, indent=1, sort_keys=True, default=str)
        file.write("\n")


def replace_text(path: Path, text: str) -> None:
    """Replace a file's text in one move."""
    replace_lines(path, [text.encode("utf-8")])


def replace_lines(path: Path, lines: Iterable[bytes]) -> None:
    """Write encoded lines, which may come one by one, to a file that appears only when it is complete.

    Raises DiskFull; nothing of the attempt is left then.
    """
    temporary = path.with_name(path.name + ".tmp")
    with name_full_disk(path, "it is as it was before"):
        try:
            with open(temporary, "wb", opener=refuse_foreign_link) as file:
                file.writelines(lines)
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
