"""Time the parts of a step and show which part is running."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

from nemo_tapo.interfaces import Recorder
from nemo_tapo.metrics import TIME_STEP


class StepTimer:
    """The seconds of each part of one step, by metric key. The step begins when the timer is created."""

    def __init__(self, recorder: Recorder) -> None:
        self._recorder = recorder
        self._began = time.perf_counter()
        self._seconds: dict[str, float] = {}

    @contextmanager
    def measure(self, key: str, phase: str) -> Iterator[None]:
        """Time the block under `key`, and show `phase` while it runs. A part may be entered several times."""
        self._recorder.phase(phase)
        began = time.perf_counter()
        try:
            yield
        finally:
            self._seconds[key] = self._seconds.get(key, 0.0) + time.perf_counter() - began

    def seconds(self) -> dict[str, float]:
        """Return the seconds of every part so far, and of the step."""
        return {**self._seconds, TIME_STEP: time.perf_counter() - self._began}
