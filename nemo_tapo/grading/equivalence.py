r"""Compare two answers with math-verify.

    1,2   (3,\frac{\pi}{2})   -> element by element
    1:2:3                     -> part by part
    50\%                      -> as 50 and as \frac{1}{2}
    anything else             -> parsed; numbers by their values (values.py), formulas and the rest by math-verify

This code runs in the verifier's processes only, because nothing here limits its own time. math-verify's timeouts are
switched off: they are SIGALRM handlers, and Python runs no handler while C code computes.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from itertools import pairwise
from typing import Any

from nemo_tapo.grading.answer_sets import Collection, may_be_number, read_collection
from nemo_tapo.grading.forms import compare_directly
from nemo_tapo.grading.normal import normalise
from nemo_tapo.grading.notation import WRAPPED, unwrap
from nemo_tapo.grading.values import TooLarge, bound_digits, compare_values, contradict
from nemo_tapo.grading.wording import match_forms

_DIGIT = re.compile(r"[0-9]")
_PERCENT = re.compile(r"(.+?)\s*(?:\\?%|\\text\s*\{\s*(?:\\?%|percent)\s*\}|percent)", re.DOTALL)
_RATIO = re.compile(r"[^:=|<>]+(?::[^:=|<>]+){2,}")
_EQUALS = re.compile(r"(?<![<>!\\])=|\\approx(?![a-zA-Z])")
_SET = re.compile(r"[=<>]|\\(?:leq?|geq?|leqslant|geqslant|neq?|lt|gt|in|mathbb|cup|cap|setminus|emptyset)(?![a-zA-Z])")
_WORDS = re.compile(r"[a-zA-Z][a-zA-Z .'-]*")
# A number after words, as in `3\text{ h } 20\text{ min}`, is no factor.
_AMOUNTS = re.compile(r"\\(?:text|mathrm|mbox)\s*\{[^{}]*[a-zA-Z][^{}]*\}\s*[0-9]")
_COMMAND = (
    r"(\\(?:text|mathrm|mathbb|operatorname|begin|end|overline|overrightarrow|widehat|vec)\s*\{[^{}]*\}|\\[a-zA-Z]+)"
)
_NAME = re.compile(_COMMAND + r"|(?<![A-Za-z])([A-Z]{3,})(?![A-Za-z])")
_SEGMENT = re.compile(_COMMAND + r"|(?<![A-Za-z])([A-Z]{2})(?![A-Za-z])")
_CAPITALS = re.compile(_COMMAND + "|([A-Z]+)")
_UNKNOWNS = frozenset("xytnk")  # letters that are solved for
_SUM_NAMED = re.compile(r"[^=(]*[a-zA-Z][^=(]*[-+][^=]*=")
_PRIMED = re.compile(r"(?<![\\a-zA-Z])([a-zA-Z])('+)")
_LETTER = re.compile(_COMMAND + "|([a-zA-Z])")
_SPARE_LETTERS = "uvwzqkhgmabcfjlnoprstxy"  # no d, e and i

# Typical forms of answers. math-verify's parser caches what it learns, and a process forked later inherits the cache.
WARM_UP = (
    r"2\sqrt{3}", r"\frac{1}{2}", "(1,2)", "x^2+2x-1", r"\left(3,\frac{\pi}{2}\right)", r"[-2,7)\cup(3,\infty)", "x=5",
    r"\begin{pmatrix}1&2\\3&4\end{pmatrix}", r"\{1,2,3\}", "10!", r"\binom{10}{3}", r"\sum_{k=1}^{9} k^2", "6-5i",
    r"\text{(A)}", "1,2", r"\log_2 3", r"x\le 3", r"1\frac{1}{2}", r"336^\circ", r"-\sqrt[3]{2}", "9^{9^{2}}",
    "((1+2))",
)  # fmt: skip


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
        _compare_formulas(text, r"\frac{7}{3}")


def compare_answers(gold: str, answer: str) -> str:
    r"""Compare two answers in one form (`wording.match_forms`) and return `right`, `wrong` or `too_large`.

    If one of the two is a percentage, it is right as the plain number and as the fraction: 50\% matches 50 and 0.5.
    """
    pieces = read_collection(gold), read_collection(answer)
    if pieces != (None, None) and not _is_one_value(gold, answer, *pieces):
        return _compare_collections(gold, answer, *pieces)
    if _RATIO.fullmatch(gold) or _RATIO.fullmatch(answer):
        return _compare_ratios(gold.split(":"), answer.split(":"))
    if _PERCENT.fullmatch(gold) or _PERCENT.fullmatch(answer):
        return _compare_percentages(gold, answer)
    return _compare_formulas(gold, answer)


def find_gold_fault(gold: str) -> str | None:
    """Return why a normalised gold answer without its unit cannot be used, or None if it can."""
    value = parse_answer(match[1] if (match := _PERCENT.fullmatch(gold)) else gold)
    if value.expression is None:
        return "does not parse"
    return "is too large to be worked out" if value.too_large else None


# ------------------------------------------------------------------------------ several answers in one


def _is_one_value(gold: str, answer: str, pieces: Collection | None, others: Collection | None) -> bool:
    """Tell whether one of the two is no collection, and may yet define the same set or be the same integer."""
    if pieces and others:
        return False
    collection, single = (gold, answer) if pieces else (answer, gold)
    return may_be_number(collection) or _SET.search(single) is not None


def _compare_collections(gold: str, answer: str, pieces: Collection | None, others: Collection | None) -> str:
    """Compare collections element by element; one answer and several are never equal.

    Elements of a list may come in any order, but each counts as often as it stands there. Three or more words are in
    order, for they may be a ranking. An answer without brackets is a tuple if the gold answer is one.
    """
    if pieces is None or others is None or len(pieces.items) != len(others.items):
        return "wrong"
    bracketed = {pieces.kind, others.kind} - {"list", "()"}
    if bracketed and pieces.kind != others.kind:
        return "wrong"
    ordered = pieces.kind != "list" or (
        len(pieces.items) > 2 and all(_WORDS.fullmatch(unwrap(i)) for i in pieces.items)
    )
    left = list(others.items)
    for item in pieces.items:
        candidates = left[:1] if ordered else left
        outcomes = {}
        for other in sorted(candidates, key=lambda text: text != item):
            outcomes[other] = _compare_elements(item, other, of_pair=pieces.kind == "()")
            if outcomes[other] == "right":
                left.remove(other)
                break
        else:
            return "too_large" if "too_large" in outcomes.values() else "wrong"
    return "right"


def _compare_elements(gold: str, answer: str, of_pair: bool) -> str:
    """Compare two parts of answers, which may be in different forms; `x+y=1` is no part of a pair of numbers."""
    matched = match_forms(normalise(gold), normalise(answer))
    if matched is None or not all(matched):
        return "wrong"
    if of_pair and "=" not in matched[0] and _SUM_NAMED.match(WRAPPED.sub("", matched[1])):
        return "wrong"
    settled = compare_directly(*matched)
    return compare_answers(*matched) if settled is None else "right" if settled[0] else "wrong"


def _compare_ratios(gold: list[str], answer: list[str]) -> str:
    """Compare ratios of three or more parts: each to the first."""
    if len(gold) != len(answer):
        return "wrong"
    for part, other in zip(gold[1:], answer[1:], strict=True):
        outcome = _compare_formulas(rf"\frac{{{part}}}{{{gold[0]}}}", rf"\frac{{{other}}}{{{answer[0]}}}")
        if outcome != "right":
            return outcome
    return "right"


def _compare_percentages(gold: str, answer: str) -> str:
    """Compare two answers of which at least one is a percentage."""
    number, percentage = _PERCENT.fullmatch(gold), _PERCENT.fullmatch(answer)
    gold_value = parse_answer(number[1] if number else gold)
    value = parse_answer(percentage[1] if percentage else answer)
    outcome = _compare_parsed(gold_value, value)
    if outcome != "wrong" or (number and percentage):
        return outcome
    if number:
        return _compare_parsed(_divide_by_hundred(gold_value), value)
    return _compare_parsed(gold_value, _divide_by_hundred(value))


def _divide_by_hundred(value: ParsedAnswer) -> ParsedAnswer:
    """Return the fraction that a percentage means."""
    from sympy import Expr

    return ParsedAnswer([v / 100 for v in value.values if isinstance(v, Expr)], value.too_large)


# ------------------------------------------------------------------------------ one formula each


def _compare_formulas(gold: str, answer: str) -> str:
    """Compare two answers that are one formula each."""
    if _contradicts_itself(answer) and not _contradicts_itself(gold):
        return "wrong"
    return _compare_parsed(*(parse_answer(text) for text in _separate_names(gold, answer)))


def _separate_names(gold: str, answer: str) -> tuple[str, str]:
    r"""Mark what math-verify confuses: `R` with `r` where both occur, `f'` with `f`, and `ABC` with `BCA`.

    >>> _separate_names("R^2-r^2", "f'(x)"), _separate_names("N", "n"), _separate_names("ABC=30", r"\frac{BCA}{2}")
    (('u^2-r^2', 'f_{prime}(x)'), ('N', 'n'), ('\\text{ABC}=30', '\\frac{\\text{BCA}}{2}'))
    """
    texts = [_NAME.sub(lambda m: m[1] or rf"\text{{{m[2]}}}", text) for text in (gold, answer)]
    if _names_segments(texts[0]):
        texts = [_SEGMENT.sub(lambda m: m[1] or rf"\text{{{''.join(sorted(m[2]))}}}", text) for text in texts]
    used = [{match[2] for match in _LETTER.finditer(text) if match[2]} for text in texts]
    both = sorted({letter for letters in used for letter in letters if letter.isupper() and letter.lower() in letters})
    if both:
        spare = [letter for letter in _SPARE_LETTERS if not {letter, letter.upper()} & (used[0] | used[1])]
        names = dict(zip(both, spare, strict=False))
        texts = [_LETTER.sub(lambda m: names.get(m[0], m[0]), text) for text in texts]
    texts = [_PRIMED.sub(lambda m: rf"{m[1]}_{{{'prime' * len(m[2])}}}", text) for text in texts]
    return texts[0], texts[1]


def _names_segments(gold: str) -> bool:
    r"""Tell whether the capitals of a gold answer stand in pairs, as segments do: `AB\cdot CD` is not `AC\cdot BD`.

    >>> _names_segments(r"AB\cdot CD"), _names_segments("AB"), _names_segments(r"\frac{AB}{C}")
    (True, False, False)
    """
    runs = [match[2] for match in _CAPITALS.finditer(gold) if match[2]]
    return len(runs) > 1 and all(len(run) == 2 for run in runs)


def _contradicts_itself(text: str) -> bool:
    """Tell whether an equation equates different numbers: `x=8=7` does not mean 7.

    >>> _contradicts_itself("x=8=7"), _contradicts_itself("x=2+3=5")
    (True, False)
    """
    sides = [side.strip() for side in _EQUALS.split(text)]
    sides = [side for side in sides if side and not side.isalpha()]
    if len(sides) < 2:
        return False
    values = [parse_answer(side) for side in sides]
    numbers = [value.expression for value in values if value.expression is not None and not value.too_large]
    return any(contradict(a, b) for a, b in pairwise(numbers))


def _compare_parsed(gold: ParsedAnswer, answer: ParsedAnswer) -> str:
    """Compare two parsed answers and return `right`, `wrong` or `too_large`."""
    if gold.too_large or answer.too_large:  # compared as written, without evaluation
        return "right" if gold.expression == answer.expression else "too_large"
    if _is_equation(answer.expression) and _is_number(gold.expression) and not _is_solved(answer):
        return "wrong"
    if _is_equation(gold.expression) and _is_number(answer.expression) and not _is_solved(gold):
        return "wrong"
    gold, answer = _turn_round(gold), _turn_round(answer)
    pairs = [(gold.expression, answer.expression)]
    if any(_read_i_as_imaginary(e) is not e for e in pairs[0]):
        pairs.append((_read_i_as_imaginary(gold.expression), _read_i_as_imaginary(answer.expression)))
    verify = _load_verify()
    for a, b in pairs:
        same = compare_values(a, b)  # saves the cost of sympy's simplify
        if same or (same is None and verify(a, b) and not _are_different_unsolvable(a, b)):
            return "right"
    return "right" if verify(gold.texts, answer.texts) else "wrong"


def _is_equation(e: Any) -> bool:
    from sympy import And, Eq, Ne

    return isinstance(e, (Eq, Ne)) or (isinstance(e, And) and all(isinstance(part, Eq) for part in e.args))


def _is_number(e: Any) -> bool:
    return e is not None and not getattr(e, "free_symbols", True)


def _is_solved(answer: ParsedAnswer) -> bool:
    r"""Tell whether an answer gives a value, by itself or as an equation whose other side names what was asked for.

    An equation without a letter, such as `2^4=16`, gives its value. `2x=5`, `x^2=4` and `n \ne 5` do not say what `x`
    and `n` are. Several letters are taken as a name, though `2x+3y=5` is none: `a+b=5` is far more often one.
    """
    from sympy import And, Ne

    e = answer.expression
    if e is None or not _is_equation(e):
        return True
    equations = e.args if isinstance(e, And) else (e,)
    named = any(_is_name(side) for equation in equations for side in equation.args)
    return not isinstance(e, Ne) and (named or not e.free_symbols)


def _is_name(side: Any) -> bool:
    r"""Tell whether a side of an equation names a quantity: a letter, `f(3)`, `m+n`, `r^2`, `\cos\theta`, a limit.

    What is made of one letter names one only if that is no letter that is solved for, and if it is not just a multiple.
    """
    from sympy import Basic, Derivative, Expr, Limit, Sum, Symbol
    from sympy.core.function import AppliedUndef

    if not isinstance(side, Basic):
        return False
    letters = side.free_symbols
    if isinstance(side, (Symbol, Limit, Derivative, Sum)) or len(letters) > 1 or side.has(AppliedUndef):
        return True
    [letter] = letters or [None]
    if letter is None or letter.name in _UNKNOWNS or not isinstance(side, Expr):
        return False
    return any(isinstance(part, Basic) and part != letter and part.has(letter) for part in _get_factors(side))


def _get_factors(side: Any) -> tuple[Any, ...]:
    """Return the factors of a product, and else the side itself; of a sum nothing, for `a+1` names no quantity."""
    return side.args if side.is_Mul else () if side.is_Add else (side,)


def _turn_round(answer: ParsedAnswer) -> ParsedAnswer:
    """Write `5=x` as `x=5`, of which math-verify takes the value."""
    from sympy import Eq, Symbol

    e = answer.expression
    if not isinstance(e, Eq) or not isinstance(e.rhs, Symbol) or isinstance(e.lhs, Symbol):
        return answer
    return ParsedAnswer([Eq(e.rhs, e.lhs, evaluate=False)], answer.too_large)


@lru_cache(1)
def _load_verify() -> Callable[[Any, Any], bool]:
    """Return math-verify's comparison, which asks `values.py` wherever it comes to two numbers or two formulas."""
    from math_verify import grader

    def guard(compare: Callable[..., bool]) -> Callable[..., bool]:
        def compare_guarded(a: Any, b: Any, *options: Any) -> bool:
            same = compare_values(a, b)
            return compare(a, b, *options) if same is None else same

        return compare_guarded

    grader.sympy_numeric_eq = guard(grader.sympy_numeric_eq)
    grader.sympy_symbolic_eq = guard(grader.sympy_symbolic_eq)
    options = {"timeout_seconds": None, "allow_set_relation_comp": True}
    return lambda a, b: bool(grader.verify(a, b, **options))


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


