"""The final answer in a response: the content of its last balanced box."""

from __future__ import annotations

import re

# Any number of backslashes: a model that writes JSON doubles them. \fbox as MATH's own extraction has it.
_OPENING = re.compile(r"\\+(?:boxed|fbox)\s*\{")
# An escaped brace \{ is a character of the answer and opens no group; \\ is a line break.
_TOKEN = re.compile(r"\\+(?:boxed|fbox)\s*\{|\\.|[{}]", re.DOTALL)


def last_boxed(text: str) -> str | None:
    r"""The content of the last `\boxed{...}` or `\fbox{...}` whose brace is closed, or None. Linear in the text.

    "Last" by where it opens: of a box within a box the inner one. Boxes that never close are passed over, so a
    response that was cut off within its second box still answers with its first.
    """
    last = max(text.rfind("\\boxed"), text.rfind("\\fbox"))
    opening = _OPENING.match(text, last) if last >= 0 else None
    content = _closed(text, opening.end()) if opening else None
    return content if content is not None else _last_closed(text)


def _closed(text: str, start: int) -> str | None:
    """The text from `start` to the brace that closes the one before it."""
    depth = 1
    for token in _TOKEN.finditer(text, start):
        depth += 1 if token[0] == "{" or len(token[0]) > 2 else -1 if token[0] == "}" else 0
        if depth == 0:
            return text[start : token.start()]
    return None


def _last_closed(text: str) -> str | None:
    """The same for any box, in one pass: a stack of what is open, because trying box after box is quadratic."""
    first = _OPENING.search(text)
    if first is None:
        return None
    opened: list[int] = []  # where a box's content starts; -1 for other braces
    start, end = -1, -1
    for token in _TOKEN.finditer(text, first.start()):
        if token[0] == "{":
            opened.append(-1)
        elif len(token[0]) > 2:
            opened.append(token.end())
        elif token[0] == "}" and opened and (content := opened.pop()) > start:
            start, end = content, token.start()
    return text[start:end] if start >= 0 else None
