"""Generated arithmetic, written out step by step: the task that a model of 0.8 M parameters can learn.

A problem is a number and a list of additions and subtractions, worked in order, one line a step::

    47                a: 47+38=85
    a: +38            b: 85-19=66
    b: -19            \\boxed{66}

The letters tell a tiny model which line it is at; without them it learns for long to copy the wrong operand.

The corpus of the base model holds two classic mistakes, each with probability `mistake_rate` where it can be
made: a carry from the ones to the tens is forgotten (47+38=75), a borrow is taken twice (85-19=56). The
later lines go on from the wrong value. Both leave the total ten too small, so two of them never cancel to a
right answer. A base trained on this knows arithmetic *and* the bad habit, as pre-training text teaches common
mistakes along with the rest. So its errors have a place and a diagnosis, its pass@1 is set by one number, and
reinforcement learning has something to sharpen.

Nothing here imports torch or transformers. Every generator is a function of its seed and rejects `held_out`.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from nemo_tapo.grading.boxed import last_boxed

SHORTEST, LONGEST = 2, 4  # operations in a chain
LETTERS = "abcdefgh"  # the names of the steps; no chain is longer
SMALLEST_TOTAL, LARGEST_TOTAL = 30, 199  # of a right running total; mistakes lead below, but not below zero
MISTAKE_RATE = 0.6  # of the texts that teach skills; the solutions' own is `pretrain.mistake_rate`
HELD_OUT_SIZE = 1000
_HELD_OUT_SEED = 20_260_618

_MATERIAL = "Question:\n{question}\nWrong answer:\n{wrong}\nRight answer:\n{reference}\n"
SYNTHESIS_PROMPT = _MATERIAL + "Find the first mistake, then correct it."
FULL_PROMPT = _MATERIAL + "Find the first mistake, then answer the question."  # nothing is kept (Table 3)

_QUESTION = re.compile(r"([0-9]+)((?:\n[a-h]: [+-][0-9]+)+)")
_STEP = re.compile(r"([a-h]): ([0-9]+)([+-])([0-9]+)=(-?[0-9]+)")
_BOX = re.compile(r"\\boxed\{(.*)\}")
_TURN = re.compile(r"Wait, [^:]*: ")
_BOX_OPENING = "\\boxed{"


# -------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    """A chain: `Problem(47, (("+", 38), ("-", 19)))` asks for 47+38-19; the answer is 66."""

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        """What the user asks: the first number, then a line a step, `a: +38`."""
        steps = [f"{LETTERS[i]}: {sign}{number}" for i, (sign, number) in enumerate(self.steps)]
        return "\n".join([str(self.start), *steps])

    @property
    def answer(self) -> str:
        """The gold answer as the verifier wants it."""
        return str(self.totals[-1])

    @property
    def totals(self) -> tuple[int, ...]:
        """The right running total after each step."""
        totals = [self.start]
        for sign, number in self.steps:
            totals.append(apply(totals[-1], sign, number))
        return tuple(totals[1:])

    @property
    def lines(self) -> tuple[str, ...]:
        """The right solution, line by line: one a step, then the boxed answer."""
        before = (self.start, *self.totals[:-1])
        steps = [step_line(i, before[i], *step) for i, step in enumerate(self.steps)]
        return (*steps, boxed(self.answer))


def apply(total: int, sign: str, number: int) -> int:
    """`total` plus or minus `number`."""
    return total + number if sign == "+" else total - number


def crosses_ten(total: int, sign: str, number: int) -> bool:
    """Whether the step needs a carry (or a borrow) between the ones and the tens."""
    ones, other = total % 10, number % 10
    return ones + other >= 10 if sign == "+" else ones < other


def slipped(total: int, sign: str, number: int) -> int:
    """The step's result with that carry forgotten or that borrow taken twice: 47+38 -> 75, 85-19 -> 56."""
    return apply(total, sign, number) - 10


def step_line(index: int, total: int, sign: str, number: int, result: int | None = None) -> str:
    """One line of a solution, `a: 47+38=85` for index 0; with the right result unless another is given."""
    written_result = apply(total, sign, number) if result is None else result
    return f"{LETTERS[index]}: {total}{sign}{number}={written_result}"


def boxed(answer: str) -> str:
    """`\\boxed{answer}`, the last line of a solution."""
    return _BOX_OPENING + answer + "}"


