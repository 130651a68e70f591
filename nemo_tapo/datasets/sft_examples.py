"""The files of the cold start's data: what is trained on, and the same for people and for other trainers.

data.jsonl          the examples with their token ids: what the local runtime trains on
examples.jsonl      the same examples in the same order as chats, each with where it comes from (NeMo-RL reads it)
examples.parquet    the same once more, if coldstart.parquet asks for it
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from nemo_tapo.types import Kind, Row
from nemo_tapo.utils.jsonl import encode

DATA, EXAMPLES, PARQUET = "data.jsonl", "examples.jsonl", "examples.parquet"
STATISTICS = "statistics.json"  # beside data that was made here


@dataclass(frozen=True)
class Source:
    """The responses of the base that an example is made of."""

    query: str = ""  # uid of the query
    rollout: str = ""  # uid of the response: itself the example, or the wrong one that is corrected
    reference: str | None = None  # uid of the right response that the writer was shown
    kept_tokens: int | None = None  # of the wrong response at the start of the reconstruction
    kept_share: float | None = None  # of the wrong response's characters


@dataclass(frozen=True)
class Example:
    """One supervised example."""

    uid: str
    format: str  # "sft" or "ift"
    origin: str  # "correct", "corrective" or "synthesis"
    prompt: str  # what the user says
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]  # with EOS
    source: Source = field(default=Source(), compare=False)  # in examples.jsonl alone

    @property
    def length(self) -> int:
        """Tokens of the whole row."""
        return len(self.prompt_ids) + len(self.response_ids)

    def row(self) -> Row:
        return Row(self.uid, self.uid, Kind.EXAMPLE, self.prompt_ids, self.response_ids)


TRAINED = ("uid", "format", "origin", "prompt", "response", "prompt_ids", "response_ids")


def write(folder: Path, built: Sequence[Example], parquet: bool = False) -> None:
    """The files; each appears when it is whole, data.jsonl last: where it is, the others are."""
    _replace(folder / EXAMPLES, (encode(as_chat(example)) for example in built))
    if parquet:
        _write_parquet(folder / PARQUET, [as_chat(example) for example in built])
    lines = ({name: value for name, value in asdict(e).items() if name in TRAINED} for e in built)
    _replace(folder / DATA, ((json.dumps(line) + "\n").encode() for line in lines))


def as_chat(example: Example) -> dict[str, Any]:
    """The row of examples.jsonl. `messages` is what NeMo-RL's and most other trainers read; they ignore the rest."""
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


def read(path: Path) -> list[Example]:
    """The examples of data.jsonl. Raises ValueError naming the line that does not parse."""
    return list(_read(path))


def _read(path: Path) -> Iterator[Example]:
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                raw = json.loads(line)
                if not isinstance(raw, dict) or raw.keys() != set(TRAINED):
                    raise ValueError(f"its fields are not {', '.join(TRAINED)}")
                if not raw["response_ids"]:
                    raise ValueError("it has no response")
                ids = {name: tuple(int(i) for i in raw[name]) for name in ("prompt_ids", "response_ids")}
            except (ValueError, TypeError) as error:
                ours = path.with_name(STATISTICS).is_file()
                advice = (
                    "Remove the file to write it anew from the samples and corrections on disk: nothing is asked again."
                    if ours
                    else "Mend or remove that line."
                )
                raise ValueError(f"{path}, line {number} is no cold-start example: {error}. {advice}") from None
            yield Example(**{**raw, **ids})


def check_parquet() -> None:
    """Raises ValueError where Parquet cannot be written; asked before anything is sampled."""
    try:
        import pyarrow  # noqa: F401
    except ImportError:
        raise ValueError(
            "coldstart.parquet needs pyarrow: pip install 'nemo-tapo[data]', or set it to false."
        ) from None


def _write_parquet(path: Path, rows: list[dict[str, Any]]) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    temporary = path.with_name(path.name + ".tmp")
    pq.write_table(pa.Table.from_pylist(rows), temporary)
    temporary.replace(path)


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
    temporary.replace(path)
