"""Generated arithmetic, solved step by step: a task that a model of 0.8 M parameters can learn.

A problem is a number and a list of additions and subtractions, solved in order, one line a step::

    47                a: 47+38=85
    a: +38            b: 85-19=66
    b: -19            \\boxed{66}

The letters tell a tiny model which line it is at. Without them it copies the wrong operand for much of its training.

The corpus of the base model contains two typical mistakes, each with probability `mistake_rate` where it is possible:
a carry from the ones to the tens is forgotten (47+38=75), or a borrow is taken twice (85-19=56). The package calls such
a mistake a slip. The later lines continue from the wrong value. Both slips make the total ten too small, so two of them
never cancel to a right answer. A base model trained on this corpus learns arithmetic and the bad habit, just as
pre-training text teaches common mistakes along with the rest. So each error has a line and a diagnosis, one number sets
pass@1, and reinforcement learning has something to improve.

A *correction line* follows a wrong line and repeats its step: `Wait, I forgot the carry: a: 47+38=85`.

Nothing here imports torch or transformers. Every generator is a function of its seed and never returns a held-out
problem.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from random import Random

from nemo_tapo.grading.boxed import find_last_boxed

SHORTEST, LONGEST = 2, 4  # operations in a chain
LETTERS = "abcdefgh"  # the names of the steps; no chain is longer
SMALLEST_TOTAL, LARGEST_TOTAL = 30, 199  # of right running totals; after a slip smaller ones occur, never negative
MISTAKE_RATE = 0.6  # in the examples that teach text skills; solutions use `pretrain.mistake_rate`
HELD_OUT_SIZE = 1000
_HELD_OUT_SEED = 20_260_618

_MATERIAL = "Question:\n{question}\nWrong answer:\n{wrong}\nRight answer:\n{reference}\n"
SYNTHESIS_PROMPT = _MATERIAL + "Find the first mistake, then correct it."
FULL_PROMPT = _MATERIAL + "Find the first mistake, then answer the question."  # keeps nothing (Table 3)
ERROR_QUOTE = r"(?m)^(.+) is wrong, "  # how `mark_lines` names the wrong line

_QUESTION = re.compile(r"([0-9]+)((?:\n[a-h]: [+-][0-9]+)+)")
_STEP = re.compile(r"([a-h]): ([0-9]+)([+-])([0-9]+)=(-?[0-9]+)")
_BOX = re.compile(r"\\boxed\{(.*)\}")
_CORRECTION_OPENING = re.compile(r"Wait, [^:]*: ")
_BOX_OPENING = "\\boxed{"


# -------------------------------------------------------------------------------- problems


@dataclass(frozen=True)
class Problem:
    r"""A chain of additions and subtractions.

    >>> problem = Problem(47, (("+", 38), ("-", 19)))
    >>> problem.question, problem.answer
    ('47\na: +38\nb: -19', '66')
    >>> problem.lines
    ('a: 47+38=85', 'b: 85-19=66', '\\boxed{66}')
    """

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def question(self) -> str:
        """The user's question: the first number, then one line per step, `a: +38`."""
        steps = [f"{LETTERS[i]}: {sign}{number}" for i, (sign, number) in enumerate(self.steps)]
        return "\n".join([str(self.start), *steps])

    @property
    def answer(self) -> str:
        """The gold answer, in the form that the verifier expects."""
        return str(self.totals[-1])

    @property
    def totals(self) -> tuple[int, ...]:
        """The right running total after each step."""
        totals = [self.start]
        for sign, number in self.steps:
            totals.append(apply_step(totals[-1], sign, number))
        return tuple(totals[1:])

    @property
    def lines(self) -> tuple[str, ...]:
        """The lines of the right solution: one per step, then the boxed answer."""
        before = (self.start, *self.totals[:-1])
        steps = [format_step(i, before[i], *step) for i, step in enumerate(self.steps)]
        return (*steps, format_box(self.answer))


