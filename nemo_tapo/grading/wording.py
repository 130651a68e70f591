r"""What an answer means in ways of writing that math-verify does not read, or reads wrongly.

    \frac{-1\pm\sqrt5}{2}    -> \frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}     it reads \pm in a sum only
    \{x \mid -2 \le x < 1\}  -> -2 \le x < 1
    18 dollars per day       -> 18          where a number is asked for; it reads d*o*l*l*a*r*s
    \textbf{(A)}\ 12         -> (A)         where a choice is asked for

Everything here is text to text; what is not clearly of such a form is left as it is.
"""

from __future__ import annotations

import re
from decimal import Decimal

_WRAPPED = re.compile(r"\\(?:text|mathrm|textbf|mathbf|textit|mbox)\s*\{([^{}\\]*)\}")

# ------------------------------------------------------------------------------ plus or minus, sets by a condition

_SIGNS = re.compile(r"\\(pm|mp)(?![a-zA-Z])\s*")
_SET = re.compile(r"(?:\\left\s*)?\\\{(.*?)(?:\\right\s*)?\\\}", re.DOTALL)
_CONJUNCTION = re.compile(r"\s*,?\s*\\text\s*\{\s*(?:and|or)\s*\}\s*|\s+(?:and|or)\s+")
_UNIT_LAST = re.compile(r"(.*?)(\\(?:text|mathrm)\s*\{[^{}]*\})?", re.DOTALL)
_BY_CONDITION = re.compile(
    r"([a-zA-Z])(?:\s*\\in\s*\\mathbb\s*(?:R|\{R\}))?\s*(?:\\mid(?![a-zA-Z])|\||:)(.+)", re.DOTALL
)
_INEQUALITY = re.compile(r"[<>]|\\(?:le|ge|leq|geq|leqslant|geqslant|lt|gt)(?![a-zA-Z])")


def expand_signs(text: str) -> str:
    r"""`a\pm b` as `a+b,a-b`, element by element of a list; `\mp` takes the other sign.

    Of several `\pm` in one element nothing says whether they go together, so such a text is left alone, unless there
    is a `\mp` to say that they do.
    """
    if not _SIGNS.search(text):
        return text
    group = _SET.fullmatch(text)
    body = group[1] if group and "\\{" not in group[1] else text
    elements: list[str] = []
    for element in _elements(_CONJUNCTION.sub(",", body)):
        signs = [match[1] for match in _SIGNS.finditer(element)]
        if len(signs) > 1 and "mp" not in signs:
            return text
        elements += [_with_sign(element, upper) for upper in (True, False)] if signs else [element]
    return ",".join(elements)


def _with_sign(element: str, upper: bool) -> str:
    """An element with the upper or the lower of its signs; a unit behind it is said once, by the last."""
    match = _UNIT_LAST.fullmatch(element)
    assert match is not None
    text = _SIGNS.sub(lambda m: "+" if (m[1] == "pm") == upper else "-", match[1])
    return re.sub(r"(^|[=(\[{,])\s*\+", r"\1", text) + ("" if upper else match[2] or "")


def _elements(text: str) -> list[str]:
    """The parts of a list, divided at the commas outside of all brackets."""
    parts, deep = [""], 0
    for character in text:
        deep += {"(": 1, "[": 1, "{": 1, ")": -1, "]": -1, "}": -1}.get(character, 0)
        if character == "," and deep == 0:
            parts.append("")
        else:
            parts[-1] += character
    return [part.strip() for part in parts]


def condition(text: str) -> str:
    r"""`\{x \mid x > 3\}` as `x > 3`: a set of real numbers by inequalities. Every other text as it is."""
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
# Of these a unit is taken even if it is short, and one letter only in a quotient: `5 m` may be a product.
_SHORT = frozenset(
    "mm cm dm km nm in ft yd mi sq cu mg kg lb lbs oz ml dl sec min hr hrs mph kph day per cup egg men way box"
    " bag pen hat toy cow dog cat car bus ton".split()
)
_LETTERS = frozenset("mshgLlJNWVC")
# Words that change the number before them, or hedge it.
_NO_UNIT = frozenset(
    "and or not than to least most more less fewer over under above below between about times plus minus half halves"
    " third thirds quarter quarters fourth fourths fifth fifths tenth tenths hundred hundreds hundredth hundredths"
    " dozen dozens thousands millions billions score percent percentage squared cubed factorial root base modulo"
    " sqrt frac sinh cosh tanh sinc alpha beta gamma delta theta lambda sigma omega infinity remainder pairs"
    " double triple twice through until from".split()
)
_CHOICE = re.compile(r"(\([A-E]\)|[A-E])")
_CHOSEN = re.compile(r"(?:\(([A-E])\)|([A-E])\)|([A-E])[.:] )\s*(.+)", re.DOTALL)
_OTHER_CHOICE = re.compile(r"(?<![a-zA-Z])[A-E](?![a-zA-Z])")


def as_asked(expected: str, given: str) -> str:
    """A normalised answer in the form of the gold one, where that is a plain number or the letter of a choice."""
    if _PLAIN.fullmatch(expected):
        return _number(expected, given)
    if _CHOICE.fullmatch(_bare(expected)):
        chosen = _CHOSEN.fullmatch(_bare(given))
        if chosen and not _OTHER_CHOICE.search(chosen[4]):
            return chosen[1] or chosen[2] or chosen[3]
    return given


def _bare(text: str) -> str:
    r"""Without `\text{}` and the like; blanks single."""
    return re.sub(r"\s+", " ", _WRAPPED.sub(r" \1 ", text)).strip()


def _number(expected: str, given: str) -> str:
    """The number of `18 dollars per day` or `1.45 million`; the text itself if it is no number with one unit."""
    match = _QUANTITY.fullmatch(_bare(given))
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
    known = len(word) > 3 or word in _SHORT or (quotient and word in _LETTERS)
    return known and word.lower() not in _NO_UNIT
