r"""Turn a field of a row into text: numbers exactly, and whatever is no usable text with the reason.

Two faults come from the way in which a file was written:

- a table's empty cell becomes the number NaN, or the text "nan" or "None", when it is printed;
- `\frac` written with one backslash in JSON is a form feed and "rac"; JSON wants `\\frac`.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass
from decimal import Decimal, InvalidOperation
from typing import Any, Self

LONGEST_TEXT = 100_000  # characters of a question or an answer; no person writes a longer problem
LONGEST_SHOWN = 40  # characters of a number in a message
MISSING, BLANK = "missing", "it is blank"

# What Python, pandas and NumPy print for a value that is not there and, in fields that may be numbers, for a number too
# large for a float. `none` and `infinity` are not among them: these are answers that people write.
_PRINTED_GAPS = frozenset("nan NaN NAN None null NULL <NA> NaT".split())
_PRINTED_INFINITIES = frozenset("inf -inf +inf".split())

# Escapes of JSON and Python that are also the beginning of LaTeX commands: the letter, and the name of the character.
_ESCAPES = {
    "\a": ("a", "bell"),
    "\b": ("b", "backspace"),
    "\t": ("t", "tab"),
    "\n": ("n", "line feed"),
    "\v": ("v", "vertical tab"),
    "\f": ("f", "form feed"),
    "\r": ("r", "carriage return"),
}
# White space is in order before most letters, so there the rest of a command has to follow. The rests that may begin a
# line or a cell (`u = 5`, `an apple`) count in a short field alone, where a page break (form feed) is out of order too.
_RESTS = {
    "\t": "imes heta ext extbf extit extrm exttt anh au frac ilde riangle herefore",
    "\n": "eq abla eg otin mid subseteq",
    "\v": "ec ee dots arphi arepsilon artheta arnothing",
    "\f": "rac orall box ramebox",
    "\r": "ight ightarrow ho floor ceil",
}
_RESTS_IN_SHORT_FIELDS = {"\t": "an o op", "\n": "u e i ot", "\r": "angle m"}


def _match_lost_backslash(short: bool) -> re.Pattern[str]:
    """Return the pattern of a control character, with the letters after it, that was the beginning of a command."""
    alternatives = [r"[\a\b\v\f][a-zA-Z]+" if short else r"[\a\b][a-zA-Z]+"]
    for blank, rests in _RESTS.items():
        more = _RESTS_IN_SHORT_FIELDS.get(blank, "") if short else ""
        alternatives.append(f"{blank}(?:{'|'.join(f'{rests} {more}'.split())})(?![a-zA-Z])")
    return re.compile("|".join(alternatives))


_LOST_BACKSLASH = {short: _match_lost_backslash(short) for short in (True, False)}


@dataclass(frozen=True)
class FieldFault:
    """Why a field is not usable as text.

    >>> parse_text(float("nan"))
    FieldFault(reason='missing', detail='it is the number nan')
    """

    reason: str  # MISSING, "not_text", "too_long", "not_unicode" or "lost_backslash"
    detail: str = ""  # for a person


class WrittenFloat(float):
    """A float as any other, with the digits that were written for it, of which a float may keep fewer.

    >>> number = WrittenFloat("0.10000000000000000001")
    >>> number == 0.1, number.written
    (True, '0.10000000000000000001')
    """

    __slots__ = ("written",)

    def __new__(cls, written: str | float) -> Self:
        """Read a float; without its digits, which the state brings, where it is unpickled."""
        return super().__new__(cls, written)

    def __init__(self, written: str | float) -> None:
        self.written = str(written)


def parse_text(value: Any, numbers: bool = True, short: bool = True) -> str | FieldFault:
    r"""Return the text of a field, or why it has none.

    numbers: whether a number is usable too. short: whether the field is an answer or a name, and no prose.

    >>> parse_text(1e-05), parse_text("  "), parse_text([1])
    ('0.00001', FieldFault(reason='missing', detail='it is blank'), FieldFault(reason='not_text', detail='list'))
    >>> parse_text("2\frac{1}{2}")
    FieldFault(reason='lost_backslash', detail="a form feed and 'rac', where \\frac was meant; in JSON it is \\\\frac")
    """
    if value is None:
        return FieldFault(MISSING)
    if isinstance(value, (int, float, Decimal)) and not isinstance(value, bool):
        if not isinstance(value, int) and not math.isfinite(value):  # an empty cell in a table, or an overflow
            return FieldFault(MISSING, f"it is the number {float(value)}")
        if isinstance(value, WrittenFloat) and not _is_short_enough(value.written):
            return FieldFault("too_long", value.written[:LONGEST_SHOWN])
        return format_number(value) if numbers else FieldFault("not_text", type(value).__name__)
    if not isinstance(value, str):
        return FieldFault("not_text", type(value).__name__)
    return _find_text_fault(value, numbers, short) or value


def _find_text_fault(text: str, numbers: bool, short: bool) -> FieldFault | None:
    """Return why a text is not usable, or None; `numbers` and `short` as in `parse_text`."""
    if not text.strip():
        return FieldFault(MISSING, BLANK)
    if len(text) > LONGEST_TEXT:
        return FieldFault("too_long", f"{len(text)} characters")
    if text.strip() in _PRINTED_GAPS or (numbers and text.strip() in _PRINTED_INFINITIES):
        return FieldFault(MISSING, f"it is the text '{text.strip()}'")
    if any("\ud800" <= character <= "\udfff" for character in text):  # a lone surrogate, from a JSON escape
        return FieldFault("not_unicode")
    lost = _LOST_BACKSLASH[short].search(text)
    if lost is None:
        return None
    letter, name = _ESCAPES[lost[0][0]]
    command, rest = f"\\{letter}{lost[0][1:]}", lost[0][1:]
    return FieldFault("lost_backslash", f"a {name} and '{rest}', where {command} was meant; in JSON it is \\{command}")


def _is_short_enough(written: str) -> bool:
    """Return whether a number, written without an exponent, has at most LONGEST_TEXT digits: 1e-999999999 has not."""
    try:
        exponent = Decimal(written).as_tuple().exponent
    except InvalidOperation:  # an exponent that even Decimal does not have
        return False
    return isinstance(exponent, int) and abs(exponent) <= LONGEST_TEXT


def format_number(value: int | float | Decimal) -> str:
    """Return a finite number in decimal digits, exactly as it was written, without exponent and closing zeros.

    A float stands for the shortest decimal number that it is the nearest float of: so 1e23 is 10^23 here; one that was
    read from JSON stands for its digits. A table's
    column with 72 and 0.5 stores 72 as 72.0; that becomes 72 again.

    >>> [format_number(value) for value in (72.0, 0.5, 1e-05, 1e+23, -0.0, 10**20)]
    ['72', '0.5', '0.00001', '100000000000000000000000', '0', '100000000000000000000']
    """
    if isinstance(value, WrittenFloat):
        number = Decimal(value.written)
    else:
        number = Decimal(repr(float(value))) if isinstance(value, float) else Decimal(value)
    digits = f"{number:f}"
    digits = digits.rstrip("0").rstrip(".") if "." in digits else digits
    return "0" if digits == "-0" else digits
