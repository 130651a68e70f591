"""Reward functions: what they may return, and that whatever goes wrong is one response's reason and nobody's 0."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_tapo.config.sections import GradingConfig
from nemo_tapo.grading.calls import REASONS, FunctionSpec
from nemo_tapo.grading.user_grader import UserGrader
from nemo_tapo.types import Grade, Query
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.user_code import hash_code

FUNCTIONS = """
import asyncio, os, random, time
from nemo_tapo.types import Grade

def share(response, query): return len(response) / 10
def truth(response, query): return response == query.answer
def own_grade(response, query): return Grade(0.25, "half", response)
def from_row(response, query): return query.row["score"]
def draws(response, query): return random.random()
def numpy_number(response, query):
    import numpy
    return numpy.float32(0.5)
async def later(response, query):
    await asyncio.sleep(0)
    return 0.75

def raises(response, query): raise KeyError("no such word")
def quits(response, query): raise SystemExit(3)
def spins(response, query):
    while True: pass
def sleeps(response, query): time.sleep(1000)
def dies(response, query): os._exit(7)
def eats_memory(response, query): return [0] * 10**10
def nothing(response, query): pass
def text(response, query): return "0.5"
def numbers(response, query): return [0.5]
def nan(response, query): return float("nan")
def infinite(response, query): return float("inf")
def negative(response, query): return -0.5
def above(response, query): return Grade(2.0, "right")
async def never(response, query): await asyncio.sleep(1000)
async def raises_later(response, query): raise TimeoutError("of its own")
"""
GOOD = {"share": 0.3, "truth": 1.0, "own_grade": 0.25, "from_row": 0.6, "numpy_number": 0.5, "later": 0.75}
BAD = {
    "raises": ("raised", "KeyError: 'no such word'"),
    "quits": ("raised", "SystemExit: 3"),
    "raises_later": ("raised", "TimeoutError: of its own"),
    "eats_memory": ("raised", "MemoryError"),
    "spins": ("timeout", "no answer in 1 s"),
    "sleeps": ("timeout", "no answer in 1 s"),
    "never": ("timeout", "no answer in 1 s"),
    "dies": ("died", "its process died"),
    "nothing": ("none", "it returned None"),
    "text": ("not_a_number", "it returned '0.5'"),
    "numbers": ("not_a_number", "it returned [0.5]"),
    "nan": ("nan", "it returned nan"),
    "infinite": ("out_of_range", "it returned inf, which is not from 0 to 1"),
    "negative": ("out_of_range", "it returned -0.5, which is not from 0 to 1"),
    "above": ("out_of_range", "it returned 2.0, which is not from 0 to 1"),
}
NAMES = [*GOOD, *BAD, "draws"]
QUERY = Query("train-7", "3 letters?", "abc", row={"score": 0.6})


@pytest.fixture(scope="module")
def file(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("user") / "functions.py"
    path.write_text(FUNCTIONS)
    return path


@pytest.fixture(scope="module")
def grader(file: Path) -> Iterator[UserGrader]:
    made = UserGrader(GradingConfig(deadline=1), [FunctionSpec("task.reward", f"{file}:{name}") for name in NAMES])
    yield made
    made.close()


def grade(grader: UserGrader, name: str, response: str = "abc") -> Grade:
    return asyncio.run(grader.grade(NAMES.index(name), QUERY, response))


@pytest.mark.parametrize(("name", "reward"), GOOD.items())
def test_a_number_from_0_to_1_or_a_grade_is_a_reward(grader: UserGrader, name: str, reward: float) -> None:
    found = grade(grader, name)
    assert found.graded and found.reward == pytest.approx(reward)
    assert (found.outcome, found.answer) == (("half", "abc") if name == "own_grade" else ("right", None))


@pytest.mark.parametrize(("name", "expected"), BAD.items())
def test_anything_else_is_a_reason(grader: UserGrader, name: str, expected: tuple[str, str]) -> None:
    found = grade(grader, name)
    assert not found.graded
    assert (found.outcome, found.detail) == (f"no_reward_{expected[0]}", expected[1])


def test_every_reason_is_tried() -> None:
    assert {reason for reason, _ in BAD.values()} == set(REASONS)


def test_a_hanging_response_holds_up_no_other(grader: UserGrader) -> None:
    async def all_at_once() -> list[Grade]:
        return await asyncio.gather(
            *(grader.grade(NAMES.index(name), QUERY, "abc") for name in ("spins", *["share"] * 20, "sleeps"))
        )

    assert [round(found.reward, 6) for found in asyncio.run(all_at_once())[1:-1]] == [0.3] * 20


def test_the_same_response_draws_the_same_numbers(grader: UserGrader) -> None:
    assert grade(grader, "draws") == grade(grader, "draws") != grade(grader, "draws", "abd")


def test_a_function_that_cannot_be_called_is_refused_at_once(file: Path, tmp_path: Path) -> None:
    other = tmp_path / "other.py"
    other.write_text("class Kind:\n    pass\nNUMBER = 5\ndef one(response): return 1\n")
    for name, sentence in (
        ("Kind", "is no function."),
        ("NUMBER", "is no function."),
        ("one", "takes (response); it is called with (response, query)."),
    ):
        with pytest.raises(ValueError) as error:  # noqa: PT011 - the whole sentence is compared
            UserGrader(GradingConfig(), [FunctionSpec("task.reward", f"{other}:{name}")])
        assert str(error.value) == f"task.reward = {other}:{name} {sentence}"


def test_a_file_that_changes_under_the_run_ends_it(tmp_path: Path) -> None:
    """Processes that start later would grade otherwise than those before."""
    changing = tmp_path / "changing.py"
    changing.write_text("def f(response, query): return 1\n")
    target = f"{changing}:f"
    grader = UserGrader(GradingConfig(workers=1), [FunctionSpec("task.reward", target, digest=hash_code(target, "k"))])
    changing.write_text("def f(response, query): return 0\n")
    with pytest.raises(RuntimeFailure, match=r"task\.reward = .*: the file has changed since the run began"):
        asyncio.run(grader.grade(0, QUERY, "abc"))
    grader.close()
