"""Find the final answer in a response: the content of its last balanced box."""

from __future__ import annotations

import re

from nemo_tapo.utils.thinking import cut_unfinished_thought

# One backslash or none, because \b and \f that were read as escapes are a backspace and a form feed. MATH's own
# extraction accepts \fbox too.
_NAME = r"(?:(?:\\b|\x08)oxed|(?:\\f|\x0c)(?:box|ramebox))\s*\{"
_NAMED = re.compile(_NAME)
# Any number of backslashes, because a model that writes JSON doubles them. A run is tried from its first one alone:
# from each it would be quadratic.
_BOX = r"(?<!\\)\\*" + _NAME
_OPENING = re.compile(_BOX)
# An escaped brace \{ is a character of the answer and does not open a group; \\ is a line break.
_TOKEN = re.compile(_BOX + r"|\\.|[{}]", re.DOTALL)
_STARTS = ("\\boxed", "\\fbox", "\\framebox", "\x08oxed", "\x0cbox", "\x0cramebox")


def find_last_boxed(text: str) -> str | None:
    r"""Return the content of the last `\boxed{...}` or `\fbox{...}` whose brace is closed, or None.

    "Last" means the one that opens last: of two nested boxes it is the inner one. Boxes that never close are skipped,
    so a response that was cut off inside its second box still counts with its first. `\framebox` counts too. What
    follows a `<think>` that never closes is no answer. The time is linear in the text.

    >>> find_last_boxed(r"First \boxed{4}, corrected: \boxed{\frac{1}{2}}.")
    '\\frac{1}{2}'
    >>> find_last_boxed(r"The sum is \boxed{75}, so the answer is \boxed{8")
    '75'
    """
    text = cut_unfinished_thought(text)
    last = max(map(text.rfind, _STARTS))
    opening = _NAMED.match(text, last) if last >= 0 else None
    content = _read_until_closed(text, opening.end()) if opening else None
    return content if content is not None else _find_last_closed(text)


def _read_until_closed(text: str, start: int) -> str | None:
    """Return the text from `start` to the closing brace of the box that opens just before `start`, or None."""
    depth = 1
    for token in _TOKEN.finditer(text, start):
        depth += 1 if token[0] == "{" or len(token[0]) > 2 else -1 if token[0] == "}" else 0
        if depth == 0:
            return text[start : token.start()]
    return None


def _find_last_closed(text: str) -> str | None:
    """Return the content of the last closed box, or None.

    One pass with a stack of open braces: trying one box after the other would be quadratic.
    """
    first = _OPENING.search(text)
    if first is None:
        return None
    opened: list[int] = []  # a box: where its content starts; any other brace: -1
    start, end = -1, -1
    for token in _TOKEN.finditer(text, first.start()):
        if token[0] == "{":
            opened.append(-1)
        elif len(token[0]) > 2:
            opened.append(token.end())
        elif token[0] == "}" and opened and (content := opened.pop()) > start:
            start, end = content, token.start()
    return text[start:end] if start >= 0 else None
