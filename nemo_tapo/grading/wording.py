r"""Rewrite answers that math-verify cannot parse, or parses wrongly.

    \frac{-1\pm\sqrt5}{2}    -> \frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}     it reads \pm in a sum only
    \{x \mid -2 \le x < 1\}  -> -2 \le x < 1
    18 dollars per day       -> 18          if the gold answer is a number; it reads d*o*l*l*a*r*s
    \textbf{(A)}\ 12         -> (A)         if the gold answer is a choice

Every function turns text into text, and returns a text unchanged if it does not clearly have such a form.
"""

from __future__ import annotations

import re
from decimal import Decimal

_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}\\]*)\}")

# ------------------------------------------------------------------------------ plus or minus, sets with a condition

_SIGNS = re.compile(r"\\(pm|mp)(?![a-zA-Z])\s*")
_SET = re.compile(r"(?:\\left\s*)?\\\{(.*?)(?:\\right\s*)?\\\}", re.DOTALL)
_CONJUNCTION = re.compile(r"\s*,?\s*\\text\s*\{\s*(?:and|or)\s*\}\s*|\s+(?:and|or)\s+")
_UNIT_LAST = re.compile(r"(.*?)(\\(?:text|mathrm)\s*\{[^{}]*\})?", re.DOTALL)
_BY_CONDITION = re.compile(
    r"([a-zA-Z])(?:\s*\\in\s*\\mathbb\s*(?:R|\{R\}))?\s*(?:\\mid(?![a-zA-Z])|\||:)(.+)", re.DOTALL
)
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt)(?![a-zA-Z])")


def expand_signs(text: str) -> str:
    r"""Rewrite `a\pm b` as `a+b,a-b`, for each element of a list; `\mp` takes the opposite sign.

    Several `\pm` in one element are ambiguous: they may or may not share their sign. Such a text is returned
    unchanged, unless the element also has a `\mp`, which shows that they do.

    >>> expand_signs(r"1\pm\sqrt{2}, 7")
    '1+\\sqrt{2},1-\\sqrt{2},7'
    """
    if not _SIGNS.search(text):
        return text
    group = _SET.fullmatch(text)
    body = group[1] if group and "\\{" not in group[1] else text
    elements: list[str] = []
    for element in _split_list(_CONJUNCTION.sub(",", body)):
        signs = [match[1] for match in _SIGNS.finditer(element)]
        if len(signs) > 1 and "mp" not in signs:
            return text
        elements += [_choose_sign(element, upper) for upper in (True, False)] if signs else [element]
    return ",".join(elements)


def _choose_sign(element: str, upper: bool) -> str:
    """Return an element with its upper or its lower sign; only the lower one, which comes last, keeps a unit."""
    match = _UNIT_LAST.fullmatch(element)
    assert match is not None
    text = _SIGNS.sub(lambda m: "+" if (m[1] == "pm") == upper else "-", match[1])
    return re.sub(r"(^|[=(\[{,])\s*\+", r"\1", text) + ("" if upper else match[2] or "")


def _split_list(text: str) -> list[str]:
    """Split a list at the commas outside all brackets."""
    parts, deep = [""], 0
    for character in text:
        deep += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and deep == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def unwrap_set_condition(text: str) -> str:
    r"""Rewrite a set of real numbers that inequalities define as these inequalities. Return any other text unchanged.

    >>> unwrap_set_condition(r"\{x \mid x > 3\}")
    'x > 3'
    """
    group = _SET.fullmatch(text)
    match = _BY_CONDITION.fullmatch(group[1].strip()) if group else None
    if match is None or not _INEQUALITY.search(match[2]) or re.search(r"[,:|]|\\(?:mid|in|\{)(?![a-zA-Z])", match[2]):
        return text
    return match[2].strip() if re.search(rf"(?<![a-zA-Z\\]){match[1]}(?![a-zA-Z])", match[2]) else text


# ------------------------------------------------------------------------------ units, choices

