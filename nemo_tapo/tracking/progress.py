"""Show what a command is doing and how much time is left: live in a terminal, plain lines in a pipe or a log.

    with Progress([("base model", 1), ("cold start", 2), ("training", 6)]) as progress:
        stage = progress.start_stage("training", total=100, unit="step")
        for step in range(100):
            progress.set_phase("sampling 256")      # the phase within the step
            ...
            progress.set_phase("updating")
            stage.set_note("accuracy 0.41")
            stage.advance()

Signals are not handled here: Ctrl-C raises KeyboardInterrupt in the running code. The cursor is never hidden, so even
a killed command leaves the terminal as it was.
"""

from __future__ import annotations

import os
import sys
import time
from asyncio import CancelledError
from collections import deque
from collections.abc import Sequence
from types import TracebackType
from typing import Self, TextIO

from nemo_tapo.tracking.progress_views import Clock, LiveView, PlainView, ProgressView, format_duration
from nemo_tapo.utils.errors import Stopped

PACE_POINTS = 30  # recent points in time of a stage; the pace over them gives the time left


class ProgressStage:
    """A stage of a command, with a known or unknown number of units. Made by `Progress.start_stage`."""

    def __init__(self, owner: Progress, name: str, total: int | None, unit: str, done: int, clock: Clock) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.text = ""  # the latest note
        self.started = clock()
        self._owner, self._clock, self._before = owner, clock, done
        self._pace: deque[tuple[float, int]] = deque([(self.started, done)], maxlen=PACE_POINTS + 1)

    def advance(self, n: int = 1) -> None:
        """Count `n` more units as done."""
        self.done += n
        now = self._clock()
        if len(self._pace) > 1 and now - self._pace[-2][0] < (now - self.started) / PACE_POINTS:
            self._pace.pop()  # answers come in bursts, so points are spaced by time and not by advances
        self._pace.append((now, self.done))
        self._owner._changed()

    def set_note(self, text: str) -> None:
        """Show a short remark, "accuracy 0.41", beside the bar until the next one."""
        self.text = text
        self._owner._changed()

    def seconds_per_unit(self) -> float | None:
        """Return the seconds per unit over the last `PACE_POINTS` points; None before the first advance."""
        (begin, first), (end, last) = self._pace[0], self._pace[-1]
        return (end - begin) / (last - first) if last > first else None

    def seconds_in_total(self) -> float | None:
        """Return the estimated time of the whole stage, an earlier process's units included; None while unknown."""
        each = self.seconds_per_unit()
        return None if each is None or self.total is None else each * self.total

    def seconds_so_far(self) -> float:
        """Return the time since the stage began, scaled up to include the units that an earlier process did."""
        new = self.done - self._before
        return (self._clock() - self.started) * (self.done / new if new > 0 else 1.0)

    def seconds_left(self) -> float | None:
        """Return the estimated time left; None while unknown. Time already spent on the current unit is subtracted."""
        each = self.seconds_per_unit()
        if each is None or self.total is None:
            return None
        left = max(self.total - self.done, 0)
        return max(left * each - min(self._clock() - self._pace[-1][0], each), 0.0) if left else 0.0


