"""What the loop knows of an algorithm: it collects experience, turns it into rows, and names its loss."""

from __future__ import annotations

import time
from dataclasses import dataclass

from nemo_tapo.interfaces import Generator, Task, Tokenizer
from nemo_tapo.types import Grade, Query


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