def apply_step(total: int, sign: str, number: int) -> int:
    """Return `total` plus or minus `number`."""
    return total + number if sign == "+" else total - number


def crosses_ten(total: int, sign: str, number: int) -> bool:
    """Return whether the step needs a carry (or a borrow) between the ones and the tens.

    >>> crosses_ten(47, "+", 38), crosses_ten(47, "+", 32)
    (True, False)
    """
    ones, other = total % 10, number % 10
    return ones + other >= 10 if sign == "+" else ones < other


def apply_step_with_slip(total: int, sign: str, number: int) -> int:
    """Return the step's result with the carry forgotten or the borrow taken twice.

    >>> apply_step_with_slip(47, "+", 38), apply_step_with_slip(85, "-", 19)
    (75, 56)
    """
    return apply_step(total, sign, number) - 10


def format_step(index: int, total: int, sign: str, number: int, result: int | None = None) -> str:
    """Return the line of the step with number `index`; it has the right result unless `result` is given.

    >>> format_step(0, 47, "+", 38), format_step(1, 85, "-", 19, result=56)
    ('a: 47+38=85', 'b: 85-19=56')
    """
    written_result = apply_step(total, sign, number) if result is None else result
    return f"{LETTERS[index]}: {total}{sign}{number}={written_result}"


def format_box(answer: str) -> str:
    """Return `\\boxed{answer}`, the last line of a solution."""
    return _BOX_OPENING + answer + "}"


def parse_question(question: str) -> Problem:
    r"""Return the problem that a question asks.

    Raises ValueError unless the text is a number and then the steps `a: +38`, `b: -19` and so on, one a line.

    >>> parse_question("47\na: +38\nb: -19")
    Problem(start=47, steps=(('+', 38), ('-', 19)))
    """
    match = _QUESTION.fullmatch(question.strip())
    steps = re.findall(r"([a-h]): ([+-])([0-9]+)", match[2]) if match else []
    if match is None or "".join(letter for letter, _, _ in steps) != LETTERS[: len(steps)]:
        raise ValueError(f"not an arithmetic chain: {question!r}; write it as 47\\na: +38\\nb: -19")
    return Problem(int(match[1]), tuple((sign, int(number)) for _, sign, number in steps))


def _draw(rng: Random, shortest: int, longest: int) -> Problem:
    """Draw a chain of two-digit numbers whose right running totals stay in their range."""
    start = total = rng.randint(10, 99)
    steps: list[tuple[str, int]] = []
    for _ in range(rng.randint(shortest, longest)):
        sign, number = rng.choice("+-"), rng.randint(10, 99)
        while not SMALLEST_TOTAL <= apply_step(total, sign, number) <= LARGEST_TOTAL:
            sign, number = rng.choice("+-"), rng.randint(10, 99)
        total = apply_step(total, sign, number)
        steps.append((sign, number))
    return Problem(start, tuple(steps))


@lru_cache(maxsize=1)
def _draw_held_out() -> tuple[Problem, ...]:
    rng = Random(_HELD_OUT_SEED)
    found: dict[Problem, None] = {}
    while len(found) < HELD_OUT_SIZE:
        found[_draw(rng, SHORTEST, LONGEST)] = None
    return tuple(found)


@lru_cache(maxsize=1)
def _draw_held_out_set() -> frozenset[Problem]:
    return frozenset(_draw_held_out())


def get_held_out_problems(n: int = HELD_OUT_SIZE) -> tuple[Problem, ...]:
    """Return the first n of the fixed test problems, which no generator of this module returns.

    Raises ValueError unless 0 <= n <= HELD_OUT_SIZE.
    """
    if not 0 <= n <= HELD_OUT_SIZE:
        raise ValueError(f"{n} held-out problems asked for; there are {HELD_OUT_SIZE}")
    return _draw_held_out()[:n]


