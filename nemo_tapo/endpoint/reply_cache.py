"""Cache what a served model answered on disk, by the content of the request: parallel, killed and later runs share it.

Each entry is one small file. It is written under another name and then renamed, so it is never incomplete. A file that
cannot be read as an entry counts as absent.
"""

from __future__ import annotations

import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from nemo_tapo.utils.errors import name_full_disk


def make_key(request: dict[str, Any]) -> str:
    """Return a digest of everything that determines an answer: the model, the messages, the sampling settings.

    >>> make_key({"model": "a", "max_tokens": 5}) == make_key({"max_tokens": 5, "model": "a"})
    True
    """
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class ReplyCache:
    """A folder of entries. `corrupt` counts those that could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corrupt = 0

    def get(self, key: str) -> dict[str, Any] | None:
        """Return the entry stored under `key`; None if there is none or it cannot be read."""
        try:
            entry = json.loads(self._path(key).read_bytes())
            if entry["key"] == key:
                return dict(entry)
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, KeyError, TypeError):
            pass
        self.corrupt += 1
        return None

    def put(self, key: str, entry: dict[str, Any]) -> None:
        """Store an entry. Raises DiskFull."""
        path = self._path(key)
        temporary = path.with_name(f".{path.stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        with name_full_disk(self.folder, "the answers in it are kept"):
            try:
                path.parent.mkdir(parents=True, exist_ok=True)
                temporary.write_text(json.dumps({"key": key, **entry}) + "\n")
                temporary.replace(path)
            finally:
                temporary.unlink(missing_ok=True)

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
