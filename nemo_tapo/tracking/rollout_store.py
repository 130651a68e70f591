"""Read every rollout of a run, a step or a query at a time, from `rollouts/` in its folder. Pure: no torch.

    rollouts/index.jsonl         one line a step that was recorded completely: where it is
    rollouts/00000001.jsonl.gz   segments, named after their first step; `zcat` prints them

A segment is a row of gzip members: of each step one member a query and then one, the contents, with a summary of every
query and the place of its member. So a step or a query is read by its offset, and nothing else is decompressed. A step
counts once its line is in the index, which is written last: what a killed run left behind it is passed over. Segments
are deleted, oldest first, to keep below `rollouts_gib` (rollout_writer.py); their steps stay in the index.

    >>> index = read_index(Path("runs/demo"))                                                        # doctest: +SKIP
    >>> for record in read_queries(Path("runs/demo"), index.steps[3]):                               # doctest: +SKIP
    ...     print(record["uid"], [rollout["reward"] for rollout in record["rollouts"]])
    7 [0.0, 1.0]

One query's record, for the worked example of types.py::

    kind "query"   step 3   uid "7"   question "47+38=?"   answer "85"
    zone "eligible"     | "mastered" | "beyond" (Eq. 3); null where the algorithm constructs nothing
    correct_at          the least reward that counts as correct, if `tapo.correct_at` is set
    rollouts            in index order: {"text": "47+38=75", "length": 9 (tokens), "reward": 0.0, "correct": false,
                        "graded": true, "outcome": "wrong", "extracted": "75", "truncated": false, "advantage": -0.58
                        (null: no training row), "detail": "" and, where the engine reported them, "logprobs": [...]
                        (nats, one a token) with "tokens" (their texts)}
    pairs               as records.make_trajectory_record makes them, with "wrong_index", "right_index" (their rollouts)

With `pipeline: deferred` a pair's rollouts are those of the step before: such pairs are in a record of their own, with
"earlier": true and no rollouts.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.tracking.records import get_outcome
from nemo_tapo.utils.jsonl import Record, read_lines

ROLLOUTS_FOLDER, INDEX_FILE = "rollouts", "index.jsonl"
SHOWN_CHARACTERS = 200  # of a question, in a summary
GZIP = 16 + zlib.MAX_WBITS  # tells zlib that a gzip header and checksum are there


@dataclass(frozen=True)
class StepPlace:
    """Where a step's members are.

    >>> StepPlace(step=3, segment="00000001.jsonl.gz", offset=100, size=40, contents_size=10, queries=2).contents_offset
    130
    """

    step: int
    segment: str  # file name within `rollouts/`
    offset: int  # bytes
    size: int  # bytes of all its members
    contents_size: int  # bytes of the last of them
    queries: int
    at: float | None = None  # when it was recorded, seconds since 1970

    @property
    def contents_offset(self) -> int:
        """Where the contents begin, bytes."""
        return self.offset + self.size - self.contents_size


@dataclass(frozen=True)
class RolloutIndex:
    """The steps of a run that were recorded completely, and sentences about what cannot be read.

    >>> RolloutIndex({}).steps
    {}
    """

    steps: Mapping[int, StepPlace]  # in ascending order
    notes: tuple[str, ...] = ()


def read_index(folder: Path) -> RolloutIndex:
    """Read the index of a run's folder; a run without recorded rollouts has an empty one. Damaged lines are noted."""
    lines = read_lines(folder / ROLLOUTS_FOLDER / INDEX_FILE, skip_damaged=True)
    places, notes = [], list(lines.notes)
    for row in lines.rows:
        try:
            places.append(parse_place(row))
        except ValueError as fault:
            notes.append(f"{fault} It was left out.")
    places.sort(key=lambda place: place.step)
    return RolloutIndex({place.step: place for place in places}, tuple(notes))


def parse_place(row: Mapping[str, Any]) -> StepPlace:
    """Return the place that a line of the index tells. Raises ValueError if it is none."""
    try:
        offset, size, contents, queries = (int(row[n]) for n in ("offset", "bytes", "contents_bytes", "queries"))
        return StepPlace(int(row["step"]), Path(row["segment"]).name, offset, size, contents, queries, row.get("at"))
    except (KeyError, TypeError, ValueError):
        raise ValueError(f"{ROLLOUTS_FOLDER}/{INDEX_FILE}: this is no step's place: {dict(row)}.") from None


def read_contents(folder: Path, place: StepPlace) -> list[Record]:
    """Return the summary of each query of a step, in query order (`summarise_query`).

    Raises ValueError if the segment is gone, cut short or damaged.
    """
    [text] = _read_members(folder, place, [(place.contents_offset, place.contents_size)])
    queries: list[Record] = json.loads(text)["queries"]
    return queries


def read_query(folder: Path, place: StepPlace, summary: Mapping[str, Any]) -> Record:
    """Return the record of the query that a summary of `read_contents` stands for. Raises ValueError as there."""
    [text] = read_query_texts(folder, place, [summary])
    record: Record = json.loads(text)
    return record


def read_query_texts(folder: Path, place: StepPlace, summaries: Sequence[Mapping[str, Any]]) -> Iterator[str]:
    """Yield the record of each query as the JSON text that it is, for a search. Raises ValueError as above."""
    return _read_members(folder, place, [(int(summary["offset"]), int(summary["bytes"])) for summary in summaries])


def read_queries(folder: Path, place: StepPlace) -> Iterator[Record]:
    """Yield the record of each query of a step, in query order. Raises ValueError as `read_contents` does."""
    for summary in read_contents(folder, place):
        yield read_query(folder, place, summary)


def summarise_query(record: Record) -> Record:
    """Return what a list of queries shows of a record.

    >>> rollouts = [{"reward": 1.0, "outcome": "right", "correct": True}]
    >>> summarise_query({"uid": "7", "question": "47+38=?", "zone": "mastered", "rollouts": rollouts, "pairs": []})
    {'uid': '7', 'question': '47+38=?', 'zone': 'mastered', 'rewards': [1.0], 'correct': [True], \
'verdicts': ['right'], 'outcomes': []}
    """
    rollouts = record["rollouts"]
    return {
        "uid": record["uid"],
        "question": record["question"][:SHOWN_CHARACTERS],
        "zone": record["zone"],
        "rewards": [rollout["reward"] for rollout in rollouts],
        "correct": [rollout["correct"] for rollout in rollouts],
        "verdicts": [rollout["outcome"] for rollout in rollouts],
        "outcomes": [get_outcome(pair) for pair in record["pairs"]],
        **({"earlier": True} if record.get("earlier") else {}),
    }


def _read_members(folder: Path, place: StepPlace, places: Sequence[tuple[int, int]]) -> Iterator[str]:
    """Yield the text of each gzip member at (offset, size), bytes."""
    path = folder / ROLLOUTS_FOLDER / place.segment
    try:
        with path.open("rb") as file:
            for offset, size in places:
                file.seek(offset)
                yield zlib.decompress(file.read(size), GZIP).decode("utf-8")
    except FileNotFoundError:
        raise ValueError(
            f"the rollouts of step {place.step} are not on the disk: {path} was deleted, by hand or to stay below "
            "rollouts_gib."
        ) from None
    except (zlib.error, UnicodeDecodeError):
        raise ValueError(f"the rollouts of step {place.step} cannot be read: {path} is damaged or cut short.") from None
