"""Tell of responses that a reward function gave no reward: each in ungraded.jsonl, the first of each reason on screen.

{"query": "train-7", "question": "47+38=?", "outcome": "no_reward_raised", "detail": "...", "response": "..."}
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from pathlib import Path

from nemo_tapo.types import Grade, Query
from nemo_tapo.utils.jsonl import Appender

UNGRADED_FILE = "ungraded.jsonl"
MAX_LINES = 1000  # of one reason and process: a function that never works must not fill the disk
SHOWN_CHARACTERS = 2000  # of a response


class UngradedLog:
    """The responses of a run that got no reward. Nothing is written while there are none."""

    def __init__(self, folder: Path, tell: Callable[[str], None]) -> None:
        """Write into `folder`; `tell` shows a sentence to the user."""
        self.path, self.tell = folder / UNGRADED_FILE, tell
        self.counts: Counter[str] = Counter()  # by outcome
        self._file: Appender | None = None

    def describe(self) -> list[str]:
        """Return one sentence with the counts, or none if every response got a reward."""
        counts = ", ".join(f"{count} {outcome}" for outcome, count in self.counts.most_common())
        return [f"responses without a reward: {counts}; see {self.path}"] if counts else []

    def __call__(self, query: Query, response: str, grade: Grade) -> None:
        """Add a response."""
        self.counts[grade.outcome] += 1
        if self.counts[grade.outcome] == 1:
            self.tell(f"{query.uid}: {grade.outcome}, {grade.detail}. Each such response is counted and in {self.path}")
        if self.counts[grade.outcome] > MAX_LINES:
            return
        line = {
            "query": query.uid,
            "question": query.question,
            "outcome": grade.outcome,
            "detail": grade.detail,
            "response": response[:SHOWN_CHARACTERS],
        }
        self._file = self._file or Appender(self.path)
        self._file.append([line])

    def close(self) -> None:
        """Close the file. May be called twice."""
        if self._file is not None:
            self._file.close()
