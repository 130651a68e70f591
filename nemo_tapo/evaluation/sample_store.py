"""The samples of an evaluation on disk: one JSON line each, written as it comes, so that nothing is sampled twice.

    <output>/evaluation/<name>/
        settings.json        what decides the samples: another model or other settings are refused
        <benchmark>.jsonl    one Sample a line, in the order of arrival

A killed process leaves at most one half-written line, the last of a file; it is cut off before more is written.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from nemo_tapo.config.run_config import flatten
from nemo_tapo.utils.errors import DiskFull
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.jsonl import encode

FOLDER, SETTINGS = "evaluation", "settings.json"


@dataclass(frozen=True)
class Sample:
    """One graded response. (benchmark, uid, run, index) names it and decides its seed."""

    benchmark: str
    uid: str  # of the problem, within its benchmark
    run: int  # 0 .. runs - 1
    index: int  # 0 .. n - 1 within its run
    text: str
    tokens: int  # of the response; 0 where a server does not say
    truncated: bool  # cut off by the length limit
    outcome: str  # the verifier's: "right", "wrong", "no_answer", "timeout", "error"
    reward: float  # 1.0 right, else 0.0: whatever the verifier could not settle counts as wrong
    answer: str | None  # as extracted

    @property
    def key(self) -> tuple[str, int, int]:
        return self.uid, self.run, self.index


FIELDS = {field.name for field in fields(Sample)}


def folder_of(output: Path, name: str) -> Path:
    """Where the evaluation `name` ("before", "Qwen/Qwen3-8B") keeps its samples."""
    return output / FOLDER / file_name(name)


def file_name(name: str) -> str:
    """A name that the user chose as that of a file: `/` and the like are escaped."""
    return quote(name, safe=" +,=@()")


def read(path: Path) -> Iterator[Sample]:
    """The samples of a file; a half-written last line is left out, a file that is not there holds none.

    Raises ValueError for any other line that is no sample: that file was damaged.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield _sample(line, path, number)


def _sample(line: bytes, path: Path, number: int) -> Sample:
    try:
        row = json.loads(line)
    except ValueError:
        row = None
    if not isinstance(row, dict) or row.keys() != FIELDS:
        raise ValueError(f"{path}: line {number} is no sample of an evaluation; remove the file to sample again.")
    return Sample(**row)


class Store:
    """The folder of one evaluation, open for more samples."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """settings: nested JSON values that decide the samples, but "runs" and "samples", of which more may be asked
        for later.

        Raises ValueError if the folder holds samples of another model or of other settings.
        """
        self.folder = folder
        self._files: dict[str, FileIO] = {}
        path = folder / SETTINGS
        if path.is_file():
            require_same(folder, json.loads(path.read_text()), settings)
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(settings, indent=1) + "\n")

    def path(self, benchmark: str) -> Path:
        return self.folder / f"{file_name(benchmark)}.jsonl"

    def done(self, benchmark: str) -> set[tuple[str, int, int]]:
        """Keys of the samples that are there; cuts a half-written last line off."""
        path = self.path(benchmark)
        cut_torn_line(path)
        return {sample.key for sample in read(path)}

    def add(self, sample: Sample) -> None:
        """Handed to the system when this returns: the process may be killed. Raises DiskFull."""
        self.append(sample.benchmark, asdict(sample))

    def append(self, name: str, row: Mapping[str, Any]) -> None:
        """`add` for rows of another kind; each kind has a file `name` of its own."""
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = self.path(name).open("ab", buffering=0)
        rest = memoryview(encode(row))
        try:
            while rest:  # a disk that fills up takes a part, and refuses the next
                rest = rest[file.write(rest) :]
        except OSError as error:
            if error.errno not in (errno.ENOSPC, errno.EDQUOT):
                raise
            raise DiskFull(
                error.errno, f"no room on the disk for {file.name}; the samples in it are kept. Free some and resume"
            ) from None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()


def cut_torn_line(path: Path) -> None:
    """Cuts off what a killed process left of a line; a file that is not there stays so."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, 2)
        while end > 0:  # backwards, a block at a time: a response may be long
            begin = max(end - 65536, 0)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)


def require_same(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raises ValueError, naming the differences, unless both settings give the same samples."""
    changed = differences(then, now, sorted({*then, *now} - {"runs", "samples"}))
    if changed:
        raise ValueError(
            f"{folder} holds samples of other settings ({'; '.join(changed)}). Choose another `output`, or remove that "
            "folder to sample anew."
        )


def differences(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """ "evaluation.temperature: 0.6 -> 1.0", one text a setting below `keys` that differs."""
    a, b = (flatten({key: side[key] for key in keys if key in side}) for side in (then, now))
    return [f"{k}: {_short(a.get(k))} -> {_short(b.get(k))}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def _short(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
