"""Supervised fine-tuning: maximum likelihood on examples. Pre-training and the cold start (section 3.2) run it."""

from __future__ import annotations

from collections.abc import Callable, Sequence

from nemo_tapo.losses.base import Loss
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.metrics import ROWS, TOKENS_TRAINED
from nemo_tapo.types import Experience, Query, Row


class SFT:
    """Its experience is a step's examples; nothing is sampled."""

    def __init__(self, examples: Callable[[int], Sequence[Row]]) -> None:
        """`examples(step)` gives the step's rows (Kind.EXAMPLE), the same whenever it is asked."""
        self.examples = examples
        self.loss: Loss = LikelihoodLoss()

    async def experience(self, step: int, queries: Sequence[Query]) -> Experience:
        return Experience(examples=tuple(self.examples(step)))

    def rows(self, experience: Experience) -> list[Row]:
        return list(experience.examples)

    def metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        return {ROWS: len(rows), TOKENS_TRAINED: sum(len(row.response_ids) for row in rows)}
