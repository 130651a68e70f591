"""Keep the samples of an evaluation on disk, one JSON line each.

Every sample is written as soon as it is graded, so that a resumed evaluation does not take it again.

    <output>/evaluation/<name>/
        settings.json        the settings that determine the samples: another model or other settings are refused
        <benchmark>.jsonl    one Sample per line, in the order of arrival

A killed process leaves at most one incomplete line, at the end of a file. It is cut off before more is written.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import asdict, dataclass, fields
from io import FileIO
from pathlib import Path
from typing import Any, Self
from urllib.parse import quote

from nemo_tapo.config.run_config import flatten_settings
from nemo_tapo.types import is_correct
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.jsonl import add_checksum, append_line, open_to_append, parse_checked_line

FOLDER, SETTINGS = "evaluation", "settings.json"


@dataclass(frozen=True)
class Sample:
    """One graded response. (benchmark, uid, run, index) identifies it and determines its seed.

    >>> Sample("sums", "7", 0, 3, "47+38=85", 9, False, "right", 1.0, "85").key
    ('7', 0, 3)
    """

    benchmark: str
    uid: str  # the problem's, unique within its benchmark
    run: int  # 0 .. runs - 1
    index: int  # 0 .. n - 1 within its run
    text: str
    tokens: int  # length of the response; 0 if the server does not report it
    truncated: bool  # cut off by the length limit
    outcome: str  # the verifier's: "right", "wrong", "no_answer", "timeout", "error"
    reward: float  # 1.0 if right, else 0.0; a response that the verifier could not grade counts as wrong
    answer: str | None  # as extracted from the response
    correct_at: float | None = None  # tapo.correct_at; not in the file if it is None

    @property
    def key(self) -> tuple[str, int, int]:
        """The sample's identity within its benchmark."""
        return self.uid, self.run, self.index

    @property
    def correct(self) -> bool:
        """True if the response counts as correct."""
        return is_correct(self.reward, self.correct_at)


OPTIONAL_FIELD = "correct_at"
FIELDS = {field.name for field in fields(Sample)} - {OPTIONAL_FIELD}


def get_evaluation_folder(output: Path, name: str) -> Path:
    """Return the folder of the samples of the evaluation `name`.

    >>> get_evaluation_folder(Path("runs/demo"), "Qwen/Qwen3-8B").as_posix()
    'runs/demo/evaluation/Qwen%2FQwen3-8B'
    """
    return output / FOLDER / escape_file_name(name)


def escape_file_name(name: str) -> str:
    """Turn a name that the user chose into a file name: `/` and the like are escaped.

    >>> escape_file_name("../aime 24")
    '..%2Faime 24'
    """
    return quote(name, safe=" +,=@()")


def read_samples(path: Path) -> Iterator[Sample]:
    """Yield the samples of a file, without an incomplete last line; none if there is no such file.

    Raises ValueError for any other line that is not a sample, because then the file was damaged.
    """
    if not path.is_file():
        return
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            if not line.endswith(b"\n"):
                return
            yield _parse_sample(line, path, number)


def _parse_sample(line: bytes, path: Path, number: int) -> Sample:
    try:
        row = parse_checked_line(line)
    except ValueError:
        row = {}
    if row.keys() - {OPTIONAL_FIELD} != FIELDS:
        raise ValueError(
            f"{path}: line {number} is no sample of an evaluation, or is damaged; remove that line: its sample is "
            "taken again and nothing else is lost."
        )
    return Sample(**row)


def select_samples(samples: Iterable[Sample], runs: int, n: int, problems: int, where: str) -> Iterator[Sample]:
    """Yield the samples of the first `runs` runs and of the first `n` of each run; of equal keys the first one counts.

    Further samples are ignored. Raises ValueError, which begins with `where`, at the end if samples are missing.
    """
    seen: set[tuple[str, int, int]] = set()
    for sample in samples:
        if sample.run < runs and sample.index < n and sample.key not in seen:
            seen.add(sample.key)
            yield sample
    if len(seen) != problems * runs * n or len({uid for uid, _, _ in seen}) != problems:
        raise ValueError(
            f"{where} {len(seen)} of {problems} problems x {runs} runs x {n} samples: run the evaluation to its end."
        )