def _are_different_unsolvable(a: Any, b: Any) -> bool:
    """Tell whether both are equations that differ and have no solution: math-verify takes any two of these as equal.

    `I=3` and `e=5` are such equations, because the letters are read as constants.
    """
    from sympy import Eq, Expr, simplify, solve

    verify = _load_verify()
    if not (isinstance(a, Eq) and isinstance(b, Eq)) or a == b:
        return False
    if all(verify(x, y) for x, y in zip(a.args, b.args, strict=True)):
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
    would take the 1. So is its search for units, in which it takes `3t` as 3. A result that lacks some digits of the
    text is rejected too, and so are several amounts, such as `3\text{ h } 20\text{ min}`.
    """
    from latex2sympy2_extended.math_normalization import NormalizationConfig
    from math_verify import LatexExtractionConfig, parse

    if _AMOUNTS.search(text):
        return ParsedAnswer([], False)
    cleaning = NormalizationConfig(units=False, malformed_operators=True, nits=True)
    whole_text_only = (LatexExtractionConfig(try_extract_without_anchor=False, normalization_config=cleaning),)
    values = parse(f"\\boxed{{{text}}}", whole_text_only, parsing_timeout=None)
    answer = ParsedAnswer(values, False)
    if any(_count_digits(cleaned) < _count_digits(text) for cleaned in answer.texts):
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
