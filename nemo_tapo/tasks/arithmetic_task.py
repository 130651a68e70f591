"""The generated arithmetic as an `interfaces.Task`: queries and verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tapo.config.sections import ArithmeticConfig
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Grade, Provenance, Query


class ArithmeticTask:
    """Chains of two-digit additions and subtractions; arithmetic.py describes the mistakes that its corpus teaches."""

    synthesis_prompt = arithmetic.SYNTHESIS_PROMPT
    full_prompt = arithmetic.FULL_PROMPT
    quoting_prompt, error_quote = synthesis_prompt, arithmetic.ERROR_QUOTE

    def __init__(self, cfg: ArithmeticConfig, seed: int) -> None:
        self.cfg, self.seed = cfg, seed

    def train_queries(self) -> Sequence[Query]:
        """Return `train_queries` different problems, drawn from the run's seed."""
        drawn = arithmetic.draw_problems(
            self.cfg.train_queries, self.seed, self.cfg.min_operations, self.cfg.max_operations
        )
        return [Query(f"train-{i}", p.question, p.answer, solution="\n".join(p.lines)) for i, p in enumerate(drawn)]

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the first `held_out_queries` test problems: the same for every seed, and in no training data."""
        problems = arithmetic.get_held_out_problems(self.cfg.held_out_queries)
        return {"arithmetic": [Query(f"test-{i}", p.question, p.answer) for i, p in enumerate(problems)]}

    def provenance(self, name: str) -> Provenance:
        """Return "generated" as the source; no row is set aside."""
        return Provenance("generated", self.cfg.train_queries if name == "train" else self.cfg.held_out_queries)

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return an empty mapping: a query has nothing beyond question and answer."""
        return {}

    def locate_error(self, query: Query, response: str) -> int | None:
        """Ask the oracle (`arithmetic.diagnose`); None for a response in another format."""
        found = arithmetic.diagnose(arithmetic.parse_question(query.question), response)
        return None if found is None else len("\n".join(response.split("\n")[: found.line + 1]))

    def write_correction(self, query: Query, wrong: str, reference: str, full: bool, seed: int) -> str | None:
        """Write the oracle's correction; it knows the right lines and needs no reference."""
        problem = arithmetic.parse_question(query.question)
        if full:
            fixed = arithmetic.write_full_correction(problem, wrong)
        else:
            fixed = arithmetic.write_correction(problem, wrong, seed)
        return None if fixed is None else fixed.text

    async def grade(self, query: Query, response: str) -> Grade:
        """Compare the integer in the last box. This takes microseconds, so it runs in this process."""
        reward, outcome = arithmetic.verify_response(query.answer, response)
        return Grade(reward, outcome, find_last_boxed(response))

    def close(self) -> None:
        """Do nothing: no process was started."""
