"""Sampling from the base for the cold start: K graded responses a query, on disk as soon as a query has all of them.

<folder>/samples/
    settings.json    what decides the samples: another model or other settings are refused
    train.jsonl      one query a line with its rollouts, in the order of arrival
"""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.datasets.sets import TRAIN
from nemo_tapo.evaluation.benchmarks import digest
from nemo_tapo.evaluation.model_files import identity
from nemo_tapo.evaluation.sample_store import Store, cut_torn_line
from nemo_tapo.types import Completion, Grade, Group, Query, Rollout
from nemo_tapo.utils.concurrency import at_once

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

FOLDER = "samples"
STEP = -1  # of the seeds: no step of RL has it
QUERIES_AT_ONCE = 128


class Groups:
    """The groups on disk, in the order of `queries` whatever order they came in, one at a time in memory."""

    def __init__(self, path: Path, queries: Sequence[Query], samples: int) -> None:
        """Cuts a half-written last line off. Raises ValueError for any other line that is no group of `samples`."""
        self.path, self.queries, self.samples = path, queries, samples
        self.places: dict[str, int] = {}  # where a query's line begins
        cut_torn_line(path)
        begin = 0
        for number, line in enumerate(_lines(path), 1):
            self.places[self._row(line, number)["uid"]] = begin
            begin += len(line)

    @property
    def missing(self) -> list[Query]:
        """Queries that were not sampled yet."""
        return [query for query in self.queries if query.uid not in self.places]

    def __iter__(self) -> Iterator[Group]:
        """Every query's group; all of them must be there."""
        with self.path.open("rb") as file:
            for query in self.queries:
                file.seek(self.places[query.uid])
                yield group_of(query, json.loads(file.readline()))

    def _row(self, line: bytes, number: int) -> dict[str, Any]:
        try:
            row = json.loads(line)
            whole = isinstance(row["uid"], str) and len(group_of(Query("", "", ""), row).rollouts) == self.samples
        except (ValueError, TypeError, KeyError):
            whole = False
        if not whole:
            raise ValueError(
                f"{self.path}: line {number} is no query with its {self.samples} responses; remove that line: its "
                "query is sampled again and nothing else is lost."
            )
        return dict(row)


def _lines(path: Path) -> Iterator[bytes]:
    if path.is_file():
        with path.open("rb") as file:
            yield from file


async def sample(session: Session, queries: Sequence[Query], folder: Path) -> Groups:
    """K responses of the base to every query, those on disk not sampled again. Raises Stopped on request.

    The seeds are made of names, so a run that was stopped or killed ends with the samples of an undisturbed one.
    """
    cfg = session.cfg
    samples = cfg.coldstart.samples_per_query
    rollout = cfg.rollout.model_copy(update={"samples_per_query": samples, "logprobs": "never"})
    algorithm = GRPO(cfg.model_copy(update={"rollout": rollout}), session.tools)
    with Store(folder / FOLDER, {**settings_of(cfg), "data": data_digest(queries)}) as store:
        path = store.path(TRAIN)
        missing = Groups(path, queries, samples).missing
        done = len(queries) - len(missing)
        stage = session.progress.stage("sampling from the base", len(queries), "queries", done=done)

        async def one(query: Query) -> None:
            store.append(TRAIN, group_row(await algorithm.rollouts(query, STEP)))
            stage.advance()

        await at_once(missing, one, QUERIES_AT_ONCE, session.stop)
    session.stop.check(f"{stage.done} of {stage.total} queries are in {path}")
    return Groups(path, queries, samples)


def settings_of(cfg: RunConfig) -> dict[str, Any]:
    """What decides the responses to a query."""
    r = cfg.rollout
    return {
        "model": identity(cfg.model.path),
        "seed": cfg.seed,
        "rollout": {"temperature": r.temperature, "top_p": r.top_p, "max_tokens": r.max_tokens},
        "coldstart": {"samples_per_query": cfg.coldstart.samples_per_query},
    }


def data_digest(queries: Sequence[Query]) -> str:
    return digest([(q.uid, q.answer, q.prompt_ids) for q in queries])


def group_row(group: Group) -> dict[str, Any]:
    """One line of JSON."""
    rollouts = [
        {
            "text": r.text,
            "token_ids": r.completion.token_ids,
            "truncated": r.completion.truncated,
            "reward": r.grade.reward,
            "outcome": r.grade.outcome,
            "answer": r.grade.answer,
        }
        for r in group.rollouts
    ]
    return {"uid": group.query.uid, "rollouts": rollouts}


def group_of(query: Query, row: Mapping[str, Any]) -> Group:
    """The inverse of `group_row`. Raises KeyError or TypeError for a row that is none."""
    return Group(
        query,
        tuple(
            Rollout(
                query,
                index,
                Completion(tuple(r["token_ids"]), r["text"], r["truncated"]),
                Grade(r["reward"], r["outcome"], r["answer"]),
            )
            for index, r in enumerate(row["rollouts"])
        ),
    )
