"""What a job's container sees of this machine's folders, and where the models' caches are. For launch.py."""

from __future__ import annotations

import os
import re
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path

CACHES = {  # variable -> its default below model-cache; what is kept there, all nodes have to see
    "HF_HOME": "huggingface",
    "NRL_MEGATRON_CHECKPOINT_DIR": "megatron",
}
PLACES = (*CACHES, "HF_HUB_CACHE", "HF_DATASETS_CACHE", "NEMO_RL_SRC")  # variables that name folders


def read_variables(given: Sequence[str]) -> dict[str, str]:
    """Return the job's variables: those of this shell go along, and KEY=VALUE come on top; blank ones do not count."""
    together = {**os.environ, **dict(pair.split("=", 1) for pair in given)}
    return {name: value for name, value in together.items() if value.strip()}


def choose_caches(given: Sequence[str], base: Path) -> dict[str, Path]:
    """Return the cache variables that nobody set, each with a folder that all runs beside `base` share."""
    taken = read_variables(given)
    return {name: base.parent / "model-cache" / folder for name, folder in CACHES.items() if name not in taken}


def list_mounts(asked: str, folders: Iterable[str]) -> list[str]:
    """Return the mounts asked for, SRC:DST, and one for each of `folders` that none of them covers."""
    mounts = [mount for mount in asked.split(",") if mount]
    for folder in folders:
        if not is_below(folder, (mount.split(":")[1] for mount in mounts)):
            mounts.append(f"{folder}:{folder}")
    return mounts


def find_unseen(path: str, mounts: Sequence[str]) -> str | None:
    """Return the path that the container would lack: this one, or what it links to. None if it lacks nothing."""
    given, pairs = os.path.abspath(path), [mount.split(":")[:2] for mount in mounts]
    here = [source.rstrip("/") + given[len(there.rstrip("/")) :] for source, there in pairs if is_below(given, [there])]
    if not here:
        return given
    real, sources = os.path.realpath(here[0]), [os.path.realpath(source) for source, _ in pairs]
    return None if is_below(real, sources) or not os.path.exists(real) else real


def find_paths(text: str) -> Iterator[str]:
    """Yield the paths in a setting that exist on this machine."""
    words = [text.partition("=")[2].strip("\"' "), *re.split(r"[\s,=:{}()\[\]\"']+", text)]
    return (word for word in dict.fromkeys(words) if "/" in word and word.strip("./") and os.path.exists(word))


def find_paths_in_yaml(file: Path) -> Iterator[tuple[str, str]]:
    """Yield (line, path) for the absolute paths of a YAML file that exist on this machine; comments do not count."""
    for line in file.read_text().splitlines():
        bare = re.sub(r"(^|\s)#.*", "", line).strip()
        for path in find_paths(bare):
            if os.path.isabs(path):
                yield bare, path


def is_below(path: str, folders: Iterable[str]) -> bool:
    """Return True if a path is one of the folders or in one of them."""
    return any(path == folder or path.startswith(folder.rstrip("/") + "/") for folder in folders)
