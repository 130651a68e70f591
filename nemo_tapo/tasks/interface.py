"""A task: its queries and its verifier. The loop asks for nothing else."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol

from nemo_tapo.types import Grade, Provenance, Query


class Task(Protocol):
    """Where queries come from and how responses are graded."""

    synthesis_prompt: str  # template with {question}, {wrong}, {reference}
    full_prompt: str  # the same for a whole new solution (tapo.full_reconstruction, Table 3)

    def train_queries(self) -> Sequence[Query]:
        """The training set, in a fixed order; `prompt_ids` still empty."""

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """The evaluation sets by name, each in a fixed order; uids are unique within a set, prompts still empty."""

    def provenance(self, name: str) -> Provenance:
        """Of a benchmark by its name, or of "train": where it comes from and which rows are not among its queries."""

    def row(self, query: Query) -> Mapping[str, Any]:
        """A training query's row as its publisher wrote it; a filter keeps what else stands there."""

    async def grade(self, query: Query, response: str) -> Grade:
        """Grades one response. Asynchronous: a verifier may work in other processes while the engine samples."""

    def close(self) -> None:
        """Ends what the task has started (processes of a verifier); may be called twice."""
