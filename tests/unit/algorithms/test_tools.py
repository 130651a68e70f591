"""What the verifier is given of a rollout: one cut off within its thinking never answered."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import pytest

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import validate
from nemo_tapo.grading.verifier import Verifier
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedGenerator
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.types import Grade, Query


class Thinking(CharacterTokenizer):
    """A chat template that opens the thought itself, as those of reasoning models do."""

    def chat(self, user_text: str) -> tuple[int, ...]:
        return (*super().chat(user_text), *self.encode("<think>\n"))


class Numbers(ArithmeticTask):
    """Grades as the mathematics task does."""

    async def grade(self, query: Query, response: str) -> Grade:
        return await self.verifier.grade(query.answer, response)

    verifier: Verifier


def rewards(responses: Sequence[str], tokenizer: CharacterTokenizer, max_tokens: int) -> list[float]:
    """Sample the responses as the rollouts of one query whose answer is 5."""
    cfg = validate({"algorithm": "grpo", "rollout": {"samples_per_query": len(responses), "max_tokens": max_tokens}})
    task = Numbers(cfg.task.arithmetic, 0)
    task.verifier = Verifier(cfg.task.mathematics.verifier)
    generator = ScriptedGenerator(lambda _, request: responses[int(request.uid[-1])], tokenizer, 4096)
    query = Query("7", "2+3=?", "5", tokenizer.chat("2+3=?"))
    try:
        group = asyncio.run(GRPO(cfg, Tools(generator, tokenizer, task)).sample_group(query, 0))
    finally:
        task.verifier.close()
    return [rollout.reward for rollout in group.rollouts]


@pytest.mark.parametrize(("tokenizer", "cut_off"), [(Thinking(), 0.0), (CharacterTokenizer(), 1.0)])
def test_a_rollout_cut_off_within_its_thinking_is_not_right(tokenizer: CharacterTokenizer, cut_off: float) -> None:
    finished = "Is it 4?</think>\\boxed{5}"
    endless = "Suppose \\boxed{5}. But then" + " again" * 20
    assert rewards([finished, endless], tokenizer, max_tokens=60) == [1.0, cut_off]
