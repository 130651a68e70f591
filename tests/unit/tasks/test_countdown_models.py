"""The stored models of Countdown: they attempt and compute, their verdicts are true, and only one turns back."""

from __future__ import annotations

import asyncio
import sys
from collections import Counter

import pytest

from nemo_tapo.config.run_config import validate
from nemo_tapo.tasks.countdown import TURN, Problem, list_attempts, list_solutions
from nemo_tapo.types import Request
from tests.helpers.imports import ROOT

sys.path.insert(0, str(ROOT / "tools"))
import one_process

PROBLEMS = [Problem(n, t) for n, t in (((2, 5, 6), 42), ((3, 4, 5), 17), ((3, 4, 8), 20), ((5, 6, 9), 20))]


@pytest.mark.parametrize(("name", "turns"), [("countdown-base", False), ("countdown-coldstart", True)])
def test_a_stored_model_attempts_and_computes(name: str, turns: bool) -> None:
    folder = ROOT / "assets" / name
    assert sum(file.stat().st_size for file in folder.iterdir()) < 2_000_000
    runtime = one_process.OneProcessRuntime(validate({"model": {"path": str(folder)}, "local": {"threads": 1}}))
    asked = [
        (p, Request(p.question, runtime.tokenizer.chat(p.question), i, 104, 0.6)) for p in PROBLEMS for i in range(8)
    ]

    async def answer() -> list[str]:
        return [c.text for c in await asyncio.gather(*(runtime.generator.generate(request) for _, request in asked))]

    texts = asyncio.run(answer())
    seen = Counter[bool]()  # whole attempts, every sum of which is right, by whether they reach the target
    true = 0  # of their verdicts
    for (problem, _), text in zip(asked, texts, strict=True):
        assert list_solutions(problem)
        first = list_attempts(problem, text)[:1]
        seen.update(attempt.reached for attempt in first)
        true += sum(attempt.seen is True for attempt in first)
    assert seen.total() >= 16 and seen[True] >= 2 and true >= 0.75 * seen.total()
    turned = sum(TURN in text for text in texts)
    assert turned >= 4 if turns else turned <= 2
