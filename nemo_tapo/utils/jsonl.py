"""JSON Lines files that a run appends to, one flushed object a line, and that survive being killed.

A run that dies while it writes leaves at most one half-written line, the last. Readers leave it out and say
so; a writer that opens the file again removes it first. Numbers that are not finite are written as null,
because JSON has no NaN.
"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO

Record = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """What a file held."""

    rows: tuple[Record, ...]  # in file order
    notes: tuple[str, ...] = ()  # sentences about what could not be read


def finite(value: Any) -> Any:
    """`value` with every nan and infinity, however deep, replaced by None."""
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(item) for item in value]
    return value


def encode(row: Mapping[str, Any]) -> bytes:
    """One line, its newline included. A lone surrogate, which UTF-8 cannot hold, becomes '?'."""
    return (json.dumps(finite(row), ensure_ascii=False, allow_nan=False) + "\n").encode("utf-8", "replace")


def read(path: Path) -> Lines:
    """Every object of a JSONL file; a file that does not exist holds none.

    Raises ValueError if a line other than the last is no JSON object: that file was damaged, not cut short.
    """
    if not path.exists():
        return Lines(())
    rows: list[Record] = []
    notes: list[str] = []
    for number, line, last in _lines(path):
        row = _parse(line)
        if row is not None:
            rows.append(row)
        elif last:
            notes.append(f"{path.name}: the last line ({number}) is half-written and was left out.")
        else:
            raise ValueError(f"{path}: line {number} is not a JSON object; the file is damaged.")
    return Lines(tuple(rows), tuple(notes))


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """(line number from 1, its bytes, whether it is the last), blank lines left out."""
    with path.open("rb") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        yield number, line, index == len(lines) - 1


def _parse(line: bytes) -> Record | None:
    try:
        value = json.loads(line)
    except ValueError:  # UnicodeDecodeError, when a character was cut in two, is one too
        return None
    return value if isinstance(value, dict) else None


class Appender:
    """Appends objects to one file. Opening it removes a half-written last line."""

    def __init__(self, path: Path) -> None:
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        self.last_step = self._rewrite(read(path).rows) if _unfinished(path) else _last_step(read(path).rows)
        self._file: BinaryIO = path.open("ab")

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Writes and flushes each row; `step` of the last one becomes `last_step`."""
        for row in rows:
            self._file.write(encode(row))
            self._file.flush()
            self.last_step = max(self.last_step, int(row.get("step", -1)))

    def truncate_after(self, step: int) -> int:
        """Drops the rows of later steps; returns how many. The file is replaced in one move."""
        self._file.close()
        rows = read(self.path).rows
        kept = [row for row in rows if int(row.get("step", -1)) <= step]
        self.last_step = self._rewrite(kept)
        self._file = self.path.open("ab")
        return len(rows) - len(kept)

    def close(self) -> None:
        self._file.close()

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> int:
        rows = list(rows)
        temporary = self.path.with_name(self.path.name + ".tmp")
        temporary.write_bytes(b"".join(encode(row) for row in rows))
        os.replace(temporary, self.path)
        return _last_step(rows)


def _unfinished(path: Path) -> bool:
    """Whether the file's last byte is something other than a newline."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _last_step(rows: Iterable[Mapping[str, Any]]) -> int:
    return max((int(row.get("step", -1)) for row in rows), default=-1)
