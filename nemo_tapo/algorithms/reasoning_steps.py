"""Divide a response into reasoning steps, and say which of them a reconstruction keeps.

A step is a line, or a sentence within a line: the smallest unit that can be called wrong. A Chinese or Japanese
character counts as a word, and full-width stops end a sentence without a blank.
"""

from __future__ import annotations

import re

# The characters of scripts that put no blanks between words, for a set of a pattern: kana and Chinese characters
WITHOUT_BLANKS = "\u3040-\u30ff\u3400-\u4dbf\u4e00-\u9fff\uf900-\ufaff\U00020000-\U0003ffff"
_FULL_STOPS, _CLOSING = "。！？", "”’」』）"  # noqa: RUF001  full-width marks are meant; no blank follows them
_STEP_END = re.compile(rf"[.!?](?=\s)|[{_FULL_STOPS}][{_FULL_STOPS}{_CLOSING}]*|\n|\Z")
_WORD = re.compile(rf"[{WITHOUT_BLANKS}]|[^\s\u3000-\u303f\uff00-\uff0f\uff1a-\uff20{WITHOUT_BLANKS}]+")
_LEAST_WORDS = 2  # "1." and "Wait." begin a sentence, they are none

_DASH = "[-\u2010-\u2015\u2212\uff0d]"
_MARKS = " \t\n\r\"'`$*_.…“”„‘’«»「」"  # noqa: RUF001  typographic marks are meant
_LABEL = re.compile(r"(?i)\b(?:line|step)\s*\d+\s*[:)]\s*")  # "Line 2:"


def find_step_ends(text: str) -> list[int]:
    r"""Return for each step the position behind its last character that is no white space.

    >>> find_step_ends("47+38=75\n\\boxed{75}")
    [8, 19]
    >>> find_step_ends("1. Add 2 and 3. That is 6.")
    [15, 26]
    >>> find_step_ends("我们先算。然后再算。")
    [5, 10]
    """
    ends, begin = [], 0
    for match in _STEP_END.finditer(text):
        content = text[begin : match.end()]
        whole = match.group() in ("\n", "") or len(_WORD.findall(content)) >= _LEAST_WORDS
        if whole:
            if content.strip():
                ends.append(begin + len(content.rstrip()))
            begin = match.end()
    return ends


def find_last_step(text: str) -> int:
    r"""Return where the last step of `text` begins; 0 if there are fewer than two.

    >>> find_last_step("47+38=75\n75-19=56\n")
    9
    """
    ends = find_step_ends(text)
    if len(ends) < 2:
        return 0
    rest = text[ends[-2] :]
    return ends[-2] + len(rest) - len(rest.lstrip())


def keeps_through(reconstruction: str, shared: int, end: int) -> bool:
    """Return True if a reconstruction that shares `shared` characters with the wrong response keeps its first `end`.

    A step that goes on in the reconstruction ("=7" became "=75") is another step.

    >>> keeps_through("x=7 Wait", 3, 3), keeps_through("x=75", 3, 3)
    (True, False)
    """
    if shared == end < len(reconstruction):
        return reconstruction[end].isspace() or reconstruction[:end].rstrip(_CLOSING).endswith(tuple(_FULL_STOPS))
    return shared >= end


def count_kept_steps(reconstruction: str, wrong: str, shared: int) -> int:
    r"""Count the whole steps of `wrong` that the first `shared` characters of the reconstruction keep.

    >>> count_kept_steps("47+38=75\nWait: 47+38=85", "47+38=75\n75-19=56", 9)
    1
    """
    return sum(keeps_through(reconstruction, shared, end) for end in find_step_ends(wrong))


def read_quote(analysis: str, error_quote: str) -> str | None:
    """Return the step that an analysis names as wrong; None if it names none or several.

    `error_quote`: regular expression whose group is the step (`Task.error_quote`).

    >>> read_quote("It says <error> 47+38=75 </error>.", r"(?s)<error>(.*?)</error>")
    '47+38=75'
    """
    quotes = [quote.strip() for quote in re.findall(error_quote, analysis)]
    return quotes[0] if len(quotes) == 1 and quotes[0] else None


def find_quoted_step(quote: str, wrong: str) -> int | None:
    r"""Return where in `wrong` the step ends that holds the quote's end; None if the quote is not there exactly once.

    Where the quote is not found as it stands, any white space matches any other. Where that is not found either, marks
    around the quote and a label before it are left out ("Line 2: $2+3=6$..."), and then blanks and kinds of dashes.

    >>> find_quoted_step("47+38", "47+38=75\n75-19=56")
    8
    >>> find_quoted_step("That is\n6.", "Add 2 and 3. That is  6. So 6.")
    24
    >>> find_quoted_step("'2 + 3 = 6...'", "2+3=6\n6-1=5")
    5
    """
    bare = _strip_marks(quote, with_label=_LABEL.search(wrong) is not None)
    for pattern in (re.escape(quote), _match_blanks(quote), _match_blanks(bare), _match_loosely(bare)):
        found = [match.end() for match in re.finditer(pattern, wrong)] if pattern else []
        if found:
            break
    return next((end for end in find_step_ends(wrong) if end >= found[0]), None) if len(found) == 1 else None


def _strip_marks(quote: str, with_label: bool = False) -> str:
    """Return a quote without quotation marks, emphasis, TeX's marks and full stops around it, and without a label.

    `with_label`: the response has labels of its own, by which steps differ.

    >>> _strip_marks('"Line 2: $2 + 3 = 6$..."')
    '2 + 3 = 6'
    """
    before = None
    while before != quote:
        before, quote = quote, quote.strip(_MARKS)
        if not with_label and (label := _LABEL.match(quote)):
            quote = quote[label.end() :]
        for opening, closing in ((r"\(", r"\)"), (r"\[", r"\]")):
            quote = quote.removeprefix(opening).removesuffix(closing)
    return quote


def _match_blanks(quote: str) -> str:
    return r"\s+".join(map(re.escape, quote.split()))


def _match_loosely(quote: str) -> str:
    """Return a pattern of a quote with blanks left out or added, and any dash for another; numbers are whole ones.

    >>> re.findall(_match_loosely("6 - 1=5"), "6\u22121 = 5, 6-1=55, 36-1=5")
    ['6\u22121 = 5']
    """
    pattern, before = "", ""
    for part in re.findall(r"\w+|[^\w\s]", quote):
        if before:
            pattern += r"\s+" if before[-1].isalnum() and part[0].isalnum() else r"\s*"
        pattern, before = pattern + (_DASH if re.fullmatch(_DASH, part) else re.escape(part)), part
    if quote[:1].isdigit():
        pattern = r"(?<!\d)(?<!\d[.,])" + pattern
    return pattern + r"(?![.,]?\d)" if quote[-1:].isdigit() else pattern


def find_named_step(analysis: str, wrong: str, error_quote: str) -> int | None:
    r"""Return where in `wrong` the step ends that an analysis names; None if it names none that is there once.

    >>> find_named_step("It says <error>47+38</error>.", "47+38=75\n75-19=56", r"(?s)<error>(.*?)</error>")
    8
    """
    quote = read_quote(analysis, error_quote)
    return None if quote is None else find_quoted_step(quote, wrong)
