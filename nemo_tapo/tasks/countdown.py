r"""Countdown, solved by one attempt of a few lines: finding a way is hard, seeing that an attempt failed is easy.

A problem is a target and numbers, each to be used once, with `+`, `-` and `*`. An attempt is one line a step, a
verdict, then the answer. The verdict puts the last result beside the target and says whether they are equal. Where they
are not, the attempt has failed, and anyone who reads it can see that::

    Numbers: 3 5 8        3+8=11
    Target: 16            11*5=55
                          55 vs 16 no
                          \boxed{(3+8)*5}

The right continuation of a failed attempt keeps it, says so, and tries again::

    3+8=11
    11*5=55
    55 vs 16 no
    Wait, 55 is not 16.
    5-3=2
    2*8=16
    16 vs 16 yes
    \boxed{(5-3)*8}

Only the expression in the last box is graded, exactly. Nothing here imports torch, transformers or reasoning-gym.
"""

from __future__ import annotations

import ast
import re
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from fractions import Fraction
from itertools import permutations, product

from nemo_tapo.grading.boxed import find_last_boxed

SYNTHESIS_PROMPT = (
    "Question:\n{question}\nWrong answer:\n{wrong}\nRight answer:\n{reference}\n"
    "Find the first mistake, then correct it."
)
FULL_PROMPT = SYNTHESIS_PROMPT.replace("correct it", "answer the question")  # keeps nothing (Table 3)
ERROR_QUOTE = r"(?m)^(.+?): "  # how an analysis names the line of the mistake
SIGNS = "+-*"
TURN = "Wait, "  # begins a line that takes the attempt before it back

_QUESTION = re.compile(r"Numbers:((?: [0-9]+)+)\nTarget: ([0-9]+)")
_STEP = re.compile(r"([0-9]+)([-+*])([0-9]+)=(-?[0-9]+)")
_VERDICT = re.compile(r"(-?[0-9]+) vs ([0-9]+) (yes|no)")
_BOX = re.compile(r"\\boxed\{(.*)\}")
_EXPRESSION = re.compile(r"[-+*/() 0-9]{1,200}")


# -------------------------------------------------------------------------------- problems and attempts


@dataclass(frozen=True)
class Problem:
    r"""A target, and the numbers to reach it with.

    >>> Problem((3, 5, 8), 16).question
    'Numbers: 3 5 8\nTarget: 16'
    """

    numbers: tuple[int, ...]
    target: int

    @property
    def question(self) -> str:
        """The user's question."""
        return f"Numbers: {' '.join(map(str, self.numbers))}\nTarget: {self.target}"


def parse_question(question: str) -> Problem:
    r"""Return the problem that a question asks. Raises ValueError for any other text.

    >>> parse_question("Numbers: 3 5 8\nTarget: 16")
    Problem(numbers=(3, 5, 8), target=16)
    """
    match = _QUESTION.fullmatch(question.strip())
    if match is None:
        raise ValueError(f"no Countdown problem: {question!r}; write it as Numbers: 3 5 8\\nTarget: 16")
    return Problem(tuple(map(int, match[1].split())), int(match[2]))


@dataclass(frozen=True)
class Attempt:
    r"""A chain of operations: every step takes the result of the step before as its left number.

    >>> attempt = Attempt(5, (("-", 3), ("*", 8)))
    >>> attempt.results, attempt.write(16)
    ((2, 16), '5-3=2\n2*8=16\n16 vs 16 yes\n\\boxed{(5-3)*8}')
    """

    start: int
    steps: tuple[tuple[str, int], ...]

    @property
    def results(self) -> tuple[int, ...]:
        """The result of each step."""
        values = [self.start]
        for sign, number in self.steps:
            values.append(apply_sign(values[-1], sign, number))
        return tuple(values[1:])

    @property
    def expression(self) -> str:
        """What the box holds: the steps as one expression.

        >>> Attempt(5, (("-", 3), ("*", 8))).expression
        '(5-3)*8'
        """
        expression = str(self.start)
        for i, (sign, number) in enumerate(self.steps):
            expression = f"({expression})" if i else expression
            expression += f"{sign}{number}"
        return expression

    def write_steps(self) -> str:
        """Write one line a step."""
        before = (self.start, *self.results)
        steps = zip(before, self.steps, self.results, strict=False)
        return "\n".join(f"{left}{sign}{number}={result}" for left, (sign, number), result in steps)

    def write(self, target: int) -> str:
        """Write one line a step, the verdict on a target, and the box."""
        return f"{self.write_steps()}\n{write_verdict(self.results[-1], target)}\n\\boxed{{{self.expression}}}"


