"""Implement supervised fine-tuning: likelihood on examples. Pre-training and the cold start (section 3.2) use it."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_tapo.losses.base import Loss
from nemo_tapo.losses.likelihood import LikelihoodLoss
from nemo_tapo.metrics import ROWS, TOKENS_TRAINED
from nemo_tapo.types import Experience, Kind, Query, Row


class SFT:
    """Supervised fine-tuning: a step's experience is its examples; nothing is sampled."""

    samples = False
    term_weights: Mapping[Kind, float] = {Kind.EXAMPLE: 1.0}

    def __init__(self, examples: Callable[[int], Sequence[Row]]) -> None:
        """Take `examples(step)`, which gives the step's rows (Kind.EXAMPLE), the same at every call."""
        self.examples = examples
        self.loss: Loss = LikelihoodLoss()

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Return the step's examples."""
        return Experience(examples=tuple(self.examples(step)))

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return the examples themselves."""
        return list(experience.examples)

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Count rows and tokens."""
        return {ROWS: len(rows), TOKENS_TRAINED: sum(len(row.response_ids) for row in rows)}

    def state(self) -> dict[str, Any]:
        """Return nothing: every step stands alone."""
        return {}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Do nothing."""
