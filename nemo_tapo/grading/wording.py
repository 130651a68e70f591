r"""Bring two answers into one form where words and names make the difference.

    18 dollars per day, \$18, 18^\circ        -> 18     but 5\text{ cm} is not 5\text{ m}
    5\text{ hundred}, 1.45 million            -> 500, 1450000
    5\text{ or more}, 5\text{ dozen eggs}     -> unchanged, 60     neither is 5
    \text{The area is } 12, 1\text{ in }6     -> 12, \frac{1}{6}
    \textbf{(A)}\ 12, \text{Option A}         -> A      if the gold answer is a choice
    f(t)=2t, y=2x                             -> f(x)=2x, 2x     if the gold answer is f(x)=...

Every function turns text into text, and leaves alone what does not clearly have such a form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from decimal import Decimal, localcontext

from nemo_tapo.grading.answer_sets import match_intervals
from nemo_tapo.grading.notation import WRAPPED, WRAPPER, rewrite_mixed, unwrap
from nemo_tapo.grading.units import CURRENCIES, UNITS, contradict, read_unit


def match_forms(expected: str, given: str) -> tuple[str, str] | None:
    r"""Bring two normalised answers into one form. Return None if they name different units.

    >>> match_forms("18", "18 dollars per day"), match_forms("A", r"\textbf{(A)}\ 12")
    (('18', '18'), ('A', 'A'))
    >>> match_forms(r"5\text{ cm}", r"5\text{ m}") is None
    True
    """
    given = _choose_letter(expected, given)
    gold, answer = _read_quantity(expected), _read_quantity(given)
    if contradict(gold.unit, answer.unit):
        return None
    expected, given = _match_factors(gold, answer)
    if ":" in expected:
        given = _TO.sub(":", given)
    return match_intervals(*_match_heads(expected, given))


def drop_unit(text: str) -> str:
    r"""Return a normalised answer without its unit.

    >>> drop_unit(r"28\text{ cm}^2"), drop_unit(r"28\text{ or more}")
    ('28', '28\\text{ or more}')
    """
    return _read_quantity(text).text


# ------------------------------------------------------------------------------ words before an answer, choices

_LEAD = re.compile(
    r"(?:\\text\s*\{\s*LEAD\s*\}|LEAD(?= ))\s*(?=.*[^ .])".replace(
        "LEAD", r"(?i:(?:the )?(?:final )?answer(?: is:?|:)|答案(?:是|为|:))"
    )
)
_SUBJECT = r"[Tt]he ((?:[a-zA-Z]+ ){1,6}?)(?:is|are|was|equals)(?: equal to)?:?"
_STATEMENT = re.compile(rf"(?:\\text\s*\{{\s*{_SUBJECT}\s*\}}|{_SUBJECT} )\s*(?=[-+0-9\\(\[.]|[a-zA-Z](?![a-zA-Z]))")
# Words with which the number that follows is not that of the question.
_CHANGES = frozenset(
    "square squared cube cubed root half third quarter double twice triple thrice negative opposite inverse reciprocal"
    " log logarithm sine cosine tangent complement wrong false incorrect not no never reverse rest other".split()
)
_ODDS = re.compile("([0-9]+) (?:in|out of) ([0-9]+)")
_TO = re.compile(rf"\s*{WRAPPER}\{{\s*to\s*\}}\s*|\s+to\s+")
_CHOICE = re.compile(r"\(?[A-E]\)?")
_CHOSEN = re.compile(r"(?:(?i:option|choice):? )?(?:\(([A-E])\)|([A-E])(?:\)|[.:] |$))\s*(.*)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?<![a-zA-Z])(?:[A-E](?![a-zA-Z])|\([A-Za-z]\))")
# Behind a choice: that it is wrong, or that another one may be right as well. The text of a choice itself may be
# `none of these`, `not enough information` or `positive or zero`.
_DENIAL = re.compile(
    r"(?i)^\W*(?:it )?(?:is |was )?(?:surely |clearly |certainly )?(?:"
    r"(?:not|never)(?: (?:correct|right|true|valid|the|it|an?)\b|\W*$)|no\b\W*(?:,|$)"
    r"|(?:wrong|false|incorrect|invalid|impossible|excluded|rejected|eliminated)\b)"
    r"|\b(?:and|or|nor|unless|but|except) (?:none|all|any|(?:the )?others?|both|neither|not|\(?[a-z]\)?(?![a-z]))"
)


def strip_lead(text: str) -> str:
    r"""Remove the words that introduce an answer, and write "1 in 6" as a fraction.

    >>> strip_lead(r"\text{Answer: } 5"), strip_lead(r"\text{The area is } 12"), strip_lead(r"1\text{ in }6")
    ('5', '12', '\\frac{1}{6}')
    >>> strip_lead("The square of the number is 12")
    'The square of the number is 12'
    """
    whole = WRAPPED.fullmatch(text)
    text = whole[1].strip() if whole and _STATEMENT.match(whole[1]) else _LEAD.sub("", text)
    match = _STATEMENT.match(text)
    if match and not _CHANGES & set((match[1] or match[2]).lower().split()):
        text = text[match.end() :]
    odds = _ODDS.fullmatch(unwrap(text))
    return rf"\frac{{{odds[1]}}}{{{odds[2]}}}" if odds else text


def _choose_letter(expected: str, given: str) -> str:
    r"""Return the letter that an answer chooses, if the gold answer is one; else the answer.

    >>> _choose_letter("(D)", r"\text{Option D}"), _choose_letter("A", "(A) and (B)")
    ('D', '(A) and (B)')
    """
    if not _CHOICE.fullmatch(unwrap(expected)):
        return given
    chosen = _CHOSEN.fullmatch(unwrap(given))
    if not chosen or _OTHER_CHOICE.search(chosen[3]) or _DENIAL.search(chosen[3]):
        return given
    return chosen[1] or chosen[2]


# ------------------------------------------------------------------------------ units, thousands, dozens

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:(?<=[0-9])|\.[0-9]+)"
_FRACTION = r"\\[dt]?frac(?:\{[0-9]+\}\{[0-9]+\}|[0-9][0-9])"
_NUMBER = rf"[+-]?(?:{_DECIMAL}(?:(?: [0-9]+)?/[0-9]+| ?{_FRACTION})?|{_FRACTION})"
_PHRASE = r"[a-zA-Z\u4e00-\u9fff€£₹][^\\]{0,100}"
_AMOUNT = re.compile(rf"({_NUMBER})( ?)({_PHRASE}|\\\$)")
_CURRENCY = "|".join(re.escape(name) for name in sorted(CURRENCIES, key=len, reverse=True))
_PRICE = re.compile(rf"([+-]?)({_CURRENCY}) ?([+-]?{_NUMBER}(?![0-9]).*)")
_ANGLE = re.compile(rf"(.+?)\s*\^\s*(?:\\circ|\{{\s*\\circ\s*\}})\s*(?:(?:{WRAPPER}\{{)?\s*([CF])\s*\}}?)?", re.DOTALL)
_NO_ANGLE = re.compile(r"\\(?:circ|sin|cos|tan|cot|sec|csc)(?![a-zA-Z])")
_SCALES = {None: "degree", "C": "celsius", "F": "fahrenheit"}
_QUOTIENT = re.compile(
    rf"\\[dt]?frac\s*\{{\s*{WRAPPER}\{{([^{{}}\\]*)\}}\s*\}}\s*\{{\s*{WRAPPER}\{{([^{{}}\\]*)\}}\s*\}}"
)
_POWER = r"(?:\s*\^\s*(?:\{\s*-?[0-9]\s*\}|[0-9]))?"
_UNIT = re.compile(rf"(?:(?:/|\\cdot) ?)?{WRAPPER}\{{[^{{}}\\]*\}}{_POWER}")
_BARE_TAIL = re.compile(r"(.*[0-9)}\]])(?: |(?<=\}))([a-zA-Z]{2,}(?:\^\{?[0-9]\}?)?)", re.DOTALL)
_FACTORS = {
    "dozen": 12, "hundred": 100, "thousand": 10**3, "million": 10**6, "billion": 10**9, "trillion": 10**12,
    "\u4e07": 10**4, "\u4ebf": 10**8,
}  # fmt: skip


@dataclass(frozen=True)
class Quantity:
    """An answer, what it is to be multiplied by, and the name of its unit.

    >>> _read_quantity("1.45 million dollars")
    Quantity(text='1.45', factor=1000000, unit='dollar')
    """

    text: str
    factor: int = 1
    unit: str = ""  # "" also for units that cannot contradict another


def _read_quantity(text: str) -> Quantity:
    """Split an answer into a number or expression and its unit; an answer without a clear unit is returned as it is."""
    angle = _ANGLE.fullmatch(text)
    if angle and not _NO_ANGLE.search(angle[1]):
        return Quantity(angle[1], unit=_SCALES[angle[2]])
    plain = unwrap(_QUOTIENT.sub(r"\\text{\1/\2}", text))
    plain = re.sub(r" ?\\cdot ?(?=[a-zA-Z])", "·", plain).replace(" ^", "^")
    price = _PRICE.fullmatch(plain)
    if price:
        worth = _read_quantity(price[1] + price[3])
        currency = UNITS.get(price[2], "")
        base, _, divisor = worth.unit.partition("/")
        whole = f"{currency}/{divisor}" if divisor else currency
        return Quantity(worth.text, worth.factor, whole) if base in ("", currency) else Quantity(text)
    certain = "{" in text and plain != text
    amount = _AMOUNT.fullmatch(plain)
    if amount:
        return _read_amount(amount[1], amount[3], certain, bool(amount[2])) or Quantity(text)
    body, tail = _split_tail(_QUOTIENT.sub(r"\\text{\1/\2}", text))
    if tail and body and (body[-1].isalnum() or body[-1] in ")}]!") and not WRAPPED.search(body):
        unit = read_unit(unwrap(tail).replace(r" \cdot ", "·").replace(" ^", "^"), certain=True)
        return Quantity(text) if unit is None else Quantity(body, unit=unit)
    bare = _BARE_TAIL.fullmatch(text)
    if bare and re.sub(r"\^.*", "", bare[2]) in UNITS:
        return Quantity(bare[1].strip(), unit=read_unit(bare[2], certain=True) or "")
    return Quantity(text)


def _split_tail(text: str) -> tuple[str, str]:
    r"""Split a text before the words in \text{} at its end.

    >>> _split_tail(r"2\sqrt{3}\text{ m}/\text{s}^2")
    ('2\\sqrt{3}', '\\text{ m}/\\text{s}^2')
    """
    start = len(text)
    for match in reversed(list(_UNIT.finditer(text))):
        if text[match.end() : start].strip():
            break
        start = match.start()
    return text[:start].strip(), text[start:]


def _read_amount(number: str, phrase: str, certain: bool, apart: bool) -> Quantity | None:
    """Return a number with the words behind it, or None if these may change it.

    `certain`: they stood in \\text{}; `apart`: there was a blank before them.
    """
    first, _, rest = phrase.partition(" ")
    if first not in _FACTORS and first[0] in ("\u4e07", "\u4ebf"):
        first, rest = phrase[0], phrase[1:]
    factor = _FACTORS.get(first, 1)
    if factor > 1 and ("/" in number or "frac" in number):
        return None
    words = rest if factor > 1 else phrase
    if not apart and not certain and factor == 1 and words.isascii() and words not in UNITS:
        return None
    unit = "" if not words else UNITS[words] if words in CURRENCIES else read_unit(words, certain)
    return None if unit is None else Quantity(rewrite_mixed(number), factor, unit)


def _match_factors(gold: Quantity, answer: Quantity) -> tuple[str, str]:
    """Return the two numbers multiplied by their "million" or "dozen", unless both have the same.

    A question may ask for the number of millions: then one of the two leaves the word out.

    >>> _match_factors(Quantity("1.45"), Quantity("1.45", 10**6)), _match_factors(Quantity("500"), Quantity("5", 100))
    (('1.45', '1.45'), ('500', '500'))
    """
    small, large = sorted((gold.factor, answer.factor))
    if small == large or (small == 1 and large >= 1000 and gold.text == answer.text):
        return gold.text, answer.text
    return _multiply(gold), _multiply(answer)


def _multiply(quantity: Quantity) -> str:
    """Return the text of a quantity multiplied by its factor."""
    if quantity.factor == 1:
        return quantity.text
    with localcontext(prec=1000):
        return f"{Decimal(quantity.text.replace(',', '')) * quantity.factor:f}"


# ------------------------------------------------------------------------------ names of functions and variables

_FUNCTION = re.compile(r"([a-zA-Z])\s*\(\s*([a-z])\s*\)\s*=\s*([^=]+)", re.DOTALL)
_CURVE = re.compile(r"y\s*=\s*([^=]+)", re.DOTALL)


def _match_heads(expected: str, given: str) -> tuple[str, str]:
    r"""Write a function with the gold answer's letter; leave `f(x)=` and `y=` out if one of each stands there.

    >>> _match_heads("f(x)=2x", "f(t)=2t"), _match_heads("y=2x+1", "f(x)=2x+1")
    (('f(x)=2x', 'f(x)=2x'), ('2x+1', '2x+1'))
    """
    gold, answer = _FUNCTION.fullmatch(expected), _FUNCTION.fullmatch(given)
    if gold and answer and gold[1] == answer[1] and gold[2] != answer[2] and not _has_letter(answer[3], gold[2]):
        return expected, f"{gold[1]}({gold[2]})={_rename(answer[3], answer[2], gold[2])}"
    curve = _CURVE.fullmatch(expected) if answer else _CURVE.fullmatch(given) if gold else None
    if curve and (gold or answer) and not (gold and answer):
        function = gold or answer
        assert function is not None
        if function[2] != "y" and not _has_letter(function[3] + curve[1], "y"):
            return (gold[3], curve[1]) if gold else (curve[1], function[3])
    return expected, given


def _has_letter(text: str, letter: str) -> bool:
    """Tell whether a letter stands in a formula, other than in the name of a command."""
    return letter in re.sub(r"\\[a-zA-Z]+", "", text)


def _rename(text: str, old: str, new: str) -> str:
    r"""Replace a letter of a formula, but not in the names of commands.

    >>> _rename(r"\tan t", "t", "x")
    '\\tan x'
    """
    return re.sub(rf"(\\[a-zA-Z]+)|{old}", lambda m: m[1] or new, text)
