"""A task: its queries and its verifier. The loop asks for nothing else."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

from nemo_tapo.types import Grade, Query


class Task(Protocol):
    """Where queries come from and how responses are graded."""

    synthesis_prompt: str  # template with {question}, {wrong}, {reference}

    def train_queries(self) -> Sequence[Query]:
        """The training set, in a fixed order; `prompt_ids` still empty."""

    def held_out_queries(self) -> Sequence[Query]:
        """The evaluation set: no member stands in the training set or in any corpus of the task."""

    async def grade(self, query: Query, response: str) -> Grade:
        """Grades one response. Asynchronous: a verifier may work in other processes while the engine samples."""