def read_selected(folder: Path, settings: Mapping[str, Any]) -> list[Sample]:
    """Read the samples that belong to the evaluation in `folder`, as `select_samples` selects them.

    settings: as in its settings.json, perhaps with fewer runs or samples. Raises ValueError if samples are missing.
    """
    selected: list[Sample] = []
    for benchmark, entry in settings["benchmarks"].items():
        path = folder / f"{escape_file_name(benchmark)}.jsonl"
        selected += select_samples(
            read_samples(path), settings["runs"], settings["samples"], entry["problems"], f"{path} holds"
        )
    return selected


class SampleStore:
    """The folder of one evaluation, open for adding samples."""

    def __init__(self, folder: Path, settings: Mapping[str, Any]) -> None:
        """Open the folder, make it if needed, and write its settings.json.

        settings: nested JSON values that determine the samples. Only "runs" and "samples" may differ from those in the
        folder: more may be asked for later. Raises ValueError if the folder holds samples of another model or of other
        settings.
        """
        self.folder = folder
        self._files: dict[str, FileIO] = {}
        path = folder / SETTINGS
        if path.is_file():
            require_same_settings(folder, read_settings(path), settings)
        elif any(folder.glob("*.jsonl")):
            raise ValueError(
                f"{folder} has samples but no {SETTINGS}, so what they are of is unknown: remove that folder to sample "
                "anew."
            )
        folder.mkdir(parents=True, exist_ok=True)
        replace_text(path, json.dumps(settings, indent=1) + "\n")

    def path(self, benchmark: str) -> Path:
        return self.folder / f"{escape_file_name(benchmark)}.jsonl"

    def read_keys(self, benchmark: str) -> set[tuple[str, int, int]]:
        """Return the keys of the stored samples, after cutting off an incomplete last line."""
        path = self.path(benchmark)
        cut_torn_line(path)
        return {sample.key for sample in read_samples(path)}

    def add(self, sample: Sample) -> None:
        """Write a sample. It survives a kill of the process as soon as this returns. Raises DiskFull."""
        row = asdict(sample)
        if sample.correct_at is None:
            del row[OPTIONAL_FIELD]
        self.append_row(sample.benchmark, row)

    def append_row(self, name: str, row: Mapping[str, Any]) -> None:
        """Write a row of another kind, like `add`, with a checksum; each kind has its own file `name`.

        Raises DiskFull.
        """
        file = self._files.get(name)
        if file is None:
            file = self._files[name] = open_to_append(self.path(name))
        append_line(file, add_checksum(row), "the samples in it are kept")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *error: object) -> None:
        for file in self._files.values():
            file.close()


def cut_torn_line(path: Path) -> None:
    """Cut off the incomplete last line that a killed process left; do nothing if there is no such file."""
    if not path.is_file():
        return
    with path.open("rb+") as file:
        size = end = file.seek(0, 2)
        while end > 0:  # backwards in blocks: a response may be long
            begin = max(end - 65536, 0)
            file.seek(begin)
            newline = file.read(end - begin).rfind(b"\n")
            if newline >= 0:
                end = begin + newline + 1
                break
            end = begin
        if end < size:
            file.truncate(end)


def read_settings(path: Path) -> dict[str, Any]:
    """Read the settings.json of a folder of samples. Raises ValueError if it is damaged."""
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(f"{path} is damaged; remove the folder {path.parent} to sample anew.") from None


def require_same_settings(folder: Path, then: Mapping[str, Any], now: Mapping[str, Any]) -> None:
    """Raise ValueError, naming the differences, unless both settings give the same samples."""
    changed = list_differences(then, now, sorted({*then, *now} - {"runs", "samples"}))
    if changed:
        raise ValueError(
            f"{folder} holds samples of other settings ({'; '.join(changed)}). Choose another `output`, or remove that "
            "folder to sample anew."
        )


def list_differences(then: Mapping[str, Any], now: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """List the settings below `keys` that differ, one text each.

    >>> list_differences({"evaluation": {"top_p": 0.6}}, {"evaluation": {"top_p": 1.0}}, ["evaluation"])
    ['evaluation.top_p: 0.6 -> 1.0']
    """
    a, b = (flatten_settings({key: side[key] for key in keys if key in side}) for side in (then, now))
    return [f"{k}: {_shorten(a.get(k))} -> {_shorten(b.get(k))}" for k in sorted({*a, *b}) if a.get(k) != b.get(k)]


def _shorten(value: Any) -> str:
    text = value if isinstance(value, str) else json.dumps(value)
    return text if len(text) <= 24 else f"{text[:12]}..."
