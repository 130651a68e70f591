"""Cache verdicts on disk by the content of their request, so that parallel, killed and later runs share them."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.endpoint.reply_cache import ReplyCache
from nemo_tapo.judge.verdict import UnparsableReply, Verdict, verdict_from_dict


class VerdictCache:
    """A folder of verdicts. `corrupt` counts the entries that could not be read."""

    def __init__(self, folder: Path) -> None:
        self.replies = ReplyCache(folder)
        self._no_verdict = 0

    @property
    def corrupt(self) -> int:
        """The number of entries that could not be read."""
        return self.replies.corrupt + self._no_verdict

    def get(self, key: str) -> Verdict | None:
        """Return the verdict stored under `key`; None if there is none or it cannot be read."""
        entry = self.replies.get(key)
        if entry is None:
            return None
        try:
            return verdict_from_dict(entry["verdict"])
        except (KeyError, TypeError, UnparsableReply):
            self._no_verdict += 1
            return None

    def put(self, key: str, verdict: Verdict, model: str, reply: str) -> None:
        """Store a verdict, with the judge's reply for people who want to check it. Raises DiskFull."""
        self.replies.put(key, {"model": model, "verdict": verdict.as_dict(), "reply": reply})
