"""Lay out text and tables for the terminal; nothing in a text can control the terminal."""

from __future__ import annotations

import unicodedata
from collections.abc import Sequence
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.table import Table
    from rich.text import Text


def text_table(title: str, head: Sequence[str], rows: Sequence[Sequence[str]]) -> Table:
    """Make a table whose first column is aligned left and the others right."""
    from rich.table import Table

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 2, 0, 0))
    table.show_header = any(head)
    for index, name in enumerate(head):
        table.add_column(name, justify="right" if index else "left", overflow="fold")
    for row in rows:
        table.add_row(*(plain_text(cell) for cell in row))
    return table


def plain_text(text: str, style: str = "") -> Text:
    """Text that cannot steer the terminal: no markup; control characters but newlines made visible."""
    from rich.text import Text

    return Text(make_visible(text), style=style)


def make_visible(text: str) -> str:
    r"""Return text in which control characters but newlines are made visible, so that a terminal obeys none of them.

    >>> make_visible("\x1b[2J47+38=\u202e85\n")
    '␛[2J47+38=<U+202E>85\n'
    """
    return "".join(map(visible, text))


def visible(character: str) -> str:
    """Return a character, or what stands for one that would control a terminal."""
    if character == "\n" or unicodedata.category(character) not in ("Cc", "Cf", "Cs"):
        return character
    if character == "\t":
        return "    "
    code = ord(character)
    return chr(0x2400 + code) if code < 0x20 else f"<U+{code:04X}>"
