"""Divide a response into reasoning steps, and say which of them a reconstruction keeps.

A step is a line, or a sentence within a line: the smallest unit that can be called wrong.
"""

from __future__ import annotations

import re

_STEP_END = re.compile(r"[.!?。！？](?=\s)|\n|\Z")  # noqa: RUF001  full-width marks are meant
_LEAST_WORDS = 2  # "1." and "Wait." begin a sentence, they are none
_QUOTED_ERROR = re.compile(r"<error>(.*?)</error>", re.DOTALL)


def find_step_ends(text: str) -> list[int]:
    r"""Return for each step the position behind its last character that is no white space.

    >>> find_step_ends("47+38=75\n\\boxed{75}")
    [8, 19]
    >>> find_step_ends("1. Add 2 and 3. That is 6.")
    [15, 26]
    """
    ends, begin = [], 0
    for match in _STEP_END.finditer(text):
        content = text[begin : match.end()]
        whole = match.group() in ("\n", "") or len(content.split()) >= _LEAST_WORDS
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
        return reconstruction[end].isspace()
    return shared >= end


def count_kept_steps(reconstruction: str, wrong: str, shared: int) -> int:
    r"""Count the whole steps of `wrong` that the first `shared` characters of the reconstruction keep.

    >>> count_kept_steps("47+38=75\nWait: 47+38=85", "47+38=75\n75-19=56", 9)
    1
    """
    return sum(keeps_through(reconstruction, shared, end) for end in find_step_ends(wrong))


def find_quoted_error(analysis: str, wrong: str) -> int | None:
    r"""Return where in `wrong` the step ends that the analysis quotes between <error> and </error>.

    None without a quote, or if it is not found exactly once.

    >>> find_quoted_error("It says <error>47+38=75</error>.", "47+38=75\n75-19=56")
    8
    """
    quotes = [quote.strip() for quote in _QUOTED_ERROR.findall(analysis)]
    if len(quotes) != 1 or not quotes[0] or wrong.count(quotes[0]) != 1:
        return None
    return wrong.index(quotes[0]) + len(quotes[0])
