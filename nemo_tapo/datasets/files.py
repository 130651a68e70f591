"""Rows of a local file: JSON Lines, one JSON array, or Parquet; told apart by what is in it, gzipped or not.

A broken row is yielded as `Broken` with its reason, so that one bad line does not cost the other 40,000; a file that
is no data at all is a ValueError.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

LONGEST_LINE = 16 * 2**20  # bytes; a longer one is broken, and never in memory as a whole
PARQUET, GZIP = b"PAR1", b"\x1f\x8b"  # how such files begin


@dataclass(frozen=True)
class Broken:
    """A row that is none."""

    reason: str  # counted
    detail: str = ""


Record = dict[str, Any] | Broken


@dataclass(frozen=True)
class Opened:
    """What a file or a hub's data set gave."""

    words: str  # where the rows come from, for the user
    rows: list[Record]
    others: tuple[str, ...] = ()  # configurations of the set that were not asked for
    notes: tuple[str, ...] = ()  # sentences for the user


def records(path: Path) -> Iterator[Record]:
    """Every row of `path`, in order.

    Raises ValueError with a sentence for a file that is missing, a folder, empty, neither UTF-8 text nor Parquet.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file with rows{_inside(path)}.")
    if not path.is_file():
        raise ValueError(f"no file {path}.")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise ValueError(f"{path} is empty.")
    if head == PARQUET:
        return _parquet(path)
    return _text(path, zipped=head.startswith(GZIP))


def _inside(folder: Path) -> str:
    """The end of a sentence: a file that may be meant, and how a copied repository is read."""
    names = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".jsonl", ".json", ".parquet", ".gz")]
    meant = f"; did you mean {folder / names[0]}?" if names else ""
    return f"{meant} A copy of a Hugging Face repository is read as hub={folder}"


def _text(path: Path, zipped: bool) -> Iterator[Record]:
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            # gzip's reader has all of BinaryIO that is used here
            yield from _array(path, file) if _first_character(file) == b"[" else _lines(path, cast(BinaryIO, file))
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged or cut short ({error}).") from None


def _first_character(file: Any) -> bytes:
    """What stands first, blanks and the byte order mark left out; the file is rewound."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return bytes(head[:1])


def _array(path: Path, file: Any) -> Iterator[Record]:
    """One JSON array of objects, as DeepScaleR is published."""
    try:
        rows = json.loads(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins like a JSON array but is none: {error}.") from None
    for row in rows:
        yield row if isinstance(row, dict) else Broken("not_an_object", type(row).__name__)


def _lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield Broken("line_too_long", f"line {number}: more than {LONGEST_LINE // 2**20} MiB")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: line {number} is not UTF-8 text. Save the file as UTF-8.") from None
        if text.strip():
            yield _object(text, number)


def _object(text: str, number: int) -> Record:
    try:
        row = json.loads(text)
    except (ValueError, RecursionError) as error:
        return Broken("not_json", f"line {number}: {error}")
    return row if isinstance(row, dict) else Broken("not_an_object", f"line {number}: {type(row).__name__}")


def _parquet(path: Path) -> Iterator[Record]:
    try:
        import pyarrow as pa
        import pyarrow.parquet as pq
    except ImportError:
        raise ValueError(f"{path} is a Parquet file; to read it: pip install 'nemo-tapo[data]'.") from None
    try:
        with pq.ParquetFile(path) as file:
            for batch in file.iter_batches(batch_size=1024):
                yield from batch.to_pylist()
    except (pa.ArrowInvalid, OSError) as error:
        raise ValueError(f"{path}: the Parquet file is damaged ({str(error).splitlines()[0]}).") from None
