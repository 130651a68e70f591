"""Follow the metrics of one run as columns."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from nemo_tapo.tracking.records import METRICS_FILE
from nemo_tapo.utils.jsonl import parse_line
from nemo_tapo.watch.line_follower import LineFollower, count_lines

MOST_ROWS = 2000  # of one answer; the page asks again for the rest


class RunMetrics:
    """The numbers of metrics.jsonl, by key."""

    def __init__(self, folder: Path) -> None:
        self._lines = LineFollower(folder / METRICS_FILE)
        self.version = 0  # rises when the file was replaced: what was read before no longer holds
        self._forget()

    def _forget(self) -> None:
        self.steps: list[int] = []
        self.columns: dict[str, list[float | None]] = {}
        self.damaged = 0

    def refresh(self) -> None:
        """Read the steps that were added."""
        if self._lines.restarted():
            self.version += 1
            self._forget()
        for _, line in self._lines.read_new_lines():
            row = _parse_step(line)
            if row is None:
                self.damaged += 1
                continue
            count = len(self.steps)
            self.steps.append(row.pop("step"))
            for key, value in row.items():
                if isinstance(value, (int, float)) and not isinstance(value, bool):
                    self.columns.setdefault(key, [None] * count).append(value)
            for column in self.columns.values():
                column += [None] * (count + 1 - len(column))

    def get_rows(self, begin: int) -> dict[str, Any]:
        """Return the columns from row `begin` on, at most MOST_ROWS of each, as the page takes them."""
        end = begin + MOST_ROWS
        return {
            "version": self.version,
            "begin": begin,
            "steps": self.steps[begin:end],
            "columns": {key: column[begin:end] for key, column in self.columns.items()},
            "more": end < len(self.steps),
        }

    def notes(self) -> list[str]:
        """Return a sentence for each thing that could not be read."""
        notes = []
        if self.damaged:
            notes.append(f"{METRICS_FILE}: {count_lines(self.damaged)} damaged and left out.")
        if self._lines.unfinished:
            notes.append(f"{METRICS_FILE}: the last line is half-written and left out so far.")
        return notes


def _parse_step(line: bytes) -> dict[str, Any] | None:
    row = parse_line(line)
    return row if row is not None and isinstance(row.get("step"), int) else None
