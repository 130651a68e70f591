"""The verifier: extraction, verdicts, memory, and its processes when they are cut off, killed or stopped."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading import grader, pool
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.grading.verifier import OUTCOMES, Verifier
from nemo_tapo.types import Grade
from nemo_tapo.utils.errors import RuntimeFailure

SLOW = ("x^3+x=2", r"\boxed{x^{100}+3x+1=0}")  # sympy solves for longer than any deadline here
Make = Callable[..., Verifier]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    one = Verifier(VerifierConfig(workers=2))
    yield one
    one.close()


@pytest.fixture
def forgetful(verifier: Verifier) -> Make:
    """Verifiers with a memory of their own over the processes of `verifier`, for these take seconds to start."""

    def new(**settings: Any) -> Verifier:
        one = Verifier(VerifierConfig(**settings))
        one._pool = verifier._pool
        return one

    return new


@pytest.fixture
def make() -> Iterator[Make]:
    """Verifiers with processes of their own, closed after the test."""
    made: list[Verifier] = []

    def new(**settings: Any) -> Verifier:
        made.append(Verifier(VerifierConfig(**settings)))
        return made[-1]

    yield new
    for one in made:
        one.close()


def grade(one: Verifier, gold: str, response: str) -> Grade:
    return asyncio.run(one.grade(gold, response))


async def all_of(calls: list[Awaitable[Grade]]) -> list[Grade]:
    return await asyncio.gather(*calls)


def processes(one: Verifier) -> list[int]:
    """Nursery first, then its graders."""
    assert one._pool._fork_server is not None
    nursery = one._pool._fork_server.pid
    children = Path(f"/proc/{nursery}/task/{nursery}/children").read_text().split()
    return [nursery, *map(int, children)]


def alive(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except OSError:
        return False
    return state not in "ZX"


def wait_until(condition: Callable[[], bool]) -> None:
    for _ in range(400):
        if condition():
            return
        time.sleep(0.05)
    raise AssertionError("waited 20 seconds in vain")


# ---------------------------------------------------------------------------------- extraction


@pytest.mark.parametrize(
    ("text", "content"),
    [
        (r"so \boxed{42}.", "42"),
        (r"\boxed{3}. Wait, that is wrong. \boxed{2}", "2"),
        (r"\boxed{3}. Wait, \boxed{2", "3"),  # cut off within the second
        (r"\boxed{\frac{1}{2}}", r"\frac{1}{2}"),
        (r"\boxed{\boxed{7}}", "7"),
        (r"\boxed{\{1, 2\}}", r"\{1, 2\}"),
        (r"\boxed{\left\{ x \right.}", r"\left\{ x \right."),  # \{ opens no group
        (r"\boxed{a \\{b}}", r"a \\{b}"),  # a line break and a group
        (r"\fbox{9}", "9"),
        (r"\boxed {5}", "5"),
        (r"\\boxed{5}", "5"),  # doubled as in JSON
        ("\\boxed{1\n2}", "1\n2"),
        (r"}} \boxed{6} }", "6"),
        (r"{ \boxed{6}", "6"),
        (r"\boxed{}", ""),
        (r"\boxed{1", None),
        (r"\boxed", None),
        (r"\boxed 5", None),
        ("the answer is 5", None),
        ("", None),
    ],
)
def test_the_last_balanced_box(text: str, content: str | None) -> None:
    assert find_last_boxed(text) == content


def by_trying(text: str) -> str | None:
    """The same in the obvious, quadratic way: box after box from the end, character after character."""
    for start in reversed(range(len(text))):
        if text.startswith("\\boxed{", start):
            depth, i = 1, start + len("\\boxed{")
            while i < len(text):
                if text[i] == "\\":
                    step = len("\\boxed") if text.startswith("\\boxed{", i) else 2
                    i += step
                    continue
                depth += {"{": 1, "}": -1}.get(text[i], 0)
                if depth == 0:
                    return text[start + len("\\boxed{") : i]
                i += 1
    return None


@given(st.lists(st.sampled_from(["\\boxed{", "{", "}", "\\{", "\\}", "x", " "]), max_size=30).map("".join))
@settings(max_examples=500, deadline=None)
def test_extraction_agrees_with_trying_every_box(text: str) -> None:
    assert find_last_boxed(text) == by_trying(text)


def test_extraction_is_linear() -> None:
    many = 200_000  # trying box after box would take hours
    assert find_last_boxed(r"\boxed{" * many) is None
    assert find_last_boxed(r"\boxed{5}" + r"\boxed{" * many) == "5"
    assert find_last_boxed(r"\boxed{" + "{" * many + "}" * many + "}") == "{" * many + "}" * many
    run = "\\" * many
    for letter in ("", "b", "f", "boxed", "\n"):
        assert find_last_boxed(run + letter) is None
        assert find_last_boxed(rf"\boxed{{5}} \boxed{{{run}{letter}") == "5"
    assert find_last_boxed(run + r"boxed{\boxed{5}") == "5"


def test_any_run_of_backslashes_opens_a_box() -> None:
    for run in ("\\" * n for n in range(1, 6)):  # JSON doubles them, and a line break may stand before
        assert find_last_boxed(rf"{run}boxed{{5}} or {run}boxed{{6") == "5"
        assert find_last_boxed(rf"{run}fbox{{4{run}boxed{{5}}}}") == "5"
        assert find_last_boxed(rf"{run}boxed{{4{run}fbox{{5") is None
        assert find_last_boxed(rf"{run}boxed{{x{run}}}boxed{{6") == (None if len(run) % 2 else f"x{run}")


# ---------------------------------------------------------------------------------- verdicts

RIGHT = r"""
1000 = 1e3
073 = 73            | 73 = 073            | 1,000 = 1000          | 1000 = 1{,}000        | 1000 = 1\,000
1000 = 1 000        | 10080 = 10,\!080    | 5 = +5                | -5 = \(-5\)            | 5 = $5$
5 = \(5\)           | 5 = 5.              | 5 = 5.0               | 5 = {{5}}             | 5 = \text{5}
5 = \mathbf{5}      | 0 = -0              | 12000 = 12\,000\text{ cm}
\frac12 = \frac{1}{2} | \frac12 = 0.5     | \frac12 = 1/2         | 1/2 = \dfrac{1}{2}    | 0.75 = 3/4
\frac32 = 1\frac12  | \frac32 = 1 1/2     | -\frac32 = -1\frac12  | \frac{3}{2} = 1.5     | 2.50 = 2.5
2\sqrt{3} = \sqrt{12} | 2\sqrt3 = 2\sqrt{3} | 2\sqrt{2} = 2√2     | \frac{\sqrt{3}}{3} = \frac{1}{\sqrt3}
\frac{\pi}{2} = π/2 | 1+\sqrt{2} = \sqrt{2}+1 | x^2+2x+1 = (x+1)^2 | 2^{25} 26! = 26! \cdot 2^{25}
50 = 50\%           | 50\% = 50           | 0.5 = 50\%            | 50\% = 0.5            | 12.5\% = \frac18
50 = 50%            | 50\% = 50 percent   | 120 = 5!              | 10 = \binom52         | 1500 = 1.5 \times 10^3
5 = x=5             | x=5 = 5             | 3 = k = 3             | y=2x+3 = y = 3+2x     | 7 = 7 \text{ apples}
5 = 5\text{ cm}     | 12 = 12 \text{ units}^2 | 10 = \$10         | \$18.90 = 18.9        | 25 = 25 \mathrm{~cm}
336 = 336^\circ     | 336^\circ = 336     | 336 = 336°            | 336 = 336 \text{ degrees}
A = \text{(A)}      | \text{(A)} = A      | B = \textbf{(B)}      | \text{Evelyn} = Evelyn | yes = \text{Yes}
\text{6:00 PM} = 6:00 PM | \emptyset = \varnothing | \infty = ∞
(3, \frac{\pi}{2}) = (3,\pi/2) | (1,2,3) = (1, 2, 3) | (2,1) = 2,1
1,2 = 2,1           | \{1,2\} = 2, 1      | 1,-2 = 1 \text{ and } -2 | x=2 \text{ or } x=3 = 2,3
[1,2) = [1, 2)      | [-2,7] = x\in[-2,7] | [-2,7] = -2 \le x \le 7 | -2\le x\le7 = [-2,7]
1 \pm \sqrt{19} = 1+\sqrt{19},1-\sqrt{19} | (-\infty,2)\cup(3,\infty) = (3,\infty)\cup(-\infty,2)
\begin{pmatrix}1\\2\end{pmatrix} = \begin{bmatrix}1\\2\end{bmatrix}
4,-1 = \frac{3\pm5}{2} | 4,-1 = x = \frac{3 \pm 5}{2} | \frac{3\pm5}{2} = -1, 4 | \pm 2 = 2,-2 | 2,-2 = \{\pm 2\}
$\frac{-1+\sqrt{17}}{2}, \frac{-1-\sqrt{17}}{2}$ = \frac{-1 \pm \sqrt{17}}{2} | 0,2,-2 = 0 \text{ and } \pm 2
(3,-4),(-3,4) = (\pm 3, \mp 4) | 2,-2 = \pm 2 \text{ cm} | \frac{1\pm\sqrt5}{2} = \frac{1 \pm \sqrt{5}}{2}
[-2,1) = \{x \mid -2 \le x < 1\} | \{x|-2\leq x < 1\} = [-2,1) | (3,\infty) = \left\{x \in \mathbb{R} : x > 3\right\}
2i = (1+i)^2        | i = \frac{1}{-i}    | \frac{1+i\sqrt{3}}{2} = e^{i\pi/3} | 6-5i = z=6-5i | 1 = i^4
I=3 = I=3           | x^2+1=0 = 2x^2+2=0  | |A|=-6 = |A|=-6.0     | 5 = 2+3=5             | 3 = I=3
18 = 18 dollars     | 18 = \text{18 dollars per day} | 3 = \text{3 apples} | 28 = 28 cm^2  | 12 = 12 m/s
114,200 = \text{\$114,200} | 50\% = \text{50\%}  | 37.5 = 37.50 dollars | 15.15 = \approx 15.15
1,450,000 = 1.45 \text{ million} | 1.45 = 1.45 \text{ million} | 3000 = \$3 thousand | 6290000 = 6.29 million dollars
14 = 14\\           | 252 = {10 \choose 5}  | 8\sqrt{10} = 8\sqrt10
A = \textbf{(A)}\ 12 | A = \text{A) 5}     | (C) = \textbf{(C) } 7  | \text{(A)} = A. Paris
5 = \text{The answer is } 5 | 5 = \text{Answer: } 5 | 5 = The final answer is 5 | \text{Evelyn} = \text{Evelyn.}
14 = \underline{14} | 14 = \color{blue}{14} | 14 = \large{14}        | 14 = \bf{14}           | 3\!:\!30 = 3{:}30
\text{no solution} = \text{No solutions} | 4:30\text{ p.m.} = 4:30 \text{ PM} | 10101_2 = 10101_{2}
"""
WRONG = r"""
73 = 74             | 1000 = 1            | 5 = -5                | 5 = 5.5               | 5 = 5x
\frac12 = \frac13   | \frac13 = 0.333     | 1 = 1 1/2             | 2\sqrt{3} = 2\sqrt{2} | 5 = 5!
50 = 0.5            | 50\% = 5            | 50\% = 51\%           | 50 = 500\%
x=5 = y=5           | 5 = x=6             | A = B                 | \text{(A)} = \text{(B)} | \text{yes} = \text{no}
(1,2) = (2,1)       | (2,1) = (1,2)       | (2,1) = 1,2           | (1,2,3) = (1,3,2)     | 1,2,3 = 1,2
[1,2] = (1,2)       | [1,2) = (1,2]       | 5 = 5 \text{ or } 6   | 28 = \sqrt{34}+3\sqrt{10}
\begin{pmatrix}1&2\\3&4\end{pmatrix} = \begin{pmatrix}1&2\\3&5\end{pmatrix}
5 = \frac{3\pm5}{2} | -1 = \frac{3\pm5}{2} | 4,1 = \frac{3\pm5}{2} | \frac{1\pm\sqrt5}{2} = \frac{1+\sqrt5}{2}
7 = 7 \pm 1         | 3,-3 = \pm 1 \pm 2   | 2 = \pm 2             | (3,4),(-3,-4) = (\pm 3, \mp 4)
1 = \{x\mid -2\le x<1\} | \{x\mid -2\le x<1\} = \{x\mid -3\le x<1\} | [-2,1] = \{x\mid -2\le x<1\} | 7 = \geq 7
2 = \{x\mid x=2k, k\in\mathbb{Z}\} | I=3 = I=5 | 8=7 = 3=2 | \pi=3 = \pi=4 | i=3 = i=5 | x^2+1=0 = x^2+4=0
|A|=-6 = |B|=-32     | 7 = 8=7                | 7 = 7=8                | 2i = -2i              | 2i = 2k
18 = 19 dollars      | 18 = \text{180 dollars} | 5 = 5 sin x           | 5 = 5 a/b             | 12 = 12m/s
5 = 5 squared        | 1450 = 1.45 \text{ million} | 28 = 28 cm^2 + 3   | 3 = 3 \text{ mph}, 4 \text{ mph}
3 = 3 \text{ boxes and } 2 \text{ bags} | 200 = 3\text{ h } 20\text{ min} | 3 = 3 \text{ h } 20 \text{ min}
A = \textbf{(B)}\ 12 | A = (A) \text{ and } (B) | A = A, B            | A = \text{C) A}       | (C) = D) 7
5 = \text{The answer is } 6 | 5 = \text{The answer is not } 5 | 252 = {10 \choose 4} | 14 = \underline{15}
\text{no solution} = \text{two solutions} | 10101_2 = 10101_3 | 4:30\text{ p.m.} = 4:30 \text{ a.m.}
5 = \frac{5}{}      | 5 = 6^              | 5 = \left(            | 5 = three
5\text{ cm} = 5\text{ m}
"""
# What math-verify does not see, or sees too generously, and what is left so: bases, degrees as an angle, number words.
KNOWN_LIMITS = {
    "right": r"2516_8 = 2516 | n = N | \{1,2\} = (1,2)",
    "wrong": r"1\text{ hour} = 60\text{ minutes} | \sin 30^\circ = 0.5 | 17 = \text{seventeen}",
}


def pairs(table: str) -> list[tuple[str, str]]:
    """`gold = answer` cells; the first " = " divides."""
    cells = [cell.strip() for line in table.strip().splitlines() for cell in line.split(" | ")]
    return [(gold.strip(), answer.strip()) for gold, answer in (cell.split(" = ", 1) for cell in cells if cell)]


@pytest.mark.parametrize(
    ("outcome", "table"), [("right", RIGHT), ("wrong", WRONG), *KNOWN_LIMITS.items()], ids=["right", "wrong", "r", "w"]
)
def test_verdicts(verifier: Verifier, outcome: str, table: str) -> None:
    cases = pairs(table)

    async def outcomes() -> list[Grade]:
        return await all_of([verifier.grade(gold, f"so $\\boxed{{{answer}}}$.") for gold, answer in cases])

    grades = asyncio.run(outcomes())
    assert [(c, g.outcome) for c, g in zip(cases, grades, strict=True) if g.outcome != outcome] == []
    assert {g.reward for g in grades} == {1.0 if outcome == "right" else 0.0}


def test_blanks_around_an_answer_are_no_part_of_it(verifier: Verifier) -> None:
    assert grade(verifier, "721", r"\boxed{\ 721 \ }").outcome == "right"
    assert grade(verifier, "721", r"\boxed{\ 721 \ 0}").outcome == "wrong"


@pytest.mark.parametrize("response", ["", "5", r"\boxed{5", r"\boxed{}", r"\boxed{ \, }", r"\boxed{.}"])
def test_no_answer(verifier: Verifier, response: str) -> None:
    assert grade(verifier, "5", response) == Grade(0.0, "no_answer", None)


def test_the_answer_is_shown_within_bounds(verifier: Verifier) -> None:
    assert grade(verifier, "5", r"\boxed{ 5 }").answer == "5"
    shown = grade(verifier, "5", r"\boxed{" + "7" * 10_000 + "}")
    assert shown.outcome == "error"
    assert shown.answer is not None and len(shown.answer) <= 201


def test_an_empty_gold_answer_is_never_right(verifier: Verifier) -> None:
    assert grade(verifier, "", r"\boxed{5}").outcome == "wrong"
    assert grade(verifier, "", r"\boxed{\text{}}").outcome == "wrong"


def test_faults_of_gold_answers(verifier: Verifier) -> None:
    good = ["5", "1,000", "50\\%", "\\frac{1}{2}", "\\text{Evelyn}", "(1,2)", "x^2+1", "$2^{25} 26!$", "\\$18.90"]
    good += [r"3\text{ h } 20\text{ min}", r"\frac{1\pm\sqrt5}{2}", r"\{x|-2\leq x < 1\}", r"28\text{ cm}^2"]
    assert verifier.find_gold_faults(good) == [None] * len(good)
    bad = {
        "": "is empty",
        " $$ ": "is empty",
        "\\frac{1}{": "does not parse",
        "\\pm 1 \\pm \\sqrt{2}": "does not parse",  # two values or four
        "9^{9^{9^9}}": "is too large to be worked out",
        "1+" * 300 + "1": "is longer than 500 characters",
        "(" * 20 + "1" + ")" * 20: "is nested deeper than 12",
    }
    assert dict(zip(bad, verifier.find_gold_faults(list(bad)), strict=True)) == bad
    assert verifier.find_gold_fault("\\frac{1}{") == "does not parse"
    assert asyncio.run(verifier.find_gold_fault_async("\\frac{1}{")) == "does not parse"


# ---------------------------------------------------------------------------------- memory and concurrency


def test_a_verdict_is_asked_for_once_and_the_oldest_is_forgotten(forgetful: Make) -> None:
    one = forgetful(cache=2)

    async def script() -> None:
        await all_of([one.grade("x", r"\boxed{x+1}") for _ in range(50)])  # at once: one question
        assert one.counts.total() == 50
        assert one.counts.keys() <= {"compared", "known"}  # known: began when the verdict was already there
        one.counts.clear()
        for answer in ("x+1", "x+2", "x+3", "x+3", "x+1"):  # the last was pushed out by x+2 and x+3
            await one.grade("x", f"\\boxed{{{answer}}}")

    asyncio.run(script())
    assert one.counts == {"compared": 3, "known": 2}


def test_a_timeout_by_processor_time_is_remembered_as_one(make: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("nemo_tapo.grading.verifier.PROCESSOR_SHARE", 0.05)  # it comes first on a busy machine too
    one = make(workers=1)
    assert [grade(one, *SLOW).outcome for _ in range(3)] == ["timeout"] * 3
    assert one._pool.deaths == 1
    assert grade(one, "5", r"\boxed{x=5}").outcome == "right"  # by its successor


def test_a_gold_answer_has_far_more_time_on_the_clock_than_on_a_processor() -> None:
    """So the rows that are set aside do not depend on what else the machine does."""
    assert grader.get_deadline_factor(("compare", "x", "y")) == 1
    assert grader.get_deadline_factor(("fault", "x")) >= 10


def test_a_thousand_at_once_are_not_mixed_up(verifier: Verifier) -> None:
    async def script() -> list[Grade]:
        return await all_of([verifier.grade(f"{i % 7}x", f"\\boxed{{{i % 5}x + x}}") for i in range(1000)])

    for i, got in enumerate(asyncio.run(script())):
        assert got.outcome == ("right" if i % 7 == i % 5 + 1 else "wrong")


def test_cancelled_waits_leave_the_others_alone(forgetful: Make, capfd: pytest.CaptureFixture[str]) -> None:
    one = forgetful()

    async def script() -> None:
        asked = [asyncio.create_task(one.grade(f"{i}", f"\\boxed{{x = {i}}}")) for i in range(40)]
        twin = asyncio.create_task(one.grade("7", r"\boxed{x = 7}"))
        await asyncio.sleep(0)
        for task in [*asked[::2], asked[7]]:
            task.cancel()
        done = await asyncio.gather(*asked, return_exceptions=True)
        for i, result in enumerate(done):
            if i % 2 == 0 or i == 7:
                assert isinstance(result, asyncio.CancelledError)
            else:
                assert isinstance(result, Grade) and result.outcome == "right"
        assert (await twin).outcome == "right"  # it waited for the very same question

    asyncio.run(script())

    async def abandoned() -> None:
        asyncio.create_task(one.grade("1", r"\boxed{y = 1}")).add_done_callback(lambda _: None)
        await asyncio.sleep(0)

    asyncio.run(abandoned())  # the loop is closed before the verdict comes
    assert grade(one, "2", r"\boxed{y = 2}").outcome == "right"  # and another loop is served
    assert "Traceback" not in capfd.readouterr().err


# ---------------------------------------------------------------------------------- processes


def test_killed_graders_cost_nothing_and_are_replaced(forgetful: Make) -> None:
    one = forgetful()
    assert grade(one, "0", r"\boxed{z=0}").outcome == "right"

    async def script() -> list[Grade]:
        asked = asyncio.gather(*(one.grade(f"{i}x", f"\\boxed{{{i + 1}x - x}}") for i in range(200)))
        for _ in range(3):
            await asyncio.sleep(0.05)
            for pid in processes(one)[1:]:
                os.kill(pid, signal.SIGKILL)
        return await asked

    assert [g.outcome for g in asyncio.run(script())] == ["right"] * 200
    wait_until(lambda: len(processes(one)) == 3)


def test_a_killed_nursery_is_replaced(forgetful: Make) -> None:
    one = forgetful()
    assert grade(one, "0", r"\boxed{z=0}").outcome == "right"
    before = processes(one)
    for pid in before:
        os.kill(pid, signal.SIGKILL)
    assert grade(one, "1", r"\boxed{z=1}").outcome == "right"
    assert not set(before) & set(processes(one))


def test_a_stopped_grader_is_given_up(forgetful: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pool, "GRACE_SECONDS", 0.2)
    one = forgetful()
    assert grade(one, "0", r"\boxed{z=0}").outcome == "right"
    before = processes(one)
    for pid in before:
        os.kill(pid, signal.SIGSTOP)
    assert grade(one, "1", r"\boxed{z=1}").outcome == "right"
    assert not any(map(alive, before))


def test_close_ends_every_process_and_what_waits(make: Make) -> None:
    one = make(workers=2)
    one.close()  # before anything was started
    one.close()
    two = make(workers=2)
    assert grade(two, "0", r"\boxed{z=0}").outcome == "right"
    pids = processes(two)

    async def script() -> list[Any]:
        asked = [asyncio.create_task(two.grade(f"{i}", f"\\boxed{{z + {i}}}")) for i in range(500)]
        await asyncio.sleep(0)
        two.close()
        return await asyncio.gather(*asked, return_exceptions=True)

    failures = [r for r in asyncio.run(script()) if not isinstance(r, Grade)]
    assert len(failures) > 400
    assert {type(f) for f in failures} == {RuntimeFailure}
    assert not any(Path(f"/proc/{pid}").exists() for pid in pids)  # nor a zombie
    two.close()


def program(body: str) -> subprocess.Popen[str]:
    """A process of its own group that grades, prints its verifier's process ids and then does `body`."""
    text = f"""
import asyncio, os, signal, sys, time
from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.verifier import Verifier
verifier = Verifier(VerifierConfig(workers=2))
assert asyncio.run(verifier.grade("0", r"\\boxed{{z=0}}")).outcome == "right"
nursery = verifier._pool._fork_server.pid
print(nursery, open(f"/proc/{{nursery}}/task/{{nursery}}/children").read(), flush=True)
{body}
"""
    return subprocess.Popen(
        [sys.executable, "-c", text],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        cwd=Path(__file__).parents[3],
        start_new_session=True,
    )


BUSY = """
async def busy():
    for i in range(1, 100):
        await verifier.grade("x^3+x=2", r"\\boxed{x^{100}+%dx+1=0}" % i)
try:
    asyncio.run(busy())
except KeyboardInterrupt:
    pass
"""


@pytest.mark.parametrize(
    "sent",
    [
        signal.SIGKILL,
        signal.SIGINT,  # which it catches, to end as usual
    ],
    ids=["killed", "ctrl-c"],
)
def test_no_process_outlives_the_one_that_grades(sent: signal.Signals) -> None:
    """Neither the grader that is busy nor the one that is idle."""
    with program(BUSY) as process:
        assert process.stdout is not None
        pids = list(map(int, process.stdout.readline().split()))
        assert len(pids) == 3
        time.sleep(0.5)
        os.killpg(process.pid, sent)  # as a terminal does
        _, errors = process.communicate(timeout=60)
    wait_until(lambda: not any(map(alive, pids)))
    assert errors == ""


def test_a_broken_installation_is_named(make: Make, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('half an installation')")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(RuntimeFailure, match="half an installation"):
        grade(make(), "5", r"\boxed{x=5}")


def test_nothing_is_imported_or_started_for_integers() -> None:
    text = r"""
import asyncio, sys
from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.verifier import Verifier
import nemo_tapo.commands.grade, nemo_tapo.grading.grader, nemo_tapo.grading.equivalence
verifier = Verifier(VerifierConfig())
assert asyncio.run(verifier.grade("5", r"\boxed{05}")).outcome == "right"
assert verifier.find_gold_faults(["5", "1,000"]) == [None, None]
assert verifier._pool._fork_server is None and not verifier._pool._threads
print([name for name in ("math_verify", "sympy", "latex2sympy2_extended", "rich") if name in sys.modules])
"""
    out = subprocess.run([sys.executable, "-c", text], check=True, capture_output=True, text=True).stdout
    assert out.strip() == "[]"


def test_every_outcome_has_its_name() -> None:
    assert OUTCOMES == ("right", "wrong", "no_answer", "timeout", "error")
