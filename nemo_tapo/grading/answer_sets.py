r"""Split lists, tuples and sets, and write sets of numbers in one way.

    1, -2   1 \text{ and } -2   \{1,-2\}   -> a list: its order does not count, but how often an element stands there
    (3, \frac{\pi}{2})                     -> a tuple
    \frac{-1\pm\sqrt5}{2}                  -> \frac{-1+\sqrt5}{2},\frac{-1-\sqrt5}{2}  math-verify: \pm in a sum only
    \{x \mid -2 \le x < 1\}                -> -2 \le x < 1
    x \le -1 \text{ or } x \ge 1           -> (-\infty,-1]\cup[1,\infty)     if the other answer is an interval

Every function that rewrites text leaves alone what does not clearly have such a form.
"""

from __future__ import annotations

import re
from dataclasses import dataclass

from nemo_tapo.grading.notation import WRAPPED

_TOKEN = re.compile(
    r"(?P<separator>\s*[,;]?\s*(?:\\text\s*\{\s*(?:and|or)\s*\}|(?<![a-zA-Z\\])(?:and|or)(?![a-zA-Z]))\s*|[,;])"
    r"|(?P<open>\\(?:\{|(?:begin|lbrace|langle|lfloor|lceil)(?![a-zA-Z]))|[(\[{])"
    r"|(?P<close>\\(?:\}|(?:end|rbrace|rangle|rfloor|rceil)(?![a-zA-Z]))|[)\]}])"
    r"|\\[a-zA-Z]+|.",
    re.DOTALL,
)
_LAYOUT = re.compile(r"\\(?:left|right)(?![a-zA-Z])\s*")

# ------------------------------------------------------------------------------ lists, tuples, sets

_LETTER = r"[a-zA-Z](?:_(?:[0-9a-z]|\{[0-9a-z]+\}))?"
_NAME = re.compile(
    rf"((?:{_LETTER}|\(\s*{_LETTER}(?:\s*,\s*{_LETTER})*\s*\))\s*(?:=|\\in(?![a-zA-Z])))\s*(?=\\\{{|[(\[])"
)
_BRACKETS = re.compile(r"(\\\{|\\lbrace(?![a-zA-Z])|[(\[])(.*)(\\\}|\\rbrace|[)\]])", re.DOTALL)
_GROUPED = re.compile(r"[1-9][0-9]{0,2}(?:,[0-9]{3})+")


@dataclass(frozen=True)
class Collection:
    """Several answers in one: a list whose order does not count, or what stands in order between two brackets.

    >>> read_collection("1,2 or 3"), read_collection("(1,2]")
    (Collection(kind='list', items=('1', '2', '3')), Collection(kind='(]', items=('1', '2')))
    """

    kind: str  # "list", or the two brackets
    items: tuple[str, ...]


def split_list(text: str) -> list[str]:
    r"""Split a list at the commas, semicolons, "and" and "or" outside all brackets.

    >>> split_list(r"(1,2), \text{ and } (3,4); 5 or 6")
    ['(1,2)', '(3,4)', '5', '6']
    """
    parts, deep = [""], 0
    for token in _TOKEN.finditer(text):
        deep += 1 if token["open"] else -1 if token["close"] else 0
        if token["separator"] and deep <= 0:
            parts.append("")
        else:
            parts[-1] += token[0]
    return [part.strip() for part in parts]


def read_collection(text: str) -> Collection | None:
    r"""Return the elements of a list, a set, a tuple or an interval of two or more elements, or None.

    A name before it, as in `x \in \{1,2\}` and `(x,y)=(1,2)`, is left out.

    >>> read_collection(r"x \in \{1,2,2\}")
    Collection(kind='list', items=('1', '2', '2'))
    >>> read_collection(r"(1,2)\cup(3,4)"), read_collection(r"f(1,2)"), read_collection("5")
    (None, None, None)
    """
    text = _LAYOUT.sub("", _unwrap_whole(text)).strip()
    parts = split_list(text)
    if len(parts) == 1:
        text = text[name.end() :] if (name := _NAME.match(text)) else text
        match = _BRACKETS.fullmatch(text)
        if match is None or not _is_one_group(text):
            return None
        kind, text = "list" if match[1][0] == "\\" else match[1] + match[3], match[2]
        parts = split_list(text)
        kind = "()" if kind == "[]" and len(parts) > 2 else kind
    else:
        kind = "list"
    return Collection(kind, tuple(_join_thousands(parts, text))) if len(parts) > 1 and all(parts) else None