def draw_problem(rng: Random, shortest: int = SHORTEST, longest: int = LONGEST) -> Problem:
    """Draw a problem that is not held out, with `shortest` to `longest` operations.

    Raises ValueError if the range of lengths is empty or not within 1..8.
    """
    if not 1 <= shortest <= longest <= len(LETTERS):
        raise ValueError(f"lengths {shortest}..{longest}: want 1 <= shortest <= longest <= {len(LETTERS)}")
    while True:
        drawn = _draw(rng, shortest, longest)
        if drawn not in _draw_held_out_set():
            return drawn


def draw_problems(n: int, seed: int, shortest: int = SHORTEST, longest: int = LONGEST) -> tuple[Problem, ...]:
    """Return n different training problems; the same arguments give the same problems."""
    rng = Random(f"problems {seed}")
    drawn: dict[Problem, None] = {}
    while len(drawn) < n:
        drawn[draw_problem(rng, shortest, longest)] = None
    return tuple(drawn)


# -------------------------------------------------------------------------------- solutions


def write_solution(task: Problem, rng: Random, mistake_rate: float = MISTAKE_RATE) -> str:
    r"""Write a solution in which each possible slip is made with probability `mistake_rate`.

    A step is written correctly if its slip would make this or a later total negative.

    >>> print(write_solution(Problem(47, (("+", 38), ("-", 19))), Random(0), mistake_rate=1.0))
    a: 47+38=75
    b: 75-19=46
    \boxed{46}
    """
    total, lines = task.start, []
    for i, (sign, number) in enumerate(task.steps):
        result = apply_step(total, sign, number)
        if crosses_ten(total, sign, number) and rng.random() < mistake_rate:
            wrong_result = apply_step_with_slip(total, sign, number)
            result = wrong_result if _stays_non_negative(wrong_result, task.steps[i + 1 :]) else result
        lines.append(format_step(i, total, sign, number, result))
        total = result
    return "\n".join([*lines, format_box(str(total))])


def _stays_non_negative(total: int, steps: tuple[tuple[str, int], ...]) -> bool:
    """Return whether no total from here on is negative, if the remaining steps are right."""
    return total >= 0 and (not steps or _stays_non_negative(apply_step(total, *steps[0]), steps[1:]))


# -------------------------------------------------------------------------------- verifier


def verify_response(answer: str, response: str) -> tuple[float, str]:
    r"""Return the reward, 1.0 or 0.0, and the outcome: `right`, `wrong` or `no_answer`.

    `no_answer` means that there is no balanced box, or no integer in the last one. Braces and blanks around the
    integer are ignored: `\boxed{ {85} }` answers 85.

    >>> verify_response("66", "a: 47+38=75\n\\boxed{75}")
    (0.0, 'wrong')
    """
    content = find_last_boxed(response)
    integer = None if content is None else re.fullmatch(r"[\s{]*([+-]?[0-9]{1,18})[\s}]*", content)
    if integer is None:
        return 0.0, "no_answer"
    return (1.0, "right") if int(integer[1]) == int(answer) else (0.0, "wrong")


# -------------------------------------------------------------------------------- oracle


@dataclass(frozen=True)
class Diagnosis:
    """The first uncorrected mistake of a response."""

    step: int  # index of the step, from 0; equal to the number of steps for the boxed answer
    kind: str  # a key of `PHRASES`
    line: int  # index of the line in the response, from 0: larger than `step` after corrected mistakes


@dataclass(frozen=True)
class Correction:
    """The perfect answer to a synthesis prompt."""

    analysis: str  # checks the lines up to the first wrong one and names its mistake
    reconstruction: str  # the wrong response up to that line, a correction line, right lines to the box

    @property
    def text(self) -> str:
        """Both parts, in the format that the synthesis prompt asks for."""
        return f"<analysis>{self.analysis}</analysis>\n<reconstruction>{self.reconstruction}</reconstruction>"


