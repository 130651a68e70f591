r"""Compare answers that are no mathematics; math-verify would read letters as products and times as quotients.

    Amy, HTH, \text{even}, \angle ABC     the same letters in the same order
    4:30, 4:30 \text{ p.m.}, 6 p.m.       the same time
    2023-12-10, 6/3/2024                  the same date, part by part
    52_{8}                                the same digits in the same base
    x \equiv 3 \pmod{7}                   the same residue
    3\text{ h } 20\text{ min}, 7^\circ30' the same amounts of the same units

`compare_directly` is asked first, for whole answers and for the elements of lists.
"""

from __future__ import annotations

import re
from decimal import Decimal

from nemo_tapo.grading.answer_sets import may_be_number
from nemo_tapo.grading.normal import parse_integer, strip_layout
from nemo_tapo.grading.notation import WRAPPED, unwrap
from nemo_tapo.grading.units import UNITS


def compare_directly(expected: str, given: str) -> tuple[bool, str] | None:
    """Return whether two answers are equal, and how that was found, if it takes no algebra; else None.

    Different texts may still have the same value, so they need algebra.

    >>> compare_directly("5", "5.0"), compare_directly("Amy", "May"), compare_directly("xy", "yx")
    ((True, 'integers'), (False, 'words'), None)
    """
    number, value = parse_integer(expected), parse_integer(given)
    if number is not None and value is not None and (number == value or not _may_be_lists(expected, given)):
        return number == value, "integers"
    if strip_layout(given) and strip_layout(expected) == strip_layout(given):
        return True, "same_text"
    for compare in COMPARISONS:
        same = compare(expected, given)
        if same is not None:
            return same, "words"
    return None


def _may_be_lists(expected: str, given: str) -> bool:
    """Tell whether both may be lists of numbers as well as numbers: `100,200` and `200,100`."""
    return may_be_number(expected) and may_be_number(given)


def is_words(text: str) -> bool:
    r"""Tell whether a gold answer is words, a time or a residue, which `compare_directly` always decides.

    >>> is_words("4:30 p.m"), is_words(r"x \equiv 3 \pmod{7}"), is_words(r"\text{no solution}"), is_words("x+3")
    (True, True, True, False)
    """
    settled = (_read_time(text), _DATE.fullmatch(text), _RESIDUE.fullmatch(text))
    return any(found is not None for found in settled) or _read_words(text)[1] == CERTAIN


# ------------------------------------------------------------------------------ words

NONE, POSSIBLE, CERTAIN = 0, 1, 2  # how certain it is that a text is words and no product of variables
_NAME = re.compile(
    r"\\(angle|triangle|overline|overrightarrow|widehat|odot)\s*(?:\{\s*([A-Z ]+)\}|([A-Z](?:\s*[A-Z])*))"
)
_UNDIRECTED = frozenset(("angle", "overline", "widehat"))  # angle ABC is angle CBA
_QUOTES = "\"'`"
_PLAIN, _WORDED = re.compile(r"[A-Za-z0-9 ]*"), re.compile(r"[A-Za-z0-9 .'&-]*")
_LAYOUT = re.compile(r"[ '&]|-(?![0-9])|(?<![0-9])\.|\.(?![0-9])")
_ARTICLE = re.compile(r"(?:a|an|the) (?=[a-z]{2})")
_FIRST_ARTICLE = re.compile(r"(?i)^(?:a|an|the) (?=[a-z]{2})")
_SHORT = frozenset("a an as at be by do go he if in is it me my no of on or so to up us we".split())
# Words so short that their letters could be variables: nobody writes a product in this order.
_COMMON = frozenset(
    "yes no one two six ten odd red tan cat dog cow pig hen fox bee net act top all any few far low hot wet dry old new"
    " big his her him mom dad boy son day sun mon tue wed thu fri sat jan feb apr jun jul aug sep oct nov dec".split()
)
_FUNCTION = re.compile(r"(?:arc)?(?:sin|cos|tan|cot|sec|csc|log|ln|exp|sqrt|lim|max|min|gcd|lcm|mod)h?[a-z]?")


def _compare_words(expected: str, given: str) -> bool | None:
    """Compare words letter by letter, whatever their case. A gold answer that is certainly words equals nothing else.

    >>> _compare_words("Amy", "May"), _compare_words(r"\\text{Yes}", "yes"), _compare_words("AB", r"A \\cdot B")
    (False, True, None)
    """
    (gold, certainty), (answer, other) = _read_words(expected), _read_words(given)
    if gold and gold == answer and (certainty or other):
        return True if _may_differ_in_case(expected, given) else False if certainty else None
    return False if certainty == CERTAIN or (certainty and other) else None


