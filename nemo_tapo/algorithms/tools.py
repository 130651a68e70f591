"""Give an algorithm what it may call: the engine, the tokenizer, the verifier."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import dataclass

from nemo_tapo.interfaces import Generator, Task, Tokenizer
from nemo_tapo.types import Completion, Grade, Query, settle_grade

THINK = "<think>"
PROMPT_END = 16  # tokens at the end of a prompt, among which a THINK is looked for


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

    async def grade_completion(self, query: Query, completion: Completion) -> Grade:
        """Return the task's verdict of a sampled response; one cut off within its thinking never answered."""
        thinks = completion.truncated and opens_thought(self.tokenizer, query.prompt_ids)
        return await self.grade(query, make_graded_text(completion.text, completion.truncated, thinks))


def opens_thought(tokenizer: Tokenizer, prompt_ids: tuple[int, ...]) -> bool:
    """Return whether a prompt, by the model's chat template, ends with THINK: the response then begins within it."""
    return tokenizer.decode(prompt_ids[-PROMPT_END:]).rstrip().endswith(THINK)


def make_graded_text(text: str, truncated: bool, thinks: bool) -> str:
    r"""Return what the verifier reads: the response; with its THINK if it was cut off and that is in the prompt.

    So the verifier sees which responses were cut off within their thinking: these never answered, whatever is boxed.

    >>> make_graded_text(r"Suppose \boxed{5}. But then", truncated=True, thinks=True)
    '<think>Suppose \\boxed{5}. But then'
    """
    return THINK + text if thinks and truncated else text