def parse_question(question: str) -> Problem:
    """The problem that a question asks.

    Raises:
        ValueError: the text is not a number and then the steps `a: +38`, `b: -19` and so on, a line each.
    """
    match = _QUESTION.fullmatch(question.strip())
    steps = re.findall(r"([a-h]): ([+-])([0-9]+)", match[2]) if match else []
    if match is None or "".join(letter for letter, _, _ in steps) != LETTERS[: len(steps)]:
        raise ValueError(f"not an arithmetic chain: {question!r}; write it as 47\\na: +38\\nb: -19")
    return Problem(int(match[1]), tuple((sign, int(number)) for _, sign, number in steps))


def _draw(rng: Random, shortest: int, longest: int) -> Problem:
    """One chain with two-digit numbers whose right running totals stay in their range."""
    start = total = rng.randint(10, 99)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.randint(shortest, longest)):
        sign, number = rng.choice("+-"), rng.randint(10, 99)
        while not SMALLEST_TOTAL <= apply(total, sign, number) <= LARGEST_TOTAL:
            sign, number = rng.choice("+-"), rng.randint(10, 99)
        total = apply(total, sign, number)
        steps.append((sign, number))
    return Problem(start, tuple(steps))


@lru_cache(maxsize=1)
def _held_out() -> tuple[Problem, ...]:
    rng = Random(_HELD_OUT_SEED)
    found: dict[Problem, None] = {}
    while len(found) < HELD_OUT_SIZE:
        found[_draw(rng, SHORTEST, LONGEST)] = None
    return tuple(found)


@lru_cache(maxsize=1)
def _held_out_set() -> frozenset[Problem]:
    return frozenset(_held_out())


def held_out(n: int = HELD_OUT_SIZE) -> tuple[Problem, ...]:
    """The first n of the fixed test problems, which no generator of this module ever returns.

    Raises:
        ValueError: more than `HELD_OUT_SIZE` asked for, or fewer than none.
    """
    if not 0 <= n <= HELD_OUT_SIZE:
        raise ValueError(f"{n} held-out problems asked for; there are {HELD_OUT_SIZE}")
    return _held_out()[:n]


def problem(rng: Random, shortest: int = SHORTEST, longest: int = LONGEST) -> Problem:
    """A problem that is not held out, of `shortest` to `longest` operations.

    Raises:
        ValueError: the range of lengths is empty or leaves 1..8.
    """
    if not 1 <= shortest <= longest <= len(LETTERS):
        raise ValueError(f"lengths {shortest}..{longest}: want 1 <= shortest <= longest <= {len(LETTERS)}")
    while True:
        drawn = _draw(rng, shortest, longest)
        if drawn not in _held_out_set():
            return drawn


def problems(n: int, seed: int, shortest: int = SHORTEST, longest: int = LONGEST) -> tuple[Problem, ...]:
    """n different training problems."""
    rng = Random(f"problems {seed}")
    found: dict[Problem, None] = {}
    while len(found) < n:
        found[problem(rng, shortest, longest)] = None
    return tuple(found)


# -------------------------------------------------------------------------------- solutions


def written(task: Problem, rng: Random, mistake_rate: float = MISTAKE_RATE) -> str:
    """A solution as the corpus writes it: where a carry or borrow is needed, slipped with `mistake_rate`.

    A step whose mistake would make this or a later total negative is written correctly.
    """
    total, lines = task.start, []
    for i, (sign, number) in enumerate(task.steps):
        result = apply(total, sign, number)
        if crosses_ten(total, sign, number) and rng.random() < mistake_rate:
            wrong = slipped(total, sign, number)
            result = wrong if _stays(wrong, task.steps[i + 1 :]) else result
        lines.append(step_line(i, total, sign, number, result))
        total = result
    return "\n".join([*lines, boxed(str(total))])


def _stays(total: int, steps: tuple[tuple[str, int], ...]) -> bool:
    """Whether no total from here on, worked correctly, is negative."""
    return total >= 0 and (not steps or _stays(apply(total, *steps[0]), steps[1:]))


# -------------------------------------------------------------------------------- verifier


def verify(answer: str, response: str) -> tuple[float, str]:
    """Reward 1.0 or 0.0, and `right`, `wrong` or `no_answer`.

    `no_answer`: no balanced box, or no integer in the last one. Braces and blanks around the
    integer are ignored: `\\boxed{ {85} }` answers 85.
    """
    content = last_boxed(response)
    integer = None if content is None else re.fullmatch(r"[\s{]*([+-]?[0-9]{1,18})[\s}]*", content)
    if integer is None:
        return 0.0, "no_answer"
    return (1.0, "right") if int(integer[1]) == int(answer) else (0.0, "wrong")


# -------------------------------------------------------------------------------- oracle


