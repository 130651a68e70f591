"""The engine of tools/latency_engine.py: its clock by hand, and what each pipeline costs where decoding is latency."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

import pytest

from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, arithmetic_script
from nemo_tapo.types import Request

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import latency_engine as tool  # noqa: E402


def test_the_clock_by_hand(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three requests of 100, 300 and 200 tokens, two at a time: the third begins when the first is done."""
    monkeypatch.setattr(tool, "draw_length", {1: 100, 2: 300, 3: 200}.__getitem__)
    monkeypatch.setattr(tool, "MOST_AT_ONCE", 2)
    engine = tool.LatencyEngine(arithmetic_script, CharacterTokenizer(), 4096)
    done: dict[int, float] = {}

    async def ask(seed: int) -> None:
        await engine.generate(Request(str(seed), (2, *b"1\na: +2", 3), seed, 96))
        done[seed] = engine.clock / tool.STEP_SECONDS

    async def ask_all() -> None:
        await asyncio.gather(*(ask(seed) for seed in (1, 2, 3)))

    asyncio.run(ask_all())
    assert done == pytest.approx({1: 100.0, 2: 300.0, 3: 300.0})


def test_deferred_costs_next_to_nothing() -> None:
    seconds = tool.measure_pipelines(steps=4, queries=8)
    ratios = {name: value / seconds["grpo"] for name, value in seconds.items()}
    assert ratios["deferred"] < 1.10
    assert ratios["barrier"] > 1.4 and ratios["barrier"] >= ratios["overlapped"] > 1.2
