"""The generated arithmetic as a Task (queries + verifier) for the loop."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tapo.config.sections import ArithmeticConfig
from nemo_tapo.grading.boxed import last_boxed
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Grade, Provenance, Query


class ArithmeticTask:
    """Chains of two-digit additions and subtractions; see arithmetic.py for the mistake its corpus teaches."""

    synthesis_prompt = arithmetic.SYNTHESIS_PROMPT
    full_prompt = arithmetic.FULL_PROMPT

    def __init__(self, cfg: ArithmeticConfig, seed: int) -> None:
        self.cfg, self.seed = cfg, seed

    def train_queries(self) -> Sequence[Query]:
        """`train_queries` different problems, drawn from the run's seed."""
        drawn = arithmetic.problems(self.cfg.train_queries, self.seed, self.cfg.min_operations, self.cfg.max_operations)
        return [Query(f"train-{i}", p.question, p.answer, solution="\n".join(p.lines)) for i, p in enumerate(drawn)]

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """The first `held_out_queries` of the fixed test problems; the same for every seed, in no training data."""
        problems = arithmetic.held_out(self.cfg.held_out_queries)
        return {"arithmetic": [Query(f"test-{i}", p.question, p.answer) for i, p in enumerate(problems)]}

    def provenance(self, name: str) -> Provenance:
        """Generated; nothing had to be set aside."""
        return Provenance("generated", self.cfg.train_queries if name == "train" else self.cfg.held_out_queries)

    def row(self, query: Query) -> Mapping[str, Any]:
        """Nothing beyond question and answer."""
        return {}

    async def grade(self, query: Query, response: str) -> Grade:
        """Compares the integer in the last box; microseconds, so no other process is asked."""
        reward, outcome = arithmetic.verify(query.answer, response)
        return Grade(reward, outcome, last_boxed(response))

    def close(self) -> None:
        """Nothing was started."""