class Progress:
    """Show stages, phases and the time left. A context manager in which every command runs.

    stages: (name, rough weight) of every stage to come, in any unit; they give the time left of the whole command.
    stream: where to write; standard error by default. interval: minimum seconds between plain lines.
    heartbeat: seconds without any report after which a plain line is repeated.
    """

    def __init__(
        self,
        stages: Sequence[tuple[str, float]] = (),
        stream: TextIO | None = None,
        interval: float = 5.0,
        heartbeat: float = 30.0,
        clock: Clock = time.monotonic,
    ) -> None:
        self._plan = list(stages)
        self._stream = stream if stream is not None else sys.stderr
        self._clock = clock
        self._spent: dict[str, float] = {}  # seconds of finished stages
        self.current: ProgressStage | None = None
        self.phase = ""
        live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._view: ProgressView = (
            LiveView(self._stream, clock) if live else PlainView(self._stream, interval, heartbeat, clock)
        )

    def __enter__(self) -> Self:
        self._view.start(self)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        stopped = kind is not None and issubclass(kind, (KeyboardInterrupt, SystemExit, CancelledError, Stopped))
        self._finish("done" if kind is None else "interrupted" if stopped else "failed")
        self._view.stop()

    def start_stage(self, name: str, total: int | None = None, unit: str = "", done: int = 0) -> ProgressStage:
        """Begin a stage and end the one before.

        total: units of work; None if unknown. unit: its name in the singular, "step". done: units that were done before
        the run was resumed.
        """
        self._finish("done")
        self.current = ProgressStage(self, name, total, unit, done, self._clock)
        self._view.stage_begins(self)
        return self.current

    def set_phase(self, text: str) -> None:
        """Set the phase within the stage: "sampling 256", "updating"."""
        self.phase = text
        self._view.phase_begins(self)

    def message(self, text: str) -> None:
        """Print a sentence that stays on the screen, above the live lines."""
        self._view.message(text)

    def seconds_left(self) -> float | None:
        """Return the time left of the whole plan; None while unknown or without a plan.

        It follows from the weights and from the time of the stages so far.
        """
        weights, stage = dict(self._plan), self.current
        if stage is None or stage.name not in weights:
            return None
        spent = {name: seconds for name, seconds in self._spent.items() if weights.get(name)}
        behind, seconds = sum(weights[name] for name in spent), sum(spent.values())
        whole = stage.seconds_in_total()
        if whole is not None:
            behind, seconds = behind + weights[stage.name], seconds + whole
        if not behind:
            return None
        names = [name for name, _ in self._plan]
        ahead = sum(weights[name] for name in names[names.index(stage.name) + 1 :])
        left = stage.seconds_left()
        if left is None:  # the pace of this stage is not known yet, so its weight is used
            left = max(weights[stage.name] * seconds / behind - (self._clock() - stage.started), 0.0)
        return left + ahead * seconds / behind

    def line(self) -> str:
        """Return stage, count, phase and note in one line, without the time left."""
        note = self.current.text if self.current else ""
        return " | ".join(text for text in (self.title(), self.count(), self.phase, note) if text)

    def title(self) -> str:
        """Return the stage as in "[2/3] training", with its position if it is in the plan."""
        if self.current is None:
            return ""
        names = [name for name, _ in self._plan]
        name = self.current.name
        return f"[{names.index(name) + 1}/{len(names)}] {name}" if name in names else name

    def count(self) -> str:
        """Return the count as in "12/100 steps (12%)"; "" if nothing is counted."""
        stage = self.current
        if stage is None or (stage.total is None and not stage.done):
            return ""
        one = (stage.done if stage.total is None else stage.total) == 1
        unit = stage.unit if one or stage.unit.endswith("s") else f"{stage.unit}s"
        if stage.total is None:
            return f"{stage.done} {unit}" if stage.unit else str(stage.done)
        share = f" ({stage.done / stage.total:.0%})" if stage.total else ""
        return f"{stage.done}/{stage.total}" + f" {unit}" * bool(stage.unit) + share

    def time_left(self) -> str:
        """Return the time left as in "4 min 30 s left, whole run 12 min"; "" if it is unknown or nothing is left."""
        left, whole = self.current.seconds_left() if self.current else None, self.seconds_left()
        parts = [f"{format_duration(left)} left"] if left else []
        if whole and (left is None or whole > left):
            parts.append(f"whole run {format_duration(whole)}" + " left" * (not parts))
        return ", ".join(parts)

    def _changed(self) -> None:
        self._view.changed(self)

    def _finish(self, how: str) -> None:
        if self.current is None:
            return
        spent = self._clock() - self.current.started
        self._spent[self.current.name] = self.current.seconds_so_far()
        self.phase = ""
        self._view.stage_ends(self, how, spent)
        self.current = None
