"""Answers made to hang or break a grader: every one is graded, none costs much, the pool goes on."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator

import pytest

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.verifier import OUTCOMES, Verifier
from tests.helpers.verifier_samples import HONEST, HOSTILE, SLOW, Sample, samples

ANSWERS = 300  # of each sort


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    one = Verifier(VerifierConfig(workers=2))
    asyncio.run(one.grade("5", r"\boxed{x=5}"))  # the start is not measured
    yield one
    one.close()


def run(verifier: Verifier, batch: list[Sample]) -> tuple[list[str], float]:
    """Outcomes in order, and seconds."""

    async def script() -> list[str]:
        return [g.outcome for g in await asyncio.gather(*(verifier.grade(*sample) for sample in batch))]

    start = time.monotonic()
    return asyncio.run(script()), time.monotonic() - start


def test_hostile_answers_cost_at_most_ten_times_as_many_honest_ones(verifier: Verifier) -> None:
    verifier.counts.clear()
    honest, usual = run(verifier, samples(HONEST, ANSWERS))
    assert set(honest) - {"timeout"} == {"right", "wrong"}
    assert honest.count("timeout") <= 4  # by the clock, where a machine is starved; none needs so much processor time
    assert verifier.counts["compared"] == ANSWERS - honest.count("timeout")  # no shortcut makes the honest ones cheap
    hostile, seconds = run(verifier, samples(HOSTILE, ANSWERS))
    assert len(hostile) == ANSWERS
    assert set(hostile) <= set(OUTCOMES) - {"right"}
    assert verifier.counts.total() == 2 * ANSWERS
    assert seconds < 10 * usual  # about 1 when this was written, so a busy machine cannot tip it
    assert run(verifier, [("5", r"\boxed{x = 5}")])[0] == ["right"]


@pytest.mark.parametrize("kind", range(len(HOSTILE)))
def test_each_kind_of_hostile_answer_has_its_outcome(verifier: Verifier, kind: int) -> None:
    expected = {2: "error", 3: "no_answer", 4: "error", 15: "wrong", 16: "wrong"}
    (outcome,), _ = run(verifier, [HOSTILE[kind](777)])
    assert outcome == expected.get(kind, "wrong" if kind == 0 else "error")


def test_what_no_guard_foresees_is_killed_and_counted(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_tapo.grading.verifier.PROCESSOR_SHARE", 0.05)
    one = Verifier(VerifierConfig(workers=2))
    try:
        outcomes, _ = run(one, samples((*SLOW, HONEST[9]), 20 * (len(SLOW) + 1)))
        counted = Counter(outcomes)
        assert counted["right"] == 20  # the honest ones among them
        assert counted["timeout"] == 20 * len(SLOW) == one._pool.deaths
        assert one.counts["processor_time"] + one.counts["clock_time"] == 20 * len(SLOW)
    finally:
        one.close()


def test_memory_is_bounded() -> None:
    """As a grader sets it for itself; what it wants beyond is refused."""
    text = """
from nemo_tapo.grading import grader
grader._limit_memory(grader.MEMORY)
within = bytearray(grader.MEMORY // 2)
try:
    beyond = bytearray(grader.MEMORY)
except MemoryError:
    print("refused")
"""
    assert (
        subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout == "refused\n"
    )