def _may_differ_in_case(expected: str, given: str) -> bool:
    """Tell whether the case of letters makes no difference: in `Yes` and `yes`, not in `AB` and `ab`, `Aa` and `AA`.

    >>> _may_differ_in_case("Friday", "friday"), _may_differ_in_case("Aa", "AA"), _may_differ_in_case("Co", "CO")
    (True, False, False)
    """
    runs, others = (re.findall("[A-Za-z]+", _FIRST_ARTICLE.sub("", unwrap(text))) for text in (expected, given))
    if len(runs) != len(others):
        return "".join(runs) == "".join(others)
    return all(run == other or _is_word(run, other) for run, other in zip(runs, others, strict=True))


def _is_word(run: str, other: str) -> bool:
    """Tell whether two runs of the same letters are a word and not letters of their own, as a genotype's are."""
    usual = all(text in (text.lower(), text.upper(), text.capitalize()) for text in (run, other))
    return len(run) > 4 or (usual and (len(run) > 2 or run.lower() in _SHORT))


def _read_words(text: str) -> tuple[str, int]:
    r"""Return the letters and digits of a text that is words, in small letters, and how certain it is that it is.

    `xy` and `3x` are products. `ABC`, `Amy` and `even` are words, and so is what stands in \text{}. `AB` and `3A` may
    be either.

    >>> _read_words("Amy"), _read_words("3A"), _read_words("xy"), _read_words(r"\angle CBA"), _read_words("x+y")
    (('amy', 2), ('3a', 1), ('xy', 0), ('angle ABC', 2), ('', 0))
    """
    if name := _NAME.fullmatch(text):
        points = (name[2] or name[3]).replace(" ", "")
        return f"{name[1]} {min(points, points[::-1]) if name[1] in _UNDIRECTED else points}", CERTAIN
    plain = unwrap(text)
    quoted = plain[:1] in _QUOTES and plain[-1:] in _QUOTES and plain.strip(_QUOTES) != ""
    plain = plain.strip(_QUOTES) if quoted else plain
    wrapped = not re.search("[A-Za-z]", WRAPPED.sub("", text)) or quoted
    runs = re.findall("[A-Za-z]+", plain)
    if not (_WORDED if wrapped else _PLAIN).fullmatch(plain) or {"and", "or"} & set(runs):  # a list is split first
        return "", NONE
    certainty = CERTAIN if wrapped and sum(map(len, runs)) > 1 else _judge(plain, runs)
    return _LAYOUT.sub("", _ARTICLE.sub("", plain.lower())), certainty


def _judge(plain: str, runs: list[str]) -> int:
    """Return how certain it is that bare letters are words."""
    letters = sum(map(len, runs))
    if any(map(_FUNCTION.fullmatch, runs)):
        return NONE
    if plain.lower() == plain:
        if runs and all(run in _COMMON for run in runs) and plain.replace(" ", "").isalpha():
            return CERTAIN
        return NONE if not any(len(run) > 3 for run in runs) else POSSIBLE if re.search("[0-9]", plain) else CERTAIN
    digits = re.search("[0-9]", plain) is not None
    return CERTAIN if letters > 2 and not digits else POSSIBLE if letters > 1 or digits else NONE


# ------------------------------------------------------------------------------ times

_TIME = re.compile(r"(?i)([0-9]{1,2}):([0-9]{2})(?::([0-9]{2}))?(?: ?([ap])\.? ?m\.?)?|([0-9]{1,2}) ?([ap])\.? ?m\.?")


def _compare_times(expected: str, given: str) -> bool | None:
    """Compare times of day or durations. A gold answer such as 4:30 is taken as a time, 3:2 as a ratio.

    >>> _compare_times("4:30", "2:15"), _compare_times("4:30 p.m.", "16:30"), _compare_times("3:2", "6:4")
    (False, True, None)
    """
    gold, answer = _read_time(expected), _read_time(given)
    if gold is None:
        return None
    if answer is None:
        return False
    if gold[1] and answer[1]:
        return _count_from_midnight(*gold) == _count_from_midnight(*answer)
    return gold[0] == answer[0] or _count_from_midnight(*gold) == _count_from_midnight(*answer)


def _read_time(text: str) -> tuple[tuple[int, int, int], str] | None:
    """Return hours, minutes and seconds as written, and "a", "p" or "" for the half of the day."""
    match = _TIME.fullmatch(unwrap(text))
    if match is None:
        return None
    hours, minutes, seconds = int(match[1] or match[5]), int(match[2] or 0), int(match[3] or 0)
    half = (match[4] or match[6] or "").lower()
    fits = hours <= (12 if half else 24) and minutes < 60 and seconds < 60
    return ((hours, minutes, seconds), half) if fits else None


def _count_from_midnight(clock: tuple[int, int, int], half: str) -> tuple[int, int, int]:
    """Return a time with its hours counted from midnight; as written where that is not known."""
    hours, minutes, seconds = clock
    return (hours % 12 + 12 * (half == "p"), minutes, seconds) if half else clock