def apply_sign(left: int, sign: str, right: int) -> int:
    """Return left + right, left - right or left * right."""
    return left + right if sign == "+" else left - right if sign == "-" else left * right


def write_verdict(result: int, target: int) -> str:
    """Put a result beside the target, and say whether they are equal.

    >>> write_verdict(55, 16)
    '55 vs 16 no'
    """
    return f"{result} vs {target} {'yes' if result == target else 'no'}"


def list_solutions(problem: Problem) -> list[Attempt]:
    """Return every attempt, a chain with + - *, that reaches the target; there may be none: not all ways are chains.

    >>> [attempt.expression for attempt in list_solutions(Problem((2, 3), 5))]
    ['2+3', '3+2']
    """
    found = []
    for numbers in sorted(set(permutations(problem.numbers))):
        for signs in product(SIGNS, repeat=len(numbers) - 1):
            attempt = Attempt(numbers[0], tuple(zip(signs, numbers[1:], strict=True)))
            if attempt.results[-1] == problem.target:
                found.append(attempt)
    return found


# -------------------------------------------------------------------------------- verifier


def verify_response(problem: Problem, response: str) -> tuple[float, str]:
    r"""Return the reward, 1.0 or 0.0, and the outcome: `right`, `wrong` or `no_answer`.

    Right is an expression in the last box that uses every number exactly once, with + - * / and parentheses, and is
    exactly the target.

    >>> verify_response(Problem((3, 5, 8), 16), "\\boxed{(5-3)*8}")
    (1.0, 'right')
    >>> verify_response(Problem((3, 5, 8), 16), "\\boxed{2*8}")
    (0.0, 'wrong')
    """
    content = find_last_boxed(response)
    if content is None or not content.strip():
        return 0.0, "no_answer"
    right = is_solution(problem, content)
    return (1.0, "right") if right else (0.0, "wrong")


def is_solution(problem: Problem, expression: str) -> bool:
    """Return whether an expression uses every number of the problem once and is the target.

    >>> [is_solution(Problem((3, 5, 8), 16), text) for text in ("8*(5-3)", "8+8", "3+5+8=16", "8**(5-3)")]
    [True, False, False, False]
    """
    if not _EXPRESSION.fullmatch(expression):
        return False
    try:
        value = _evaluate(ast.parse(expression.strip(), mode="eval").body)
    except (SyntaxError, ValueError, ZeroDivisionError, RecursionError, MemoryError):
        return False
    used = Counter(map(int, re.findall(r"[0-9]+", expression)))
    return value == problem.target and used == Counter(problem.numbers)


def _evaluate(node: ast.expr) -> Fraction:
    """Evaluate integers joined by + - * /. Raises ValueError for anything else, ZeroDivisionError for x/0."""
    if isinstance(node, ast.Constant) and isinstance(node.value, int):
        return Fraction(node.value)
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.UAdd | ast.USub):
        value = _evaluate(node.operand)
        return -value if isinstance(node.op, ast.USub) else value
    if not isinstance(node, ast.BinOp):
        raise ValueError(f"no arithmetic: {type(node).__name__}")
    left, right = _evaluate(node.left), _evaluate(node.right)
    match node.op:
        case ast.Add():
            return left + right
        case ast.Sub():
            return left - right
        case ast.Mult():
            return left * right
        case ast.Div():
            return left / right
    raise ValueError(f"no operation of the game: {type(node.op).__name__}")