@dataclass(frozen=True)
class Diagnosis:
    """Where a response goes wrong first, and how."""

    step: int  # index of the step, from 0; the number of steps means the boxed answer
    kind: str  # a key of `PHRASES`
    line: int  # index of the line in the response, from 0: beyond `step` when earlier mistakes were corrected


@dataclass(frozen=True)
class Correction:
    """What a perfect synthesis answers."""

    analysis: str  # goes through the lines up to the first wrong one and names its mistake
    reconstruction: str  # the wrong response up to and including that line, the turn, right lines to the box

    @property
    def text(self) -> str:
        """The answer to the synthesis prompt."""
        return f"<analysis>{self.analysis}</analysis>\n<reconstruction>{self.reconstruction}</reconstruction>"


# Of each kind of mistake: how a turn may put it. The first also serves the analysis.
PHRASES: Mapping[str, tuple[str, str, str]] = {
    "carry": ("the carry was forgotten", "I forgot the carry", "the carry is missing"),
    "borrow": ("the borrow was taken twice", "I took the borrow twice", "the borrow counts once"),
    "sum": ("the result is wrong", "I got the result wrong", "that result is wrong"),
    "copy": ("the numbers were copied wrong", "I copied the numbers wrong", "the numbers are wrong"),
    "early": ("a step is missing", "I forgot a step", "the step is missing"),
    "late": ("that step is wrong", "I wrote a step too many", "the question has no such step"),
    "box": ("the answer was copied wrong", "I copied the answer wrong", "that answer is wrong"),
}


def diagnose(task: Problem, response: str) -> Diagnosis | None:
    """The first line that is wrong and not corrected by a `Wait, ...: ` line right after it.

    None when every line is right, or when the text before the first wrong line is not a chain of such lines.
    """
    right, lines = task.lines, response.split("\n")
    target = -1  # the right line that the current line stands for
    for i, line in enumerate(lines):
        turn = _TURN.match(line)
        bare = line[turn.end() :] if turn else line
        target += 0 if turn else 1  # a turn does the line before it again
        if not 0 <= target < len(right) or not (_STEP.fullmatch(bare) or _BOX.fullmatch(bare)):
            return None
        corrected = i + 1 < len(lines) and _TURN.match(lines[i + 1]) is not None
        if bare != right[target] and not corrected:
            return Diagnosis(target, _kind(bare, right[target]), i)
    return None


def _kind(line: str, right: str) -> str:
    """What is wrong with a line, given the right one for its place."""
    was, want = _STEP.fullmatch(line), _STEP.fullmatch(right)
    if was is None:
        return "box" if want is None else "early"
    if want is None:
        return "late"
    if was.groups()[:4] != want.groups()[:4]:
        return "copy"
    total, sign, number = int(want[2]), want[3], int(want[4])
    if crosses_ten(total, sign, number) and int(was[5]) == slipped(total, sign, number):
        return "carry" if sign == "+" else "borrow"
    return "sum"


def correction(task: Problem, wrong_response: str, seed: int = 0) -> Correction | None:
    """The oracle's analysis and reconstruction; the seed chooses between the wordings of the turn.

    None when `diagnose` finds no wrong line.
    """
    found = diagnose(task, wrong_response)
    if found is None:
        return None
    lines = wrong_response.split("\n")
    phrases = PHRASES[found.kind]
    turn = f"Wait, {phrases[Random(f'turn {seed}').randrange(len(phrases))]}: "
    right = task.lines[found.step :]
    reconstruction = [*lines[: found.line + 1], turn + right[0], *right[1:]]
    return Correction(marked(task, wrong_response), "\n".join(reconstruction))


def full_correction(task: Problem, wrong_response: str) -> Correction | None:
    """The oracle's analysis, and a whole right solution that keeps nothing (Table 3); None as for `correction`."""
    if diagnose(task, wrong_response) is None:
        return None
    return Correction(marked(task, wrong_response), "\n".join(task.lines))


def marked(task: Problem, response: str) -> str:
    """A teacher's marks: `... is correct` line by line, up to the first that `... is wrong, the carry was forgotten`.

    A line that a turn right after it does again is passed over; of the turn only the line itself is marked.
    """
    found, marks = diagnose(task, response), []
    lines = response.split("\n")[: None if found is None else found.line + 1]
    for i, line in enumerate(lines):
        turn = _TURN.match(line)
        wrong = found is not None and i == found.line
        if wrong or i + 1 == len(lines) or not _TURN.match(lines[i + 1]):
            verdict = f" is wrong, {PHRASES[found.kind][0]}" if found is not None and wrong else " is correct"
            marks.append(line[turn.end() if turn else 0 :] + verdict)
    return "\n".join(marks)