_DECIMAL = r"(?:[0-9]{1,3}(?:,[0-9]{3})+|[0-9]+)?(?:(?<=[0-9])|\.[0-9]+)"
_NUMBER = rf"[+-]?(?:\\\$ ?)?{_DECIMAL}|[+-]?\\[dt]?frac\{{-?[0-9]+\}}\{{[0-9]+\}}"
_PLAIN = re.compile(_NUMBER)
_WORD = r"[a-zA-Z]+\.?(?:\^(?:[23]|\{[23]\}))?"
_QUANTITY = re.compile(rf"({_NUMBER}) ({_WORD}(?:(?: | ?/ ?){_WORD}){{0,7}})")
_POWERS = {"thousand": 3, "million": 6, "billion": 9, "trillion": 12}
# Words of up to three letters count as units only if listed here, and the single letters only in a quotient such as
# `5 m/s`: `5 m` may be a product.
_SHORT_UNITS = frozenset(
    "mm cm dm km nm in ft yd mi sq cu mg kg lb lbs oz ml dl sec min hr hrs mph kph day per cup egg men way box"
    " bag pen hat toy cow dog cat car bus ton".split()
)
_LETTER_UNITS = frozenset("mshgLlJNWVC")
# Words that change the number before them, or weaken it.
_NOT_UNITS = frozenset(
    "and or not than to least most more less fewer over under above below between about times plus minus half halves"
    " third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundred hundreds hundredth hundredths"
    " dozen dozens thousands millions billions score percent percentage squared cubed factorial root base modulo"
    " sqrt frac sinh cosh tanh sinc alpha beta gamma delta theta lambda sigma omega infinity remainder pairs"
    " double triple twice through until from".split()
)
_CHOICE = re.compile(r"(\([A-E]\)|[A-E])")
_CHOSEN = re.compile(r"(?:\(([A-E])\)|([A-E])\)|([A-E])[.:] )\s*(.+)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?<![a-zA-Z])[A-E](?![a-zA-Z])")


def match_gold_form(expected: str, given: str) -> str:
    r"""Bring a normalised answer into the form of the gold answer, if that is a plain number or the letter of a choice.

    >>> match_gold_form("18", "18 dollars per day"), match_gold_form("A", r"\textbf{(A)}\ 12")
    ('18', 'A')
    """
    if _PLAIN.fullmatch(expected):
        return _extract_number(expected, given)
    if _CHOICE.fullmatch(_strip_wrappers(expected)):
        chosen = _CHOSEN.fullmatch(_strip_wrappers(given))
        if chosen and not _OTHER_CHOICE.search(chosen[4]):
            return chosen[1] or chosen[2] or chosen[3]
    return given


def _strip_wrappers(text: str) -> str:
    r"""Remove `\text{}` and similar commands, and reduce blanks to single ones."""
    return re.sub(r"\s+", " ", _WRAPPED.sub(r" \1 ", text)).strip()


def _extract_number(expected: str, given: str) -> str:
    """Return the number in `18 dollars per day` or `1.45 million`. Return any other text unchanged."""
    match = _QUANTITY.fullmatch(_strip_wrappers(given))
    if match is None:
        return given
    number = match[1].replace("\\$", "").replace(" ", "")
    words = re.findall(r"[a-zA-Z]+", match[2])
    factor = words[0] in _POWERS and "frac" not in number
    if not all(_is_unit(word, "/" in match[2]) for word in words[factor:]):
        return given
    if not factor or number == expected:  # a question may ask for the number of millions
        return number
    return f"{Decimal(number.replace(',', '')) * 10 ** _POWERS[words[0]]:f}"


def _is_unit(word: str, quotient: bool) -> bool:
    """Tell whether a word may be a unit of measure; `quotient`: it stands in a unit such as `m/s`."""
    known = len(word) > 3 or word in _SHORT_UNITS or (quotient and word in _LETTER_UNITS)
    return known and word.lower() not in _NOT_UNITS
