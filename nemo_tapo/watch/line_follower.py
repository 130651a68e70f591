"""Follow a JSON Lines file that another process appends to: each look reads only what was added."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

CHUNK = 8 * 2**20  # bytes read at once


class LineFollower:
    """The place up to which a file was read. A line without its newline is left for later."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.offset = 0  # bytes read
        self.unfinished = False  # a half-written line follows
        self._file_id: tuple[int, int] | None = None

    def restarted(self) -> bool:
        """Return True, and begin again, if the file was replaced or cut: a resumed run drops steps that did not count.

        Call it before `read_new_lines`.
        """
        try:
            found = self.path.stat()
        except OSError:
            gone = self.offset > 0
            self.offset, self.unfinished, self._file_id = 0, False, None
            return gone
        file_id = (found.st_dev, found.st_ino)
        again = self.offset > 0 and (file_id != self._file_id or found.st_size < self.offset)
        if again:
            self.offset, self.unfinished = 0, False
        self._file_id = file_id
        return again

    def read_new_lines(self) -> Iterator[tuple[int, bytes]]:
        """Yield (offset, line without its newline) of each complete line that was not read before."""
        try:
            file = self.path.open("rb")
        except OSError:
            return
        with file:
            file.seek(self.offset)
            rest = b""
            while chunk := file.read(CHUNK):
                *lines, rest = (rest + chunk).split(b"\n")
                for line in lines:
                    begin, self.offset = self.offset, self.offset + len(line) + 1
                    if line.strip():
                        yield begin, line
        self.unfinished = bool(rest)


def count_lines(number: int) -> str:
    """Return the subject of a sentence about lines, with its verb.

    >>> count_lines(1), count_lines(2)
    ('one line is', '2 lines are')
    """
    return "one line is" if number == 1 else f"{number:,} lines are"
