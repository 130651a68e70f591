"""The engine of tools/latency_engine.py: its clock by hand, and what each pipeline costs where decoding is latency."""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path
from typing import Any

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


def test_an_update_takes_its_seconds_beside_what_is_decoded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tool, "draw_length", {1: 100, 2: 300}.__getitem__)
    engine = tool.LatencyEngine(arithmetic_script, CharacterTokenizer(), 4096)
    ends: list[tuple[str, float]] = []

    async def note(name: str, work: Any) -> None:
        await work
        ends.append((name, round(engine.clock / tool.STEP_SECONDS, 6)))

    async def both() -> None:
        ask = (engine.generate(Request(str(seed), (2, *b"1\na: +2", 3), seed, 96)) for seed in (1, 2))
        await asyncio.gather(note("1", next(ask)), note("2", next(ask)), note("update", engine.wait(2.6)))
        await note("weights", engine.wait(1.3))

    asyncio.run(both())
    assert ends == [("1", 100.0), ("update", 200.0), ("2", 300.0), ("weights", 400.0)]


@pytest.fixture(scope="module")
def seconds() -> dict[str, float]:
    return dict(tool.measure_pipelines(steps=4, queries=8))


def test_with_a_lag_an_update_costs_nothing_where_rollouts_take_longer(seconds: dict[str, float]) -> None:
    """The policy has a quarter of the GPUs, so that its update takes four times as long, still less than rollouts."""
    for name, lagged in tool.measure_lag(steps=4, queries=8).items():
        assert 0.9 < lagged / seconds[name] < 1.0
    assert 0.6 < tool.measure_balanced_lag(steps=4, queries=32) < 0.8


def test_deferred_costs_next_to_nothing(seconds: dict[str, float]) -> None:
    ratios = {name: value / seconds["grpo"] for name, value in seconds.items()}
    assert ratios["deferred"] < 1.10
    assert ratios["barrier"] > 1.4 and ratios["barrier"] >= ratios["overlapped"] > 1.2
