"""Sample from the base for the cold start: K graded responses per query, written when a query has all of them.

<folder>/samples/
    settings.json    the settings that determine the samples: another model or other settings are refused
    train.jsonl      one query per line with its rollouts, in the order of arrival
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.rollout_json import read_rollout, write_rollout
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.datasets.sets import TRAIN
from nemo_tapo.evaluation.model_files import get_model_identity
from nemo_tapo.evaluation.sample_store import SampleStore, cut_torn_line
from nemo_tapo.types import Group, Query
from nemo_tapo.utils.concurrency import for_each_concurrently
from nemo_tapo.utils.files import hash_json
from nemo_tapo.utils.jsonl import parse_checked_line

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

FOLDER = "samples"
SEED_STEP = -1  # step number in the seeds; no step of RL has it
QUERIES_AT_ONCE = 128


class StoredGroups:
    """The groups on disk, read one at a time, in the order of `queries` whatever their order in the file."""

    def __init__(self, path: Path, queries: Sequence[Query], samples: int) -> None:
        """Cut off a half-written last line and index the file.

        Raises ValueError for any other line that is not a group of `samples` rollouts.
        """
        self.path, self.queries, self.samples = path, queries, samples
        self.offsets: dict[str, int] = {}  # uid -> byte offset of the query's line
        cut_torn_line(path)
        begin = 0
        for number, line in enumerate(_read_lines(path), 1):
            self.offsets[self._parse_line(line, number)["uid"]] = begin
            begin += len(line)

    @property
    def missing(self) -> list[Query]:
        """The queries that have not been sampled yet."""
        return [query for query in self.queries if query.uid not in self.offsets]

    def __iter__(self) -> Iterator[Group]:
        """Yield every query's group. No query may be missing."""
        with self.path.open("rb") as file:
            for query in self.queries:
                file.seek(self.offsets[query.uid])
                yield group_from_row(query, json.loads(file.readline()))

    def _parse_line(self, line: bytes, number: int) -> dict[str, Any]:
        """Parse line `number`. Raises ValueError if it is not a query with its responses."""
        try:
            row = parse_checked_line(line)
            whole = isinstance(row["uid"], str) and len(group_from_row(Query("", "", ""), row).rollouts) == self.samples
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise ValueError(
                f"{self.path}: line {number} is no query with its {self.samples} responses; remove that line: its "
                "query is sampled again and nothing else is lost."
            )
        return dict(row)


def _read_lines(path: Path) -> Iterator[bytes]:
    """Yield the lines of a file, or nothing if there is no file."""
    if path.is_file():
        with path.open("rb") as file:
            yield from file


async def sample_groups(session: Session, queries: Sequence[Query], folder: Path) -> StoredGroups:
    """Sample K responses of the base to every query, except those already on disk. Raises Stopped on request.

    Seeds are derived from names, so a resumed run gets the same samples as an uninterrupted one.
    """
    cfg = session.cfg
    samples = cfg.coldstart.samples_per_query
    rollout = cfg.rollout.model_copy(update={"samples_per_query": samples, "logprobs": "never"})
    algorithm = GRPO(cfg.model_copy(update={"rollout": rollout}), session.tools)
    with SampleStore(folder / FOLDER, {**get_sampling_settings(cfg), "data": hash_queries(queries)}) as store:
        path = store.path(TRAIN)
        missing = StoredGroups(path, queries, samples).missing
        done = len(queries) - len(missing)
        stage = session.progress.start_stage("sampling from the base", len(queries), "queries", done=done)

        async def sample_one(query: Query) -> None:
            store.append_row(TRAIN, row_from_group(await algorithm.sample_group(query, SEED_STEP)))
            stage.advance()

        await for_each_concurrently(missing, sample_one, QUERIES_AT_ONCE, session.stop)
    session.stop.check(f"{stage.done} of {stage.total} queries are in {path}")
    return StoredGroups(path, queries, samples)


def get_sampling_settings(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that determine the responses to a query."""
    r = cfg.rollout
    return {
        "model": get_model_identity(cfg.model.path),
        "seed": cfg.seed,
        "rollout": {"temperature": r.temperature, "top_p": r.top_p, "max_tokens": r.max_tokens},
        "coldstart": {"samples_per_query": cfg.coldstart.samples_per_query},
        **cfg.grading_identity,
    }


def hash_queries(queries: Sequence[Query]) -> str:
    """Return a digest of the queries: uids, gold answers and prompt ids."""
    return hash_json([(q.uid, q.answer, q.prompt_ids) for q in queries])


def row_from_group(group: Group) -> dict[str, Any]:
    """Return a group as one JSON object for train.jsonl."""
    return {"uid": group.query.uid, "rollouts": [write_rollout(r) for r in group.rollouts]}


def group_from_row(query: Query, row: Mapping[str, Any]) -> Group:
    """Return the group of a row: the inverse of `row_from_group`.

    Raises KeyError or TypeError if `row` is malformed.

    >>> from nemo_tapo.types import Completion, Grade, Rollout
    >>> query = Query(uid="7", question="47+38=?", answer="85")
    >>> rollout = Rollout(query, 0, Completion((5, 2), "85", truncated=False), Grade(1.0, "right", "85"))
    >>> group = Group(query, (rollout,))
    >>> group_from_row(query, row_from_group(group)) == group
    True
    """
    return Group(query, tuple(read_rollout(query, index, r) for index, r in enumerate(row["rollouts"])))
