"""Read the rows of a local file: JSON Lines, a JSON array or Parquet, recognised by the content; text may be gzipped.

A broken row is yielded as `BrokenRow` with its reason, so that one bad line does not cost the other 40,000. A file
that is not data at all raises ValueError.
"""

from __future__ import annotations

import gzip
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any, BinaryIO, cast

from nemo_tapo.datasets.field_text import WrittenFloat
from nemo_tapo.utils.errors import get_first_line

LONGEST_LINE = 16 * 2**20  # bytes; a longer line is a broken row, and is never in memory as a whole
PARQUET_MAGIC, GZIP_MAGIC = b"PAR1", b"\x1f\x8b"  # the first bytes of such files


@dataclass(frozen=True)
class BrokenRow:
    """A row that cannot be read.

    >>> BrokenRow("not_an_object", "line 3: list").reason
    'not_an_object'
    """

    reason: str  # a key of the counts in data.json
    detail: str = ""


Record = dict[str, Any] | BrokenRow


@dataclass(frozen=True)
class RawDataset:
    """The rows of a file or of a hub data set, before their fields are checked.

    >>> RawDataset("data/train.jsonl", [{"question": "47+38=?"}, BrokenRow("not_json", "line 2")]).notes
    ()
    """

    description: str  # where the rows come from, for the user
    rows: list[Record]
    other_configs: tuple[str, ...] = ()  # configurations of the set that the config does not name
    notes: tuple[str, ...] = ()  # sentences for the user


def read_records(path: Path) -> Iterator[Record]:
    """Read every row of `path`, in order.

    Raises ValueError with a sentence if the file is missing, a folder, empty, damaged, or neither UTF-8 text nor
    Parquet.
    """
    if path.is_dir():
        raise ValueError(f"{path} is a folder, not a file with rows{_suggest_file(path)}.")
    if not path.is_file():
        raise ValueError(f"no file {path}.")
    with path.open("rb") as file:
        head = file.read(4)
    if not head:
        raise ValueError(f"{path} is empty.")
    if head == PARQUET_MAGIC:
        return _read_parquet(path)
    return _read_text(path, zipped=head.startswith(GZIP_MAGIC))


def _suggest_file(folder: Path) -> str:
    """Return the end of an error message: a file that may be meant, and how to read a copied repository."""
    names = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".jsonl", ".json", ".parquet", ".gz")]
    meant = f"; did you mean {folder / names[0]}?" if names else ""
    return f"{meant} A copy of a Hugging Face repository is read as hub={folder}"


def load_json(text: str | bytes) -> Any:
    """Parse JSON. An integer with more digits than Python converts (4,300) becomes text: it costs only its own field.

    A number with a fraction or an exponent is a float that remembers its digits: it may be a gold answer.

    Raises ValueError if the text is not JSON, RecursionError if it is nested too deep.
    """
    return json.loads(text, parse_int=_parse_integer, parse_float=WrittenFloat)


def _parse_integer(digits: str) -> int | str:
    try:
        return int(digits)
    except ValueError:
        return digits


def _read_text(path: Path, zipped: bool) -> Iterator[Record]:
    """Read a text file: one JSON array if it begins with `[`, else JSON Lines."""
    try:
        with gzip.open(path) if zipped else path.open("rb") as file:
            # The cast is safe: gzip's reader has all methods of BinaryIO that are used here.
            yield from (
                _read_array(path, file) if _peek_first_byte(file) == b"[" else _read_lines(path, cast(BinaryIO, file))
            )
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise ValueError(f"{path}: the gzip file is damaged or cut short ({error}).") from None


def _peek_first_byte(file: Any) -> bytes:
    """Return the first byte that is not a blank or part of the byte order mark, and rewind the file."""
    head = file.read(4096).removeprefix(b"\xef\xbb\xbf").lstrip()
    file.seek(0)
    return bytes(head[:1])


def _read_array(path: Path, file: Any) -> Iterator[Record]:
    """Read one JSON array of objects, as DeepScaleR is published."""
    try:
        rows = load_json(file.read().decode("utf-8-sig"))
    except UnicodeDecodeError as error:
        raise ValueError(f"{path} is not UTF-8 text (byte {error.start}).") from None
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} begins like a JSON array but is none: {error}.") from None
    for row in rows:
        yield row if isinstance(row, dict) else BrokenRow("not_an_object", type(row).__name__)


def _read_lines(path: Path, file: BinaryIO) -> Iterator[Record]:
    """Read JSON Lines; blank lines are skipped."""
    number = 0
    while line := file.readline(LONGEST_LINE + 1):
        number += 1
        if len(line) > LONGEST_LINE:
            while line and not line.endswith(b"\n"):
                line = file.readline(LONGEST_LINE)
            yield BrokenRow("line_too_long", f"line {number}: more than {LONGEST_LINE // 2**20} MiB")
            continue
        try:
            text = line.decode("utf-8-sig" if number == 1 else "utf-8")
        except UnicodeDecodeError:
            raise ValueError(f"{path}: line {number} is not UTF-8 text. Save the file as UTF-8.") from None
        if text.strip():
            yield _parse_line(text, number)


def _parse_line(text: str, number: int) -> Record:
    """Parse one line as a JSON object; `number` is for the message."""
    try:
        row = load_json(text)
    except (ValueError, RecursionError) as error:
        return BrokenRow("not_json", f"line {number}: {error}")
    return row if isinstance(row, dict) else BrokenRow("not_an_object", f"line {number}: {type(row).__name__}")


def _read_parquet(path: Path) -> Iterator[Record]:
    """Read a Parquet file in batches. Raises ValueError if it is damaged or pyarrow is missing."""
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
        raise ValueError(f"{path}: the Parquet file is damaged ({get_first_line(error)}).") from None
