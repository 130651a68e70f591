"""What a command is doing and how long it still has: live in a terminal, plain lines in a pipe or a log.

    with Progress([("base model", 1), ("cold start", 2), ("training", 6)]) as progress:
        stage = progress.stage("training", total=100, unit="step")
        for step in range(100):
            progress.status("sampling 256")      # the phase within the step
            ...
            progress.status("updating")
            stage.note("accuracy 0.41")
            stage.advance()

Signals are left alone: Ctrl-C raises KeyboardInterrupt where the work is. The cursor is never hidden, so that
even a killed command leaves the terminal as it was.
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

from nemo_tapo.tracking.progress_views import Clock, LiveView, PlainView, View, duration
from nemo_tapo.utils.errors import Stopped

POINTS = 30  # of a stage's recent past; their pace gives the time left


class Stage:
    """One stretch of work with a known (or unknown) number of units. Made by `Progress.stage`."""

    def __init__(self, owner: Progress, name: str, total: int | None, unit: str, done: int, clock: Clock) -> None:
        self.name, self.total, self.unit, self.done = name, total, unit, done
        self.text = ""  # the latest note
        self.started = clock()
        self._owner, self._clock, self._before = owner, clock, done
        self._pace: deque[tuple[float, int]] = deque([(self.started, done)], maxlen=POINTS + 1)

    def advance(self, n: int = 1) -> None:
        """`n` more units are done."""
        self.done += n
        now = self._clock()
        if len(self._pace) > 1 and now - self._pace[-2][0] < (now - self.started) / POINTS:
            self._pace.pop()  # answers come in bursts: points are a stretch of time apart, not an advance
        self._pace.append((now, self.done))
        self._owner._changed()

    def note(self, text: str) -> None:
        """A short remark shown beside the bar until the next one: "accuracy 0.41"."""
        self.text = text
        self._owner._changed()

    def seconds_each(self) -> float | None:
        """Recent pace: of the last `POINTS` points; None before the first advance."""
        (begin, first), (end, last) = self._pace[0], self._pace[-1]
        return (end - begin) / (last - first) if last > first else None

    def seconds_whole(self) -> float | None:
        """What the whole stage takes, an earlier process's units included; None while unknown."""
        each = self.seconds_each()
        return None if each is None or self.total is None else each * self.total

    def seconds_so_far(self) -> float:
        """Since it began; scaled up by the units that an earlier process did."""
        new = self.done - self._before
        return (self._clock() - self.started) * (self.done / new if new > 0 else 1.0)

    def seconds_left(self) -> float | None:
        """Estimated; None while unknown. What the unit in progress took so far is taken off."""
        each = self.seconds_each()
        if each is None or self.total is None:
            return None
        left = max(self.total - self.done, 0)
        return max(left * each - min(self._clock() - self._pace[-1][0], each), 0.0) if left else 0.0


class Progress:
    """Shows stages, phases and the time left; a context manager that every command runs in.

    stages: (name, rough weight) of every stage to come, in any unit; gives the time left of the whole.
    stream: where to write; standard error unless given. interval: seconds between plain lines, at least.
    heartbeat: seconds after which a plain line is repeated although nothing was reported.
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
        self.current: Stage | None = None
        self.phase = ""
        live = self._stream.isatty() and os.environ.get("TERM") != "dumb"
        self._view: View = (
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

    def stage(self, name: str, total: int | None = None, unit: str = "", done: int = 0) -> Stage:
        """Begins a stage and ends the one before.

        total: units of work; None where unknown. unit: in the singular, "step". done: what a resumed run has
        behind it.
        """
        self._finish("done")
        self.current = Stage(self, name, total, unit, done, self._clock)
        self._view.stage_begins(self)
        return self.current

    def status(self, text: str) -> None:
        """The phase within the stage: "sampling 256", "updating"."""
        self.phase = text
        self._view.phase_begins(self)

    def message(self, text: str) -> None:
        """A sentence that stays on the screen, above the live line."""
        self._view.message(text)

    def seconds_left(self) -> float | None:
        """Of the whole plan, by the stages so far and the weights; None while unknown or without a plan."""
        weights, stage = dict(self._plan), self.current
        if stage is None or stage.name not in weights:
            return None
        spent = {name: seconds for name, seconds in self._spent.items() if weights.get(name)}
        behind, seconds = sum(weights[name] for name in spent), sum(spent.values())
        whole = stage.seconds_whole()
        if whole is not None:
            behind, seconds = behind + weights[stage.name], seconds + whole
        if not behind:
            return None
        names = [name for name, _ in self._plan]
        ahead = sum(weights[name] for name in names[names.index(stage.name) + 1 :])
        left = stage.seconds_left()
        if left is None:  # this stage's own pace is not known yet: its weight has to do
            left = max(weights[stage.name] * seconds / behind - (self._clock() - stage.started), 0.0)
        return left + ahead * seconds / behind

    def line(self) -> str:
        """Stage, count, phase and note in one line, without the time left."""
        note = self.current.text if self.current else ""
        return " | ".join(text for text in (self.title(), self.count(), self.phase, note) if text)

    def title(self) -> str:
        """ "[2/3] training"; the place within the plan, if it is in one."""
        if self.current is None:
            return ""
        names = [name for name, _ in self._plan]
        name = self.current.name
        return f"[{names.index(name) + 1}/{len(names)}] {name}" if name in names else name

    def count(self) -> str:
        """ "12/100 steps (12%)"; "" where nothing is counted."""
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
        """ "4 min 30 s left, whole run 12 min"; "" while unknown or nothing is left."""
        left, whole = self.current.seconds_left() if self.current else None, self.seconds_left()
        parts = [f"{duration(left)} left"] if left else []
        if whole and (left is None or whole > left):
            parts.append(f"whole run {duration(whole)}" + " left" * (not parts))
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