def may_be_number(text: str) -> bool:
    """Tell whether a list is rather one integer with thousands: `100,200`, but not `100, 200` or `100,20`.

    >>> may_be_number("100,200"), may_be_number("100, 200"), may_be_number("(100,200)")
    (True, False, False)
    """
    return _GROUPED.fullmatch(text) is not None


def _join_thousands(parts: list[str], text: str) -> list[str]:
    """Join the thousands in `1,000, 2,000`: a list that has blanks behind its other commas.

    >>> _join_thousands(["1", "000", "2", "000"], "1,000, 2,000"), _join_thousands(["100", "200"], "100,200")
    (['1,000', '2,000'], ['100', '200'])
    """
    if not re.search(r"[,;] ", text) or not _GROUPED.search(text):
        return parts
    return [part.replace("\0", ",") for part in split_list(re.sub(r"(?<=[0-9]),(?=[0-9]{3}(?![0-9]))", "\0", text))]


def _unwrap_whole(text: str) -> str:
    r"""Return the content of a text that is one `\text{...}` as a whole."""
    match = WRAPPED.fullmatch(text.strip())
    return match[1] if match else text


def _is_one_group(text: str) -> bool:
    """Tell whether the first bracket of a text is closed by its last token."""
    deep = 0
    for token in _TOKEN.finditer(text):
        deep += 1 if token["open"] else -1 if token["close"] else 0
        if deep == 0:
            return token.end() == len(text)
    return False


# ------------------------------------------------------------------------------ plus or minus

_SIGNS = re.compile(r"\\(pm|mp)(?![a-zA-Z])\s*")
_SET = re.compile(r"(?:\\left\s*)?\\\{(.*?)(?:\\right\s*)?\\\}", re.DOTALL)
_UNIT_LAST = re.compile(r"(.*?)(\\(?:text|mathrm)\s*\{[^{}]*\})?", re.DOTALL)


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
    for element in split_list(body):
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


# ------------------------------------------------------------------------------ sets of real numbers

_BY_CONDITION = re.compile(
    r"([a-zA-Z])(?:\s*\\in\s*\\mathbb\s*(?:R|\{R\}))?\s*(?:\\mid(?![a-zA-Z])|\||:)(.+)", re.DOTALL
)
_RELATION = re.compile(
    r"\s*(?:(?P<le>\\(?:le|leq|leqslant)(?![a-zA-Z])|<=)|(?P<ge>\\(?:ge|geq|geqslant)(?![a-zA-Z])|>=)"
    r"|(?P<lt><|\\lt(?![a-zA-Z]))|(?P<gt>>|\\gt(?![a-zA-Z]))|(?P<ne>\\neq?(?![a-zA-Z])))\s*"
)
_FLIPPED = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le", "ne": "ne"}
_EITHER = re.compile(r"\s*,?\s*(?:\\text\s*\{\s*(and|or)\s*\}|(?<![a-zA-Z\\])(and|or)(?![a-zA-Z]))\s*")
_INTERVAL = re.compile(r"[(\[][^()\[\]]*,[^()\[\]]*[)\]]")


def unwrap_set_condition(text: str) -> str:
    r"""Rewrite a set of real numbers that inequalities define as these inequalities. Return any other text unchanged.

    >>> unwrap_set_condition(r"\{x \mid x > 3\}")
    'x > 3'
    """
    group = _SET.fullmatch(text)
    match = _BY_CONDITION.fullmatch(group[1].strip()) if group else None
    if match is None or not _RELATION.search(match[2]) or re.search(r"[,:|]|\\(?:mid|in|\{)(?![a-zA-Z])", match[2]):
        return text
    return match[2].strip() if re.search(rf"(?<![a-zA-Z\\]){match[1]}(?![a-zA-Z])", match[2]) else text