# For each kind of mistake, the phrases of a correction line. The analysis uses the first.
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
    r"""Find the first line that is wrong and not followed by a correction line.

    Return None if every line is right, or if the text before the first wrong line is not a solution in this format.

    >>> diagnose(Problem(47, (("+", 38), ("-", 19))), "a: 47+38=75\nb: 75-19=56\n\\boxed{56}")
    Diagnosis(step=0, kind='carry', line=0)
    """
    right, lines = task.lines, response.split("\n")
    target = -1  # index of the right line that the current line should equal
    for i, line in enumerate(lines):
        opening = _CORRECTION_OPENING.match(line)
        bare = line[opening.end() :] if opening else line
        target += 0 if opening else 1  # a correction line repeats the step before it
        if not 0 <= target < len(right) or not (_STEP.fullmatch(bare) or _BOX.fullmatch(bare)):
            return None
        corrected = i + 1 < len(lines) and _CORRECTION_OPENING.match(lines[i + 1]) is not None
        if bare != right[target] and not corrected:
            return Diagnosis(target, _classify_mistake(bare, right[target]), i)
    return None


def _classify_mistake(line: str, right: str) -> str:
    """Return the kind of mistake in `line`, given the right line for its place."""
    was, want = _STEP.fullmatch(line), _STEP.fullmatch(right)
    if was is None:
        return "box" if want is None else "early"
    if want is None:
        return "late"
    if was.groups()[:4] != want.groups()[:4]:
        return "copy"
    total, sign, number = int(want[2]), want[3], int(want[4])
    if crosses_ten(total, sign, number) and int(was[5]) == apply_step_with_slip(total, sign, number):
        return "carry" if sign == "+" else "borrow"
    return "sum"


def write_correction(task: Problem, wrong_response: str, seed: int = 0) -> Correction | None:
    r"""Write the oracle's analysis and reconstruction; the seed chooses the wording of the correction line.

    Return None if `diagnose` finds no wrong line.

    >>> correction = write_correction(Problem(47, (("+", 38), ("-", 19))), "a: 47+38=75\nb: 75-19=56\n\\boxed{56}")
    >>> correction.analysis
    'a: 47+38=75 is wrong, the carry was forgotten'
    """
    diagnosis = diagnose(task, wrong_response)
    if diagnosis is None:
        return None
    lines = wrong_response.split("\n")
    phrases = PHRASES[diagnosis.kind]
    opening = f"Wait, {phrases[Random(f'turn {seed}').randrange(len(phrases))]}: "
    right = task.lines[diagnosis.step :]
    reconstruction = [*lines[: diagnosis.line + 1], opening + right[0], *right[1:]]
    return Correction(mark_lines(task, wrong_response), "\n".join(reconstruction))


def write_full_correction(task: Problem, wrong_response: str) -> Correction | None:
    """Write the oracle's analysis and a new right solution that keeps nothing of the wrong response (Table 3).

    Return None if `diagnose` finds no wrong line.
    """
    if diagnose(task, wrong_response) is None:
        return None
    return Correction(mark_lines(task, wrong_response), "\n".join(task.lines))


def mark_lines(task: Problem, response: str) -> str:
    r"""Mark a solution line by line as a teacher does, up to the first wrong line, whose mistake is named.

    A line that a correction line follows is skipped. A correction line is marked without its opening words.

    >>> print(mark_lines(Problem(47, (("+", 38), ("-", 19))), "a: 47+38=85\nb: 85-19=56\n\\boxed{56}"))
    a: 47+38=85 is correct
    b: 85-19=56 is wrong, the borrow was taken twice
    """
    diagnosis, marks = diagnose(task, response), []
    lines = response.split("\n")[: None if diagnosis is None else diagnosis.line + 1]
    for i, line in enumerate(lines):
        opening = _CORRECTION_OPENING.match(line)
        wrong = diagnosis is not None and i == diagnosis.line
        if wrong or i + 1 == len(lines) or not _CORRECTION_OPENING.match(lines[i + 1]):
            verdict = f" is wrong, {PHRASES[diagnosis.kind][0]}" if diagnosis is not None and wrong else " is correct"
            marks.append(line[opening.end() if opening else 0 :] + verdict)
    return "\n".join(marks)