# -------------------------------------------------------------------------------- oracle


@dataclass(frozen=True)
class Diagnosis:
    """The first mistake of a response that no turn takes back."""

    line: int  # its index in the response, from 0
    kind: str  # failed, result, number, unfinished, verdict, box
    sentence: str  # what is wrong: "55 is not 16."

    def write_analysis(self, response: str) -> str:
        r"""Name the line of `response`, and say what is wrong with it.

        >>> Diagnosis(2, "failed", "55 is not 16.").write_analysis("3+8=11\n11*5=55\n55 vs 16 no\n\\boxed{(3+8)*5}")
        '55 vs 16 no: 55 is not 16.'
        """
        line = response.split("\n")[self.line]
        return f"{line}: {self.sentence}"


def diagnose(problem: Problem, response: str) -> Diagnosis | None:
    r"""Find the first line that is a mistake and not followed by a turn.

    A mistake is a wrong result, a number that is not there (or used up), a verdict or an answer before all numbers are
    used, a verdict on other numbers or a false one, an answer that does not solve the problem, and the verdict of an
    attempt that misses the target (`failed`; its last step, if no verdict follows). Return None if there is none, or if
    the text before it is not in the format of the task.

    >>> diagnose(Problem((3, 5, 8), 16), "3+8=11\n11*5=55\n55 vs 16 no\n\\boxed{(3+8)*5}")
    Diagnosis(line=2, kind='failed', sentence='55 is not 16.')
    """
    lines = response.split("\n")
    values = Counter(problem.numbers)
    for i, line in enumerate(lines):
        if line.startswith(TURN):
            values = Counter(problem.numbers)  # a new attempt
            continue
        found = _find_mistake(problem, values, line, any(map(_VERDICT.fullmatch, lines[i + 1 : i + 2])))
        taken_back = i + 1 < len(lines) and lines[i + 1].startswith(TURN)
        if isinstance(found, Counter):
            values = found
        elif not taken_back:
            return None if found is None else Diagnosis(i, *found)
    return None


def _find_mistake(
    problem: Problem, values: Counter[int], line: str, verdict_follows: bool
) -> Counter[int] | tuple[str, str] | None:
    """Return the values after a line, or (kind, sentence) of its mistake, or None if it is not in the format.

    If a verdict follows, it tells of a failure in the last step's place.
    """
    box, step, verdict = _BOX.fullmatch(line), _STEP.fullmatch(line), _VERDICT.fullmatch(line)
    if box is not None:
        if is_solution(problem, box[1]):
            return values
        return ("unfinished", "not all numbers are used.") if values.total() > 1 else ("box", "the answer is wrong.")
    if verdict is not None:
        return _find_verdict_mistake(problem, values, verdict) or values
    if step is None:
        return None
    left, sign, right, result = int(step[1]), step[2], int(step[3]), int(step[4])
    need = Counter((left, right))
    if need - values:
        return "number", f"{min((need - values).elements())} is not there."
    if apply_sign(left, sign, right) != result:
        return "result", f"{left}{sign}{right} is not {result}."
    rest = values - need
    if not rest and result != problem.target and not verdict_follows:
        return "failed", f"{result} is not {problem.target}."
    return Counter([*rest.elements(), result])


def _find_verdict_mistake(problem: Problem, values: Counter[int], verdict: re.Match[str]) -> tuple[str, str] | None:
    """Return (kind, sentence) of the mistake that a verdict makes, or that it tells of; None if there is none."""
    if values.total() > 1:
        return "unfinished", "not all numbers are used."
    (result,) = values
    for said, there in ((int(verdict[1]), result), (int(verdict[2]), problem.target)):
        if said != there:
            return "verdict", f"{said} is not {there}."
    if result != problem.target:
        return "failed", f"{result} is not {problem.target}."
    return None if verdict[3] == "yes" else ("verdict", f"{result} is {result}.")


