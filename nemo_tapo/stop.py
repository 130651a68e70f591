"""Stopping on request: the first SIGINT or SIGTERM asks for a checkpoint at the step's end, the second aborts."""

from __future__ import annotations

import signal
from types import FrameType

from nemo_tapo.errors import Stopped


class Stop:
    """The request to stop. `install` makes it listen to SIGINT and SIGTERM."""

    def __init__(self) -> None:
        self.signum: int | None = None

    @property
    def requested(self) -> bool:
        return self.signum is not None

    def install(self) -> None:
        """Call after the runtime has started: Ray installs handlers of its own."""
        for signum in (signal.SIGINT, signal.SIGTERM):
            signal.signal(signum, self._on_signal)

    def _on_signal(self, signum: int, frame: FrameType | None) -> None:
        if self.signum is not None:
            raise KeyboardInterrupt("stopped twice: not waiting for a checkpoint")
        self.signum = signum

    def check(self, what: str) -> None:
        """Raises Stopped if a stop was requested; `what` says what is saved."""
        if self.signum is not None:
            raise Stopped(self.signum, what)
