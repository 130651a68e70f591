"""What the loop knows of an algorithm: it collects experience, turns it into rows, and names its objective."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Iterable, Sequence
from dataclasses import dataclass
from typing import Protocol, TypeVar

from nemo_tapo.objective import Objective
from nemo_tapo.runtime.interface import Generator, Tokenizer
from nemo_tapo.tasks.interface import Task
from nemo_tapo.types import Experience, Grade, Query, Row

T = TypeVar("T")


@dataclass
class Tools:
    """What an algorithm may call: the engine, the tokenizer, the verifier."""

    generator: Generator
    tokenizer: Tokenizer
    task: Task
    grading_seconds: float = 0.0  # spent waiting for grades, added up over all that wait at once

    async def grade(self, query: Query, response: str) -> Grade:
        """The task's verdict, its time counted."""
        begin = time.perf_counter()
        grade = await self.task.grade(query, response)
        self.grading_seconds += time.perf_counter() - begin
        return grade


class Algorithm(Protocol):
    """One step is `experience` then `rows`; the actor differentiates `objective` over the rows."""

    objective: Objective

    async def experience(self, step: int, queries: Sequence[Query]) -> Experience:
        """Everything that has to be sampled or graded for one step, in query order."""

    def rows(self, experience: Experience) -> list[Row]:
        """The training rows, advantages included. Pure."""

    def metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """The step's counters. Pure."""


async def concurrently(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Runs all at once, results in the order given. The first failure cancels the others and is raised alone."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