def write_correction(problem: Problem, wrong: str, reference: str) -> str | None:
    r"""Write the perfect answer to the synthesis prompt; None if `diagnose` finds no mistake.

    The analysis names the line of the mistake. The reconstruction keeps the wrong response through it, says what is
    wrong, and goes on with the attempt that the right response ends with.

    >>> wrong, right = "3+5=8\n8 vs 15 no\n\\boxed{3+5}", "3*5=15\n15 vs 15 yes\n\\boxed{3*5}"
    >>> print(write_correction(Problem((3, 5), 15), wrong, right))
    <analysis>8 vs 15 no: 8 is not 15.</analysis>
    <reconstruction>3+5=8
    8 vs 15 no
    Wait, 8 is not 15.
    3*5=15
    15 vs 15 yes
    \boxed{3*5}</reconstruction>
    """
    found = diagnose(problem, wrong)
    if found is None:
        return None
    kept = wrong.split("\n")[: found.line + 1]
    text = "\n".join([*kept, TURN + found.sentence, last_attempt(reference)])
    return _write_answer(found.write_analysis(wrong), text)


def write_full_correction(problem: Problem, wrong: str, reference: str) -> str | None:
    """Write an answer that keeps nothing of the wrong response (Table 3); None if `diagnose` finds no mistake."""
    found = diagnose(problem, wrong)
    if found is None:
        return None
    return _write_answer(found.write_analysis(wrong), last_attempt(reference))


def _write_answer(analysis: str, reconstruction: str) -> str:
    return f"<analysis>{analysis}</analysis>\n<reconstruction>{reconstruction}</reconstruction>"


def last_attempt(response: str) -> str:
    r"""Return what follows the last turn of a response; the whole response if it has none.

    >>> last_attempt("3+5=8\nWait, 8 is not 15.\n3*5=15")
    '3*5=15'
    """
    lines = response.split("\n")
    turns = [i for i, line in enumerate(lines) if line.startswith(TURN)]
    return "\n".join(lines[turns[-1] + 1 :] if turns else lines)


# -------------------------------------------------------------------------------- what the model looked at


@dataclass(frozen=True)
class AttemptOutcome:
    """A whole attempt within a response.

    >>> AttemptOutcome(reached=False, turned=True, seen=True).turned
    True
    """

    reached: bool  # its last result is the target
    turned: bool  # a turn follows it
    seen: bool | None  # its verdict is of the two numbers, and true; None where it has no verdict


def list_attempts(problem: Problem, response: str) -> Sequence[AttemptOutcome]:
    r"""Return the whole attempts of a response, those whose steps use every number and are right.

    >>> response = "3+5=8\n8 vs 15 no\nWait, 8 is not 15.\n3*5=15\n15 vs 15 yes\n\\boxed{3*5}"
    >>> [attempt.turned for attempt in list_attempts(Problem((3, 5), 15), response)]
    [True, False]
    """
    found: list[AttemptOutcome] = []
    lines = response.split("\n")
    values: Counter[int] | None = Counter(problem.numbers)
    for i, line in enumerate(lines):
        if line.startswith(TURN):
            values = Counter(problem.numbers)
        elif values is not None and _STEP.fullmatch(line):
            after = _find_mistake(problem, values, line, verdict_follows=True)
            values = after if isinstance(after, Counter) else None
            if values is not None and values.total() == 1:
                found.append(_describe_attempt(problem, values, [*lines[i + 1 :], "", ""]))
                values = None
    return found


def _describe_attempt(problem: Problem, values: Counter[int], rest: Sequence[str]) -> AttemptOutcome:
    """Describe the attempt that ends with `values`, a single one; `rest` are the lines after its last step."""
    (result,) = values
    turned = rest[0].startswith(TURN)
    if not _VERDICT.fullmatch(rest[0]):
        return AttemptOutcome(result == problem.target, turned, None)
    seen = rest[0] == write_verdict(result, problem.target)
    return AttemptOutcome(result == problem.target, rest[1].startswith(TURN), seen)
