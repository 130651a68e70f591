"""Append to JSON Lines files, one flushed object a line, that survive a killed process.

A run that dies while it writes leaves at most one half-written line, the last. A reader skips that line and says
so; a writer that opens the file again removes it first. Numbers that are not finite are written as null,
because JSON has no NaN.
"""

from __future__ import annotations

import json
import math
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from io import FileIO
from pathlib import Path
from typing import Any

from nemo_tapo.utils.errors import name_full_disk
from nemo_tapo.utils.files import refuse_foreign_link, replace_lines

Record = dict[str, Any]


@dataclass(frozen=True)
class Lines:
    """The contents of a file."""

    rows: tuple[Record, ...]  # in file order
    notes: tuple[str, ...] = ()  # sentences about what could not be read


def replace_non_finite(value: Any) -> Any:
    """Replace every nan and infinity in `value`, however deep, by None.

    >>> replace_non_finite({"loss": float("nan"), "steps": [1, float("inf")]})
    {'loss': None, 'steps': [1, None]}
    """
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, Mapping):
        return {str(key): replace_non_finite(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [replace_non_finite(item) for item in value]
    return value


def encode_line(row: Mapping[str, Any]) -> bytes:
    """Return one line with its newline. A lone surrogate, which UTF-8 cannot hold, becomes '?'.

    >>> encode_line({"step": 1, "kl": float("nan")})
    b'{"step": 1, "kl": null}\\n'
    """
    try:
        text = json.dumps(row, ensure_ascii=False, allow_nan=False)
    except (TypeError, ValueError):  # a nan somewhere, or a mapping that is no dict
        text = json.dumps(replace_non_finite(row), ensure_ascii=False, allow_nan=False)
    return (text + "\n").encode("utf-8", "replace")


CHECKSUM = "crc32"  # last key of a checked line


def add_checksum(row: Mapping[str, Any]) -> Record:
    """Return a row with the checksum of its line, for rows that decide numbers when they are read again.

    >>> add_checksum({"uid": "7"})
    {'uid': '7', 'crc32': 584555319}
    """
    return {**row, CHECKSUM: zlib.crc32(encode_line(row))}


def parse_checked_line(line: bytes) -> Record:
    """Return the row of a line, without its checksum. Raises ValueError if it is no object or the checksum is wrong.

    A line without a checksum is taken as it is.

    >>> parse_checked_line(encode_line(add_checksum({"uid": "7"})))
    {'uid': '7'}
    >>> parse_checked_line(b'{"uid": "8", "crc32": 3138126158}')
    Traceback (most recent call last):
    ValueError: its checksum is wrong
    """
    try:
        row = json.loads(line)
    except RecursionError:
        raise ValueError("it is nested too deeply") from None
    if not isinstance(row, dict):
        raise ValueError("it is no JSON object")
    expected = row.pop(CHECKSUM, None)
    if expected is not None and expected != zlib.crc32(encode_line(row)):
        raise ValueError("its checksum is wrong")
    return row


def open_to_append(path: Path) -> FileIO:
    """Open a file for `append_line`: without a buffer, whose rest would fail once more when the file is closed."""
    return open(path, "ab", buffering=0, opener=refuse_foreign_link)


def append_line(file: FileIO, row: Mapping[str, Any], kept: str = "the lines in it are kept") -> None:
    """Append one line. It survives a kill of the process as soon as this returns. Raises DiskFull, which says `kept`.

    A disk that fills up takes part of the line and refuses the rest.
    """
    rest = memoryview(encode_line(row))
    with name_full_disk(file.name, kept):
        while rest:
            rest = rest[file.write(rest) :]


def read_lines(path: Path, skip_damaged: bool = False) -> Lines:
    """Read every object of a JSONL file; a file that does not exist holds none.

    Raises ValueError if a line other than the last is no JSON object: the file was damaged, not cut short. With
    `skip_damaged` such a line is left out and named in the notes.
    """
    if not path.exists():
        return Lines(())
    rows: list[Record] = []
    notes: list[str] = []
    for number, line, last in _lines(path):
        row = parse_line(line)
        if row is not None:
            rows.append(row)
        elif last:
            notes.append(f"{path.name}: the last line ({number}) is half-written and was left out.")
        elif skip_damaged:
            notes.append(f"{path.name}: line {number} is damaged (no JSON object) and was left out.")
        else:
            raise ValueError(f"{path}: line {number} is not a JSON object; the file is damaged.")
    return Lines(tuple(rows), tuple(notes))


def _lines(path: Path) -> Iterator[tuple[int, bytes, bool]]:
    """Yield (line number from 1, bytes, is it the last line?), without blank lines."""
    with path.open("rb") as file:
        lines = [(number, line) for number, line in enumerate(file, 1) if line.strip()]
    for index, (number, line) in enumerate(lines):
        yield number, line, index == len(lines) - 1


def parse_line(line: bytes) -> Record | None:
    """Return the object of a line, None if it holds none.

    >>> parse_line(b'{"step": 3}'), parse_line(b"[1]"), parse_line(b'{"st')
    ({'step': 3}, None, None)
    """
    try:
        value = json.loads(line)
    except (ValueError, RecursionError):  # UnicodeDecodeError, when a character was cut in two, is a ValueError
        return None
    return value if isinstance(value, dict) else None


class Appender:
    """Append objects to one file. Opening it removes a half-written last line.

    A file with other lines that cannot be read is renamed to <name>.damaged, and those that can are kept; `notes` says
    so. A record for people must not be what ends a run.
    """

    def __init__(self, path: Path) -> None:
        self.path = path
        self.notes: list[str] = []
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = self.read()
        if _unfinished(path):
            self._rewrite(rows)
        self.last_step = _last_step(rows)
        self._file = open_to_append(path)

    def append(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Write each row; the largest `step` becomes `last_step`. Raises DiskFull."""
        for row in rows:
            append_line(self._file, row)
            self.last_step = max(self.last_step, _step(row))

    def truncate_after(self, step: int) -> int:
        """Drop the rows of later steps and return how many there were. The file is replaced in one move."""
        rows = self.read()
        kept = [row for row in rows if _step(row) <= step]
        self.replace(kept)
        return len(rows) - len(kept)

    def replace(self, rows: Iterable[Mapping[str, Any]]) -> None:
        """Replace the whole file, in one move."""
        self._file.close()
        self._rewrite(rows)
        self.last_step = _last_step(self.read())
        self._file = open_to_append(self.path)

    def close(self) -> None:
        self._file.close()

    def read(self) -> list[Record]:
        """Return the objects of the file; a damaged one is set aside first."""
        try:
            return list(read_lines(self.path).rows)
        except ValueError:
            parsed = [parse_line(line) for _, line, _ in _lines(self.path)]
        aside = self.path.with_name(f"{self.path.name}.damaged")
        os.replace(self.path, aside)
        good = [row for row in parsed if row is not None]
        self.notes.append(
            f"{self.path} is damaged: {len(parsed) - len(good)} of {len(parsed)} lines cannot be read and are left "
            f"out; the file as it was is {aside}"
        )
        self._rewrite(good)
        return good

    def _rewrite(self, rows: Iterable[Mapping[str, Any]]) -> None:
        replace_lines(self.path, (encode_line(row) for row in rows))


def _unfinished(path: Path) -> bool:
    """Return True if the file's last byte is no newline."""
    if not path.exists() or path.stat().st_size == 0:
        return False
    with path.open("rb") as file:
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"


def _last_step(rows: Iterable[Mapping[str, Any]]) -> int:
    return max(map(_step, rows), default=-1)


def _step(row: Mapping[str, Any]) -> int:
    step = row.get("step", -1)
    return step if isinstance(step, int) else -1
