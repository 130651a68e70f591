"""Cache verdicts on disk by the content of their request, so that parallel, killed and later runs share them.

Each verdict is one small file. It is written under another name and then renamed, so it is never incomplete. A file
that cannot be read as a verdict counts as absent.
"""

from __future__ import annotations

import errno
import hashlib
import json
import os
import uuid
from pathlib import Path
from typing import Any

from nemo_tapo.judge.verdict import UnparsableReply, Verdict, verdict_from_dict
from nemo_tapo.utils.errors import DiskFull


def make_key(request: dict[str, Any]) -> str:
    """Return a digest of everything that determines a verdict: the judge's model, the prompt, the sampling settings.

    >>> make_key({"model": "a", "max_tokens": 5}) == make_key({"max_tokens": 5, "model": "a"})
    True
    """
    return hashlib.sha256(json.dumps(request, sort_keys=True).encode()).hexdigest()


class VerdictCache:
    """A folder of verdicts. `corrupt` counts the entries that could not be read."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.corrupt = 0

    def get(self, key: str) -> Verdict | None:
        """Return the verdict stored under `key`; None if there is none or it cannot be read."""
        try:
            entry = json.loads(self._path(key).read_bytes())
            if entry["key"] == key:
                return verdict_from_dict(entry["verdict"])
        except FileNotFoundError:
            return None
        except (ValueError, RecursionError, KeyError, TypeError, UnparsableReply):
            pass
        self.corrupt += 1
        return None

    def put(self, key: str, verdict: Verdict, model: str, reply: str) -> None:
        """Store a verdict, with the judge's reply for people who want to check it. Raises DiskFull."""
        path = self._path(key)
        entry = {"key": key, "model": model, "verdict": verdict.as_dict(), "reply": reply}
        temporary = path.with_name(f".{path.stem}-{os.getpid()}-{uuid.uuid4().hex[:8]}")
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            temporary.write_text(json.dumps(entry) + "\n")
            temporary.replace(path)
        except OSError as error:
            temporary.unlink(missing_ok=True)
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(error.errno, f"no room for a verdict in {self.folder}; those before it are kept.") from None

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / f"{key}.json"