def match_intervals(expected: str, given: str) -> tuple[str, str]:
    r"""Rewrite inequalities in one variable as intervals if the other answer is an interval, or has the same variable.

    >>> match_intervals(r"(-\infty,-1]\cup[1,\infty)", r"x\le -1 \text{ or } x\ge 1")
    ('(-\\infty,-1]\\cup[1,\\infty)', '(-\\infty,-1]\\cup[1,\\infty)')
    >>> match_intervals("[-2,7]", r"-2 \le x \le 7"), match_intervals("x > 5", "y > 5")
    (('[-2,7]', '[-2,7]'), ('x > 5', 'y > 5'))
    """
    gold, answer = _read_inequalities(expected), _read_inequalities(given)
    if gold and answer:
        return (gold[1], answer[1]) if gold[0] == answer[0] else (expected, given)
    if gold and (union := _read_union(given)):
        return gold[1], union
    if answer and (union := _read_union(expected)):
        return union, answer[1]
    return (union, other) if (union := _read_union(expected)) and (other := _read_union(given)) else (expected, given)


def _read_union(text: str) -> str | None:
    r"""Return an interval, or intervals joined by `\cup` or "or", as a union; None for any other text."""
    parts = re.split(r"\\cup(?![a-zA-Z])", _EITHER.sub(lambda m: r"\cup" if "or" in m.groups() else m[0], text))
    parts = [_LAYOUT.sub("", part).strip() for part in parts]
    return r"\cup".join(parts) if all(_INTERVAL.fullmatch(part) for part in parts) else None


def _read_inequalities(text: str) -> tuple[str, str] | None:
    """Return the variable and the intervals of inequalities joined by "and" or "or"; None for any other text."""
    pieces = _EITHER.split(text)
    found = [_read_inequality(piece) for piece in pieces[::3]]
    joints = {a or b for a, b in zip(pieces[1::3], pieces[2::3], strict=True)}
    ranges = [one for one in found if one is not None]
    if len(ranges) < len(found) or len({variable for variable, *_ in ranges}) > 1 or len(joints) > 1:
        return None
    if "and" not in joints:
        return ranges[0][0], r"\cup".join(low + "," + high for _, low, high in ranges)
    lows = [low for _, low, _ in ranges if low != r"(-\infty"]
    highs = [high for _, _, high in ranges if high != r"\infty)"]
    if len(ranges) != 2 or len(lows) != 1 or len(highs) != 1 or "cup" in lows[0] + highs[0]:
        return None
    return ranges[0][0], lows[0] + "," + highs[0]


def _read_inequality(text: str) -> tuple[str, str, str] | None:
    r"""Return the variable and the two ends of `x < 5`, `-2 \le x < 7` or `x \ne 5`; None for any other text.

    >>> _read_inequality(r"-2 \le x < 7"), _read_inequality(r"x \ne 5")
    (('x', '[-2', '7)'), ('x', '(-\\infty', '5)\\cup(5,\\infty)'))
    """
    names = [relation.lastgroup or "" for relation in _RELATION.finditer(text)]
    sides = _RELATION.sub("\0", text.strip()).split("\0")
    if len(sides) == 3:
        variable, bounds = sides[1], [(_FLIPPED[names[0]], sides[0]), (names[1], sides[2])]
    elif len(sides) == 2 and re.fullmatch("[a-zA-Z]", sides[0]):
        variable, bounds = sides[0], [(names[0], sides[1])]
    elif len(sides) == 2:
        variable, bounds = sides[1], [(_FLIPPED[names[0]], sides[0])]
    else:
        return None
    if not re.fullmatch("[a-zA-Z]", variable):
        return None
    unfit = re.compile(rf"[=,;]|(?<![a-zA-Z\\]){variable}(?![a-zA-Z])")
    if any(not bound or unfit.search(bound) for _, bound in bounds):
        return None
    if names == ["ne"]:
        return variable, r"(-\infty", rf"{bounds[0][1]})\cup({bounds[0][1]},\infty)"
    lows = [("[" if name == "ge" else "(") + bound for name, bound in bounds if name in ("gt", "ge")]
    highs = [bound + ("]" if name == "le" else ")") for name, bound in bounds if name in ("lt", "le")]
    if len(lows) > 1 or len(highs) > 1 or len(lows) + len(highs) < len(bounds):
        return None
    return variable, (lows or [r"(-\infty"])[0], (highs or [r"\infty)"])[0]
