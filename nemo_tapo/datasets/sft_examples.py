"""Write and read the files of the cold start's data.

data.jsonl          the examples with their token ids: the training data of the local runtime
examples.jsonl      the same examples in the same order as chats, each with its origin (for people and NeMo-RL)
examples.parquet    the same as examples.jsonl, if coldstart.parquet is set
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_tapo.types import Kind, Row
from nemo_tapo.utils.files import replace_lines
from nemo_tapo.utils.jsonl import encode_line

DATA_FILE, EXAMPLES_FILE, PARQUET_FILE = "data.jsonl", "examples.jsonl", "examples.parquet"
STATISTICS_FILE = "statistics.json"  # next to data that this package has built


@dataclass(frozen=True)
class ExampleSource:
    """The base model's responses from which an example is made.

    >>> ExampleSource("7", rollout="7/0", reference="7/3", kept_tokens=9).reference
    '7/3'
    """

    query: str = ""  # uid of the query
    rollout: str = ""  # uid of the response that is the example, or of the wrong response that it corrects
    reference: str | None = None  # uid of the right response that the writer saw
    kept_tokens: int | None = None  # tokens of the wrong response at the start of the reconstruction
    kept_share: float | None = None  # share of the wrong response's characters that is kept


@dataclass(frozen=True)
class SftExample:
    """One supervised example.

    >>> example = SftExample("e1", "sft", "correct", "47+38=?", "85", prompt_ids=(5, 6), response_ids=(7, 8, 0))
    >>> example.length, example.to_row().kind
    (5, <Kind.EXAMPLE: 'example'>)
    """

    uid: str
    format: str  # "sft" or "ift"
    origin: str  # "correct", "corrective", "sampled" or "synthesis"
    prompt: str  # the text of the user's turn
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # with EOS
    source: ExampleSource = field(default=ExampleSource(), compare=False)  # written to examples.jsonl only

    @property
    def length(self) -> int:
        """Length of prompt and response, tokens."""
        return len(self.prompt_ids) + len(self.response_ids)

    def to_row(self) -> Row:
        """Return the example as a training row."""
        return Row(self.uid, self.uid, Kind.EXAMPLE, self.prompt_ids, self.response_ids)


DATA_FIELDS = ("uid", "format", "origin", "prompt", "response", "prompt_ids", "response_ids")


def write_examples(folder: Path, examples: Sequence[SftExample], parquet: bool = False) -> None:
    """Write the files. Each appears only when it is complete, and data.jsonl comes last: if it exists, all do."""
    replace_lines(folder / EXAMPLES_FILE, (encode_line(as_chat(example)) for example in examples))
    if parquet:
        _write_parquet(folder / PARQUET_FILE, [as_chat(example) for example in examples])
    replace_lines(folder / DATA_FILE, map(encode_example, examples))


def encode_example(example: SftExample) -> bytes:
    """Return the line of data.jsonl."""
    row = {name: value for name, value in asdict(example).items() if name in DATA_FIELDS}
    return (json.dumps(row) + "\n").encode()


def hash_examples(examples: Sequence[SftExample]) -> str:
    """Return the SHA-256, in hex, that data.jsonl will have."""
    digest = hashlib.sha256()
    for example in examples:
        digest.update(encode_example(example))
    return digest.hexdigest()


def as_chat(example: SftExample) -> dict[str, Any]:
    """Return the row of examples.jsonl. NeMo-RL and most other trainers read `messages` and ignore the rest.

    >>> as_chat(SftExample("e1", "sft", "correct", "47+38=?", "85", (5, 6), (7, 8, 0)))["messages"][1]
    {'role': 'assistant', 'content': '85'}
    """
    return {
        "messages": [
            {"role": "user", "content": example.prompt},
            {"role": "assistant", "content": example.response},
        ],
        "uid": example.uid,
        "format": example.format,
        "origin": example.origin,
        **asdict(example.source),
        "tokens": example.length,
    }


def read_examples(path: Path) -> list[SftExample]:
    """Read the examples of data.jsonl. Raises ValueError with the number of a line that does not parse."""
    return list(_iterate_examples(path))


def _iterate_examples(path: Path) -> Iterator[SftExample]:
    """Yield the examples of data.jsonl, line by line."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                raw = json.loads(line)
                if not isinstance(raw, dict) or raw.keys() != set(DATA_FIELDS):
                    raise ValueError(f"its fields are not {', '.join(DATA_FIELDS)}")
                if not raw["response_ids"]:
                    raise ValueError("it has no response")
                ids = {name: tuple(int(i) for i in raw[name]) for name in ("prompt_ids", "response_ids")}
            except (ValueError, TypeError) as error:
                ours = path.with_name(STATISTICS_FILE).is_file()
                advice = (
                    "Remove the file to write it anew from the samples and corrections on disk: nothing is asked again."
                    if ours
                    else "Mend or remove that line."
                )
                raise ValueError(f"{path}, line {number} is no cold-start example: {error}. {advice}") from None
            yield SftExample(**{**raw, **ids})


def check_parquet() -> None:
    """Raise ValueError if Parquet cannot be written; called before anything is sampled."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError(
            "coldstart.parquet needs pyarrow: pip install 'nemo-tapo[data]', or set it to false."
        ) from None


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    """Write rows as Parquet; the file appears only when it is complete."""
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.replace(path)
