"""Stop on request: the first SIGINT or SIGTERM asks for a checkpoint at the step's end, the second aborts.

Slurm sends SIGUSR1 when the time limit is near: it asks for the same checkpoint and never aborts.
"""

from __future__ import annotations

import signal
from types import FrameType

from nemo_tapo.utils.errors import Stopped


class Stop:
    """The request to stop; `install` connects it to SIGINT, SIGTERM and SIGUSR1."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._signalled = False

    @property
    def requested(self) -> bool:
        """True once a stop was requested."""
        return self.signum is not None

    def install(self) -> None:
        """Install the signal handlers. Call it after the runtime has started: Ray installs handlers of its own."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._on_signal)

    def request(self, signum: int) -> None:
        """Request a stop from within the program, for example because a time limit is near."""
        self.signum = signum

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGUSR1:
            self.signum = self.signum or signum
            return
        if self._signalled:
            raise KeyboardInterrupt("stopped twice: not waiting for a checkpoint")
        self.signum, self._signalled = signum, True

    def check(self, what: str) -> None:
        """Raise Stopped if a stop was requested; `what` says what was saved."""
        if self.signum is not None:
            raise Stopped(self.signum, what)
