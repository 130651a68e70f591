"""Two answers compared by math-verify. Runs in the verifier's processes only: nothing here is bounded in time.

math-verify's own timeouts are switched off: they are SIGALRM handlers, and no handler runs while C code computes.
"""

from __future__ import annotations

import logging
import math
import re
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

LARGEST = 100_000  # decimal digits: some milliseconds; (10^6)! has 5.6 million and takes seconds
MOST_TERMS = 1_000  # of a sum or product that is written out
CLEARLY = 1e-4  # relative; math-verify rounds to 6 decimals
ROUGHLY = 0.05  # relative; as people round

_DIGIT = re.compile(r"[0-9]")
_UNIT_POWER = re.compile(r"(?<=\})\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9])")  # the ^2 of \text{ cm}^2
_IN_BASE = re.compile(r"\(?([0-9]+)\)?_\{?([0-9]+)\}?")
_HALF_DAY = re.compile(r"(?i)(?<![a-z])([ap])\.? ?m\b")
_PERCENT = re.compile(r"(.+?)\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)", re.DOTALL)

# Typical shapes. math-verify's parser learns as it reads; a process forked after this has learned already.
WARM_UP = (
    r"2\sqrt{3}", r"\frac{1}{2}", "(1,2)", "x^2+2x-1", r"\left(3,\frac{\pi}{2}\right)", r"[-2,7)\cup(3,\infty)", "x=5",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\{1,2,3\}", "10!", r"\binom{10}{3}", r"\sum_{k=1}^{9} k^2", "6-5i",
    r"\text{(A)}", "1,2", r"\log_2 3", r"x\le 3", r"1\frac{1}{2}", r"336^\circ", r"-\sqrt[3]{2}", "9^{9^{2}}",
    "((1+2))",
)  # fmt: skip


class TooLarge(Exception):
    """A number with more digits, or a sum with more terms, than are worked out."""


@dataclass(frozen=True)
class Parsed:
    """An answer as math-verify reads it."""

    values: list[Any]  # sympy expressions, the text last; empty: nothing to read
    large: bool  # working it out may take forever

    @property
    def expression(self) -> Any | None:
        """What sympy is asked about; None if only text was found."""
        return self.values[0] if self.values and not isinstance(self.values[0], str) else None

    @property
    def texts(self) -> list[str]:
        """The text as math-verify cleaned it."""
        return [value for value in self.values if isinstance(value, str)]


def warm_up() -> None:
    """Imports math-verify and lets its parser learn the typical shapes. About a second."""
    logging.disable()  # it warns that the time is unlimited
    for text in WARM_UP:
        compare(text, r"\frac{7}{3}")


def compare(gold: str, answer: str) -> str:
    r"""`right`, `wrong` or `too_large` of two normalised answers.

    A percentage is right if the number is right without the sign or as a fraction: 50\% answers 50 and 0.5.
    """
    if _differ(_IN_BASE.fullmatch(gold), _IN_BASE.fullmatch(answer)):
        return "wrong"
    if _differ(_HALF_DAY.search(gold.lower()), _HALF_DAY.search(answer.lower())):
        return "wrong"
    number, percentage = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    if number and percentage:
        return _compare(parsed(number[1]), parsed(percentage[1]))
    if number or percentage:
        gold_value, value = parsed(number[1] if number else gold), parsed(percentage[1] if percentage else answer)
        outcome = _compare(gold_value, value)
        if outcome != "wrong":
            return outcome
        return _compare(*(_hundredth(gold_value), value) if number else (gold_value, _hundredth(value)))
    return _compare(parsed(gold), parsed(answer))


def fault(gold: str) -> str | None:
    """Why a normalised gold answer cannot be used, or None."""
    value = parsed(match[1] if (match := _PERCENT.fullmatch(gold)) else gold)
    if value.expression is None:
        return "does not parse"
    return "is too large to be worked out" if value.large else None


def _compare(gold: Parsed, answer: Parsed) -> str:
    from math_verify import verify

    if gold.large or answer.large:  # equal as it is written, perhaps; nothing is worked out
        return "right" if gold.expression == answer.expression else "too_large"
    if _clearly_different(gold.expression, answer.expression):  # spares the wrong answer sympy's simplify
        return "wrong"
    if _is_untrue(answer.expression) and not _is_untrue(gold.expression):
        return "wrong"
    pairs = [(gold.expression, answer.expression)]
    if any(_imaginary(e) is not e for e in pairs[0]):
        pairs.append((_imaginary(gold.expression), _imaginary(answer.expression)))
    options: dict[str, Any] = {"timeout_seconds": None, "allow_set_relation_comp": True}
    same = any(verify(a, b, **options) and not _both_insoluble(a, b) for a, b in pairs)
    return "right" if same or verify(gold.texts, answer.texts, **options) else "wrong"


