"""Tell what a reply says from what it thinks: `<think>` or `<thinking>`, however written, up to its closing tag."""

from __future__ import annotations

import re

_TAG = re.compile(r"<\s*(/\s*)?think(?:ing)?\s*>", re.IGNORECASE)  # group 1: it closes
_BLANKS = re.compile(r"\s*")


def skip_thinking(text: str, answer: re.Pattern[str]) -> str:
    """Return what follows the thinking that a reply begins with, without blanks before it; it may be several blocks.

    The opening tag need not be there: some chat templates write it into the prompt. Tags behind the beginning of the
    `answer` are part of it. A block that never closes stays. The time is linear in the text.

    >>> skip_thinking("Or {x}?</think> <Thinking>No.</Thinking> {It wrote </think>.}", re.compile("{It"))
    '{It wrote </think>.}'
    >>> skip_thinking("<think>a</think> <think>{", re.compile("{"))
    '<think>{'
    """
    tags = list(_TAG.finditer(text))
    last = max((match.start() for match in answer.finditer(text)), default=-1) if tags else -1
    start = number = 0
    while number < len(tags):
        begin, tag = _skip_blanks(text, start), tags[number]
        closing = next((i for i in range(number, len(tags)) if tags[i][1]), None)
        if closing is None or answer.match(text, begin):
            break
        end = tags[closing].end()
        if end > last and answer.search(text, begin, tag.start()):  # a sentence, then the answer, which has tags
            break
        start, number = end, closing + 1
    return text[_skip_blanks(text, start) :]


def _skip_blanks(text: str, start: int) -> int:
    blanks = _BLANKS.match(text, start)
    assert blanks is not None, "it matches nothing too"
    return blanks.end()


def begins_thinking(text: str) -> bool:
    """Return True if a text begins with the opening tag of a thought.

    >>> begins_thinking("<think>2"), begins_thinking("</think>2"), begins_thinking("2 <think>")
    (True, False, False)
    """
    tag = _TAG.match(text)
    return tag is not None and not tag[1]


def cut_unfinished_thought(text: str) -> str:
    """Return a text up to a thought that is not closed: what stands in there is a try, not the answer.

    >>> cut_unfinished_thought("<think>4?</think> 5 <think>or 6"), cut_unfinished_thought("<think>4?</think> 5")
    ('<think>4?</think> 5 ', '<think>4?</think> 5')
    """
    opened: int | None = None
    for tag in _TAG.finditer(text):
        opened = None if tag[1] else tag.start() if opened is None else opened
    return text[:opened]
