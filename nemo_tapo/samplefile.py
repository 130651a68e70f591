"""Samples on the disk as they come, for commands that sample for hours: killed, they go on with what is there."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tapo.report.jsonl import finite


@dataclass
class SampleFile:
    """A first line that says what the samples are made with, then a line a sample, flushed.

    `read` comes first, whether or not there is something to read.
    """

    path: Path
    made_with: dict[str, Any]
    lines: int = field(default=0, init=False)

    def __post_init__(self) -> None:
        self._file = self.path.open("ab")

    def read(self) -> Iterator[dict[str, Any]]:
        """The samples of an earlier process; what it left half-written at the end is cut off.

        Raises ValueError if they were made with other settings, another model or other data, or are damaged.
        """
        end = 0
        with self.path.open("rb") as file:
            for number, line in enumerate(file, 1):
                row = _object(line)
                if row is None or not line.endswith(b"\n"):
                    if file.read(1):
                        raise ValueError(f"{self.path}: line {number} is damaged. Move the file away to sample anew.")
                    break
                end += len(line)
                if number == 1:
                    self._compare(row)
                else:
                    self.lines += 1
                    yield row
        self._file.truncate(end)
        if end == 0:
            self._write(self.made_with)

    def append(self, row: Mapping[str, Any]) -> None:
        """A sample, handed to the system when this returns."""
        self.lines += 1
        self._write(row)

    def close(self) -> None:
        self._file.close()

    def _write(self, row: Mapping[str, Any]) -> None:
        self._file.write(json_line(row))
        self._file.flush()

    def _compare(self, header: Mapping[str, Any]) -> None:
        changed = [name for name in self.made_with if header.get(name) != self.made_with[name]]
        if changed:
            name = changed[0]
            raise ValueError(
                f"{self.path} was sampled with another {name} ({header.get(name)!r}, now {self.made_with[name]!r}). "
                "Give another output, or move the file away to sample anew."
            )


def _object(line: bytes) -> dict[str, Any] | None:
    try:
        value = json.loads(line)
    except ValueError:
        return None
    return value if isinstance(value, dict) else None


def json_line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON. Data sets hold dates and bytes; they are written as their text."""
    return (json.dumps(finite(row), ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")


def model_digest(path: Path) -> str:
    """Tells models apart without reading all of their weights: config, and size, head and tail of each weight file."""
    digest = hashlib.sha256()
    for file in sorted([path / "config.json", *path.glob("*.safetensors")]):
        if file.is_file():
            size = file.stat().st_size
            with file.open("rb") as handle:
                digest.update(f"{file.name}\x1f{size}\x1f".encode() + handle.read(2**20))
                handle.seek(max(size - 2**20, 0))
                digest.update(handle.read())
    return digest.hexdigest()[:16]
