"""Stopping on request: the first SIGINT or SIGTERM asks for a checkpoint at the step's end, the second aborts.

SIGUSR1 is Slurm's word that the time limit comes near: it asks for the same and never aborts.
"""

from __future__ import annotations

import signal
from types import FrameType

from nemo_tapo.utils.errors import Stopped


class Stop:
    """The request to stop. `install` makes it listen to SIGINT, SIGTERM and SIGUSR1."""

    def __init__(self) -> None:
        self.signum: int | None = None
        self._signalled = False

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def install(self) -> None:
        """Call after the runtime has started: Ray installs handlers of its own."""
        for signum in (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1):
            signal.signal(signum, self._on_signal)

    def request(self, signum: int) -> None:
        """Asks from within, as for a time limit that comes near; a signal that follows asks for the same."""
        self.signum = signum

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if signum == signal.SIGUSR1:
            self.signum = self.signum or signum
            return
        if self._signalled:
            raise KeyboardInterrupt("stopped twice: not waiting for a checkpoint")
        self.signum, self._signalled = signum, True

    def check(self, what: str) -> None:
        """Raises Stopped if a stop was requested; `what` says what is saved."""
        if self.signum is not None:
            raise Stopped(self.signum, what)
