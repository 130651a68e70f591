"""Verdicts on disk by content: one small file each, so that runs side by side and killed ones share them.

A file appears whole under its name (written aside, then renamed). What cannot be read as a verdict counts as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from nemo_tapo.judge.verdict import Unparsable, Verdict, from_dict
from nemo_tapo.utils.errors import DiskFull


def key_of(request: dict[str, Any]) -> str:
    """Digest of everything that decides a verdict: the judge's model, the whole prompt, the sampling settings."""
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class Cache:
    """`corrupt` counts the entries that were there and could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corrupt = 0

    def get(self, key: str) -> Verdict | None:
        """The verdict kept under `key`, if there is a sound one."""
        try:
            entry = json.loads(self._path(key).read_bytes())
            if entry["key"] == key:
                return from_dict(entry["verdict"])
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, KeyError, TypeError, Unparsable):
            pass
        self.corrupt += 1
        return None

    def put(self, key: str, verdict: Verdict, model: str, reply: str) -> None:
        """Keeps a verdict, with the judge's own words for whoever wants to look. Raises DiskFull."""
        path = self._path(key)
        entry = {"key": key, "model": model, "verdict": verdict.as_dict(), "reply": reply}
        aside = path.with_name(f".{path.stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            aside.write_text(json.dumps(entry) + "\n")
            aside.replace(path)
        except OSError as error:
            aside.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(error.errno, f"no room for a verdict in {self.folder}; those before it are kept.") from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
