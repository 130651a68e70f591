"""Give an algorithm what it may call: the engine, the tokenizer, the verifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nemo_tapo.interfaces import Generator, Task, Tokenizer
from nemo_tapo.types import Grade, Query, settle_grade


@dataclass
class Tools:
    """What an algorithm may call."""

    generator: Generator
    tokenizer: Tokenizer
    task: Task
    correct_at: float | None = None  # tapo.correct_at
    on_failure: Callable[[Query, str, Grade], None] | None = None  # told of every response that got no reward
    grading_seconds: float = 0.0  # spent waiting for grades, added up over all concurrent waits

    async def grade(self, query: Query, response: str) -> Grade:
        """Return the task's verdict under the run's threshold, and count the time it took."""
        begin = time.perf_counter()
        grade = await self.task.grade(query, response)
        self.grading_seconds += time.perf_counter() - begin
        grade = settle_grade(grade, self.correct_at)
        if not grade.graded and self.on_failure is not None:
            self.on_failure(query, response, grade)
        return grade
