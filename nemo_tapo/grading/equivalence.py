"""Compare two answers with math-verify.

This code runs in the verifier's processes only, because nothing here limits its own time. math-verify's timeouts are
switched off: they are SIGALRM handlers, and Python runs no handler while C code computes.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

MAX_DIGITS = 100_000  # decimal digits: takes some milliseconds; (10^6)! has 5.6 million and takes seconds
MAX_TERMS = 1_000  # of a sum or product that is expanded
PRECISION_TOLERANCE = 1e-4  # relative; math-verify rounds to 6 decimals
ROUNDING_TOLERANCE = 0.05  # relative; how coarsely people round

_DIGIT = re.compile(r"[0-9]")
_UNIT_POWER = re.compile(r"(?<=\})\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9])")  # the ^2 of \text{ cm}^2
_IN_BASE = re.compile(r"\(?([0-9]+)\)?_\{?([0-9]+)\}?")
_HALF_DAY = re.compile(r"(?i)(?<![a-z])([ap])\.? ?m\b")
_PERCENT = re.compile(r"(.+?)\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)", re.DOTALL)

# Typical forms of answers. math-verify's parser caches what it learns, and a process forked later inherits the cache.
WARM_UP = (
    r"2\sqrt{3}", r"\frac{1}{2}", "(1,2)", "x^2+2x-1", r"\left(3,\frac{\pi}{2}\right)", r"[-2,7)\cup(3,\infty)", "x=5",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\{1,2,3\}", "10!", r"\binom{10}{3}", r"\sum_{k=1}^{9} k^2", "6-5i",
    r"\text{(A)}", "1,2", r"\log_2 3", r"x\le 3", r"1\frac{1}{2}", r"336^\circ", r"-\sqrt[3]{2}", "9^{9^{2}}",
    "((1+2))",
)  # fmt: skip


class TooLarge(Exception):
    """A number with too many digits, or a sum or product with too many terms, to be evaluated."""


@dataclass(frozen=True)
class ParsedAnswer:
    """An answer as math-verify parses it.

    >>> ParsedAnswer([5, "5"], too_large=False).texts
    ['5']
    """

    values: list[Any]  # sympy expressions, then the text; empty if nothing was parsed
    too_large: bool  # evaluating it may take very long

    @property
    def expression(self) -> Any | None:
        """The expression for sympy; None if only text was found."""
        return self.values[0] if self.values and not isinstance(self.values[0], str) else None

    @property
    def texts(self) -> list[str]:
        """The texts as math-verify cleaned them."""
        return [value for value in self.values if isinstance(value, str)]


def warm_up() -> None:
    """Import math-verify and let its parser learn the typical forms. This takes about a second."""
    logging.disable()  # math-verify warns that the time is unlimited
    for text in WARM_UP:
        compare_answers(text, r"\frac{7}{3}")


def compare_answers(gold: str, answer: str) -> str:
    r"""Compare two normalised answers and return `right`, `wrong` or `too_large`.

    If one of the two is a percentage, it is right as the plain number and as the fraction: 50\% matches 50 and 0.5.
    """
    if _groups_differ(_IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(answer)):
        return "wrong"
    if _groups_differ(_HALF_DAY.search(gold.lower()), _HALF_DAY.search(answer.lower())):
        return "wrong"
    number, percentage = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    if number and percentage:
        return _compare_parsed(parse_answer(number[1]), parse_answer(percentage[1]))
    if number or percentage:
        gold_value, value = (
            parse_answer(number[1] if number else gold),
            parse_answer(percentage[1] if percentage else answer),
        )
        outcome = _compare_parsed(gold_value, value)
        if outcome != "wrong":
            return outcome
        return _compare_parsed(
            *(_divide_by_hundred(gold_value), value) if number else (gold_value, _divide_by_hundred(value))
        )
    return _compare_parsed(parse_answer(gold), parse_answer(answer))


def find_gold_fault(gold: str) -> str | None:
    """Return why a normalised gold answer cannot be used, or None if it can."""
    value = parse_answer(match[1] if (match := _PERCENT.fullmatch(gold)) else gold)
    if value.expression is None:
        return "does not parse"
    return "is too large to be worked out" if value.too_large else None


def _compare_parsed(gold: ParsedAnswer, answer: ParsedAnswer) -> str:
    """Compare two parsed answers and return `right`, `wrong` or `too_large`."""
    from math_verify import verify

    if gold.too_large or answer.too_large:  # compared as written, without evaluation
        return "right" if gold.expression == answer.expression else "too_large"
    if _numbers_differ(gold.expression, answer.expression):  # saves the cost of sympy's simplify
        return "wrong"
    if _is_false_equation(answer.expression) and not _is_false_equation(gold.expression):
        return "wrong"
    pairs = [(gold.expression, answer.expression)]
    if any(_read_i_as_imaginary(e) is not e for e in pairs[0]):
        pairs.append((_read_i_as_imaginary(gold.expression), _read_i_as_imaginary(answer.expression)))
    options: dict[str, Any] = {"timeout_seconds": None, "allow_set_relation_comp": True}
    same = any(verify(a, b, **options) and not _are_different_unsolvable(a, b) for a, b in pairs)
    return "right" if same or verify(gold.texts, answer.texts, **options) else "wrong"


def _groups_differ(a: re.Match[str] | None, b: re.Match[str] | None) -> bool:
    """Tell whether both patterns matched, with different groups.

    math-verify ignores the base of a number, and a.m. or p.m.
    """
    return a is not None and b is not None and a.groups() != b.groups()


def _read_i_as_imaginary(e: Any) -> Any:
    """Replace the letter `i` by the imaginary unit if it is the only letter: math-verify reads it as a variable."""
    from sympy import Expr, FiniteSet, I, MatrixBase
    from sympy.core.relational import Relational

    if not isinstance(e, (Expr, MatrixBase, FiniteSet)) or e.has(Relational):  # in `i=3`, `i` is a variable
        return e
    letters = e.free_symbols
    if {letter.name for letter in letters} != {"i"}:
        return e
    try:
        return e.subs(dict.fromkeys(letters, I))
    except (TypeError, ValueError):  # as in max(1, i)
        return e


def _is_false_equation(e: Any) -> bool:
    """Tell whether an equation of plain numbers is false by more than rounding: `8=7` does not mean 7."""
    from sympy import Eq, I, NumberSymbol

    if not isinstance(e, Eq) or e.has(I, NumberSymbol):  # the letters i, e and pi may be variables
        return False
    return _numbers_differ(e.lhs, e.rhs, ROUNDING_TOLERANCE)


def _are_different_unsolvable(a: Any, b: Any) -> bool:
    """Tell whether both are equations that differ and have no solution: math-verify takes any two of these as equal.

    `I=3` and `e=5` are such equations, because the letters are read as constants.
    """
    from math_verify import verify
    from sympy import Eq, Expr, simplify, solve

    if not (isinstance(a, Eq) and isinstance(b, Eq)) or a == b:
        return False
    if all(verify(x, y, timeout_seconds=None) for x, y in zip(a.args, b.args, strict=True)):
        return False
    if not a.free_symbols and not b.free_symbols:
        return True
    try:
        if any(e.free_symbols and solve(e, e.free_symbols) for e in (a, b)):
            return False
    except Exception:  # math-verify catches the same; it then did not call them equal because of their solutions
        return False
    if not all(isinstance(side, Expr) for side in (*a.args, *b.args)):
        return True
    return bool(simplify((a.lhs - a.rhs) / (b.lhs - b.rhs)).free_symbols)  # a constant: one is a multiple of the other


@lru_cache(4096)  # the K responses to a query share a gold answer
def parse_answer(text: str) -> ParsedAnswer:
    r"""Parse a normalised answer with math-verify, as a whole.

    math-verify's search for some number inside a text that it cannot parse is switched off: from `\{x\mid x<1\}` it
    would take the 1. A result that lacks some digits of the text is rejected too, such as 3 for
    `3\text{ h } 20\text{ min}`.
    """
    from math_verify import LatexExtractionConfig, parse

    whole_text_only = (LatexExtractionConfig(try_extract_without_anchor=False),)
    values = parse(f"\\boxed{{{text}}}", whole_text_only, parsing_timeout=None)
    answer = ParsedAnswer(values, False)
    if any(_count_digits(cleaned) < _count_digits(_UNIT_POWER.sub("", text)) for cleaned in answer.texts):
        return ParsedAnswer([], False)
    try:
        for value in values[:1]:
            for part in value.flat() if hasattr(value, "flat") else [value]:  # a matrix is not an expression
                bound_digits(part)
    except TooLarge:
        return ParsedAnswer(values, True)
    return answer


def _count_digits(text: str) -> int:
    return len(_DIGIT.findall(text))


def _divide_by_hundred(value: ParsedAnswer) -> ParsedAnswer:
    from sympy import Expr

    return ParsedAnswer([v / 100 for v in value.values if isinstance(v, Expr)], value.too_large)


def _numbers_differ(a: Any, b: Any, tolerance: float = PRECISION_TOLERANCE) -> bool:
    """Tell whether both are numbers and differ by more than `tolerance` (relative) allows."""
    from sympy import Expr, Integral, Limit, Product, Sum

    if not all(isinstance(v, Expr) and not v.free_symbols and not v.has(Sum, Product, Integral, Limit) for v in (a, b)):
        return False
    try:
        x, y = complex(a.evalf(20)), complex(b.evalf(20))
    except (TypeError, ValueError, OverflowError):  # infinite or not a number
        return False
    return abs(x - y) > tolerance * max(1.0, abs(x), abs(y))


def bound_digits(e: Any) -> float:
    """Return an upper bound on the decimal digits of an evaluated number; symbols count as 0 digits.

    Raises TooLarge if that is more than MAX_DIGITS, or if a sum or product has more than MAX_TERMS terms.
    """
    from sympy import Basic, Float, Mod, Pow, Product, Rational, Sum, binomial, factorial, factorial2, gamma

    if isinstance(e, Rational):
        return 0.30103 * max(abs(int(e.p)), int(e.q)).bit_length() if e not in (0, 1, -1) else 0.0
    if isinstance(e, Float):
        return abs(float(e._mpf_[2] + e._mpf_[3])) * 0.30103 + 1
    if not isinstance(e, Basic) or not e.args:
        return 0.0
    if isinstance(e, (Sum, Product)):
        for _, *limits in e.limits:
            if len(limits) == 2 and _evaluate(limits[1] - limits[0]) > MAX_TERMS:
                raise TooLarge
    inner = [bound_digits(argument) for argument in e.args]
    if isinstance(e, Pow):
        size = inner[0] * max(1.0, abs(_evaluate(e.exp))) if inner[0] else 0.0
    elif isinstance(e, (factorial, factorial2, gamma)):
        number = max(_evaluate(e.args[0]), 1.0)
        size = number * math.log10(number)
    elif isinstance(e, binomial):
        size = 3.0 * abs(_evaluate(e.args[0]))  # ten times its digits, because sympy multiplies factor by factor
    else:
        size = max(inner) if isinstance(e, Mod) else sum(inner)
    if size > MAX_DIGITS:
        raise TooLarge
    return size


def _evaluate(e: Any) -> float:
    """Return the value of a number whose parts passed `bound_digits`; 0 if it is not a number, or is infinite.

    Raises TooLarge if a float cannot hold it.
    """
    if e.free_symbols or e.is_infinite or not e.is_comparable:
        return 0.0
    try:
        return float(e.evalf(5))
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        raise TooLarge from None
