"""Define the failures that end a command with one sentence; cli.py maps each to an exit code.

Bad input is a ValueError.
"""

from __future__ import annotations

import signal


class RuntimeFailure(RuntimeError):
    """An engine or an actor died or stopped answering; the message names which, and why."""

    kept = "The last checkpoint is kept; the same command goes on from it."


class DiskFull(OSError):
    """There is no room for a checkpoint; the last good one is untouched."""


class Stopped(Exception):
    """The run ended on request, with its state saved. `signum` decides the exit code (128 + signum)."""

    def __init__(self, signum: int, what: str) -> None:
        super().__init__(f"stopped by {signal.Signals(signum).name}; {what}")
        self.signum = signum


def get_first_line(error: BaseException) -> str:
    """Return the first line of an error's message without its full stop, or its type's name if it has no message.

    >>> get_first_line(OSError("no route to host.\\nMore about it.")), get_first_line(TimeoutError())
    ('no route to host', 'TimeoutError')
    """
    return (str(error).strip() or type(error).__name__).splitlines()[0].rstrip(".")
