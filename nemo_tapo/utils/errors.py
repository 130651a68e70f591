"""Define the failures that end a command with one sentence; cli.py maps each to an exit code.

Bad input is a ValueError.
"""

from __future__ import annotations

import errno
import signal
from collections.abc import Iterator
from contextlib import contextmanager


class RuntimeFailure(RuntimeError):
    """An engine or an actor died or stopped answering; the message names which, and why."""

    kept = "The last checkpoint is kept; the same command goes on from it."


class DiskFull(OSError):
    """There is no room on the disk for what was being written; what was written before is untouched."""


# How safetensors words ENOSPC and EDQUOT, and how the traceback of another process does
NO_SPACE = ("(os error 28)", "(os error 122)", "[Errno 28]", "[Errno 122]")


def is_full_disk(error: BaseException | None) -> bool:
    """Return True for the error of a disk or a quota without room.

    >>> is_full_disk(OSError(errno.ENOSPC, "no space left")), is_full_disk(OSError(errno.ENOENT, "no such file"))
    (True, False)
    """
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    return error is not None and any(words in read_message(error) for words in NO_SPACE)


def is_out_of_memory(error: BaseException) -> bool:
    """Return True for the error of a process without memory, Python's or that of torch's allocator on a CPU.

    >>> is_out_of_memory(MemoryError()), is_out_of_memory(RuntimeError("[...] can't allocate memory: you tried to ..."))
    (True, True)
    """
    return isinstance(error, MemoryError) or "can't allocate memory" in read_message(error)


@contextmanager
def name_full_disk(what: object, kept: str) -> Iterator[None]:
    """Turn a full disk in the block into DiskFull: there was no room for `what`, and what is `kept`.

    >>> try:
    ...     with name_full_disk("metrics.jsonl", "the lines in it are kept"):
    ...         raise OSError(errno.ENOSPC, "no space left")
    ... except DiskFull as error:
    ...     print(error.strerror)
    no room on the disk for metrics.jsonl; the lines in it are kept. Free some and resume
    """
    try:
        yield
    except DiskFull:
        raise
    except Exception as error:
        if not is_full_disk(error):
            raise
        sentence = f"no room on the disk for {what}; {kept}. Free some and resume"
        raise DiskFull(errno.ENOSPC, sentence) from error


class Stopped(Exception):
    """The run ended on request, with its state saved. `signum` decides the exit code (128 + signum)."""

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what}")
        self.signum = signum


def read_message(error: BaseException) -> str:
    """Return an error's message; none if its class, which may be a user's, cannot write it.

    >>> read_message(ValueError("no number")), read_message(type("Own", (ValueError,), {"__str__": None})())
    ('no number', '')
    """
    try:
        return str(error)
    except (Exception, SystemExit):
        return ""


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or its type's name if it has no message.

    >>> get_first_line(OSError("no route to host.\\nMore about it.")), get_first_line(TimeoutError())
    ('no route to host', 'TimeoutError')
    """
    lines = read_message(error).strip().splitlines()
    return (lines[0].rstrip(".") if lines else "") or type(error).__name__