def _differ(a: re.Match[str] | None, b: re.Match[str] | None) -> bool:
    """Whether both are there and say different things: math-verify ignores the base of a number, and a.m. or p.m."""
    return a is not None and b is not None and a.groups() != b.groups()


def _imaginary(e: Any) -> Any:
    """The expression with `i` as the imaginary unit if it is the only letter; math-verify reads `2i` with a letter."""
    from sympy import Expr, FiniteSet, I, MatrixBase
    from sympy.core.relational import Relational

    if not isinstance(e, (Expr, MatrixBase, FiniteSet)) or e.has(Relational):  # `i=3` names something
        return e
    letters = e.free_symbols
    if {letter.name for letter in letters} != {"i"}:
        return e
    try:
        return e.subs(dict.fromkeys(letters, I))
    except (TypeError, ValueError):  # as in the larger of 1 and i
        return e


def _is_untrue(e: Any) -> bool:
    """Whether an equation of plain numbers is false by more than rounding: `8=7` is no way to say 7."""
    from sympy import Eq, I, NumberSymbol

    if not isinstance(e, Eq) or e.has(I, NumberSymbol):  # the letters i, e and pi may be somebody's names
        return False
    return _clearly_different(e.lhs, e.rhs, ROUGHLY)


def _both_insoluble(a: Any, b: Any) -> bool:
    """Whether both are equations, different ones, that nothing solves: math-verify takes any two of them for equal.

    `I=3` and `e=5` are such equations, for the letters are read as constants.
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
    except Exception:  # as math-verify does it: then it was not by their solutions that it found them equal
        return False
    if not all(isinstance(side, Expr) for side in (*a.args, *b.args)):
        return True
    return bool(simplify((a.lhs - a.rhs) / (b.lhs - b.rhs)).free_symbols)  # else one is a multiple of the other


@lru_cache(4096)  # the K responses to a query share a gold answer
def parsed(text: str) -> Parsed:
    r"""math-verify's reading of a normalised answer as a whole.

    Its search for some number or fraction in what it cannot read is switched off: from `\{x\mid x<1\}` it takes
    the 1. So is reading `3\text{ h } 20\text{ min}` as 3: a reading without all digits is none.
    """
    from math_verify import LatexExtractionConfig, parse

    whole = (LatexExtractionConfig(try_extract_without_anchor=False),)
    values = parse(f"\\boxed{{{text}}}", whole, parsing_timeout=None)
    read = Parsed(values, False)
    if any(_digits_in(cleaned) < _digits_in(_UNIT_POWER.sub("", text)) for cleaned in read.texts):
        return Parsed([], False)
    try:
        for value in values[:1]:
            for part in value.flat() if hasattr(value, "flat") else [value]:  # a matrix is no expression
                digits(part)
    except TooLarge:
        return Parsed(values, True)
    return read


def _digits_in(text: str) -> int:
    return len(_DIGIT.findall(text))


def _hundredth(value: Parsed) -> Parsed:
    from sympy import Expr

    return Parsed([v / 100 for v in value.values if isinstance(v, Expr)], value.large)


def _clearly_different(a: Any, b: Any, tolerance: float = CLEARLY) -> bool:
    """Whether both are numbers and differ by more than rounding can explain."""
    from sympy import Expr, Integral, Limit, Product, Sum

    if not all(isinstance(v, Expr) and not v.free_symbols and not v.has(Sum, Product, Integral, Limit) for v in (a, b)):
        return False
    try:
        x, y = complex(a.evalf(20)), complex(b.evalf(20))
    except (TypeError, ValueError, OverflowError):  # infinite, or not a number after all
        return False
    return abs(x - y) > tolerance * max(1.0, abs(x), abs(y))


def digits(e: Any) -> float:
    """An upper bound on the decimal digits of a number once it is worked out; symbols count as none.

    Raises TooLarge where that is more than LARGEST, or where a sum or product has more than MOST_TERMS terms.
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
            if len(limits) == 2 and _value(limits[1] - limits[0]) > MOST_TERMS:
                raise TooLarge
    inner = [digits(argument) for argument in e.args]
    if isinstance(e, Pow):
        size = inner[0] * max(1.0, abs(_value(e.exp))) if inner[0] else 0.0
    elif isinstance(e, (factorial, factorial2, gamma)):
        number = max(_value(e.args[0]), 1.0)
        size = number * math.log10(number)
    elif isinstance(e, binomial):
        size = 3.0 * abs(_value(e.args[0]))  # ten times its digits: sympy multiplies factor by factor
    else:
        size = max(inner) if isinstance(e, Mod) else sum(inner)
    if size > LARGEST:
        raise TooLarge
    return size


def _value(e: Any) -> float:
    """The value of a number whose parts `digits` has passed; 0 of what is no number, or infinite as in a series."""
    if e.free_symbols or e.is_infinite or not e.is_comparable:
        return 0.0
    try:
        return float(e.evalf(5))
    except (TypeError, ValueError):
        return 0.0
    except OverflowError:
        raise TooLarge from None