# ------------------------------------------------------------------------------ dates

_DATE = re.compile(r"([0-9]{4})-([0-9]{1,2})-([0-9]{1,2})|([0-9]{1,2})/([0-9]{1,2})/([0-9]{4})")


def _compare_dates(expected: str, given: str) -> bool | None:
    """Compare dates part by part, as they are written: they are no differences and quotients.

    >>> _compare_dates("2023-12-10", "2023-10-12"), _compare_dates("6/3/2024", "06/03/2024"), _compare_dates("5", "5")
    (False, True, None)
    """
    gold, answer = (
        match and [int(part) for part in match.groups("-1")] for match in map(_DATE.fullmatch, (expected, given))
    )
    return None if gold is None else gold == answer


# ------------------------------------------------------------------------------ bases, residues, amounts

_BASED = re.compile(r"([0-9A-Fa-f]+)_\{([0-9]+)\}")
_RESIDUE = re.compile(r"(?:([a-zA-Z])\s*\\equiv\s*)?([^=\\]+?)\s*\\pmod\{([^{}]+)\}")
_AMOUNT = re.compile(r"([0-9]+(?:\.[0-9]+)?) ?([a-zA-Z]+)\.?(?:,? and|,)? ?")
_SIGNS = (
    (re.compile(r"\s*\^\s*(?:\\circ|\{\s*\\circ\s*\})"), " deg "),
    (re.compile("''"), " in "),
    (re.compile("'"), " ft "),
)


def _compare_based(expected: str, given: str) -> bool | None:
    """Compare numbers in a base. Digits without one stand for the gold answer's base, a plain gold answer for ten.

    >>> _compare_based("52_{8}", "52"), _compare_based("42", "52_{8}"), _compare_based("52", "52_{8}")
    (True, True, False)
    """
    gold, answer = (
        match if match and _is_number(*match.groups()) else None for match in map(_BASED.fullmatch, (expected, given))
    )
    if gold:
        digits, base = answer.groups() if answer else (given, gold[2])
        return base == gold[2] and digits.lstrip("0").upper() == gold[1].lstrip("0").upper()
    number = parse_integer(expected)
    if answer is None or number is None:
        return None
    try:
        return int(answer[1], int(answer[2])) == number
    except ValueError:  # not digits of that base
        return False


def _is_number(digits: str, base: str) -> bool:
    """Tell whether these are digits of that base, and no variable with an index.

    >>> _is_number("52", "8"), _is_number("a", "10"), _is_number("F", "12"), _is_number("FF", "16")
    (True, False, False, True)
    """
    if not 2 <= int(base) <= 36 or any(int(digit, 36) >= int(base) for digit in digits):
        return False
    return any(map(str.isdigit, digits)) or (len(digits) > 1 and digits.isupper())


def _compare_residues(expected: str, given: str) -> bool | None:
    r"""Compare residues of the same modulus; a plain gold answer with the residue as it is written.

    >>> _compare_residues(r"x \equiv 3 \pmod{7}", r"-4 \pmod{7}"), _compare_residues("3", r"3 \pmod{7}")
    (True, True)
    """
    gold, answer = _RESIDUE.fullmatch(expected), _RESIDUE.fullmatch(given)
    if gold is None:
        number = parse_integer(expected)
        return None if answer is None or number is None else parse_integer(answer[2]) == number
    if answer is None or (gold[1] and answer[1] and gold[1] != answer[1]) or gold[3] != answer[3]:
        return False
    a, b, modulus = parse_integer(gold[2]), parse_integer(answer[2]), parse_integer(gold[3])
    if a is None or b is None or not modulus:
        return strip_layout(gold[2]) == strip_layout(answer[2])
    return (a - b) % modulus == 0


def _compare_amounts(expected: str, given: str) -> bool | None:
    """Compare amounts such as 3 h 20 min, in the units that stand there.

    >>> _compare_amounts("3 h 20 min", "3 hours and 20 minutes"), _compare_amounts("200", "3 h 20 min")
    (True, False)
    """
    gold, answer = _read_amounts(expected), _read_amounts(given)
    return None if gold is None and answer is None else gold == answer


def _read_amounts(text: str) -> list[tuple[Decimal, str]] | None:
    """Return two or more numbers with their units, or None."""
    for pattern, word in _SIGNS:
        text = pattern.sub(word, text)
    plain = unwrap(text)
    amounts = list(_AMOUNT.finditer(plain))
    units = [UNITS.get(amount[2]) for amount in amounts]
    if len(amounts) < 2 or None in units or "".join(amount[0] for amount in amounts) != plain:
        return None
    return [(Decimal(amount[1]), unit or "") for amount, unit in zip(amounts, units, strict=True)]


COMPARISONS = (_compare_based, _compare_times, _compare_dates, _compare_residues, _compare_amounts, _compare_words)
