"""Show progress: as two live lines in a terminal, as plain lines in a pipe or a log."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

from nemo_tapo.utils.text_table import make_visible

if TYPE_CHECKING:
    from rich.console import RenderableType

Clock = Callable[[], float]


class StageState(Protocol):
    """The part of a stage that a view reads: its units of work and its note."""

    total: int | None
    done: int
    text: str


class ProgressState(Protocol):
    """The part of `progress.Progress` that a view reads."""

    @property
    def current(self) -> StageState | None:
        """The current stage; None between stages."""

    phase: str

    def line(self) -> str:
        """Return stage, count, phase and note in one line."""

    def title(self) -> str:
        """Return the name of the stage and its position in the plan."""

    def count(self) -> str:
        """Return how many units are done."""

    def time_left(self) -> str:
        """Return the time left of the stage and of the whole plan."""


class ProgressView(Protocol):
    """A way of showing progress. `Progress` calls these methods when something changes."""

    def start(self, progress: ProgressState) -> None:
        """Start to show progress."""

    def stop(self) -> None:
        """Stop showing progress."""

    def stage_begins(self, progress: ProgressState) -> None:
        """Show that a stage begins."""

    def stage_ends(self, progress: ProgressState, how: str, seconds: float) -> None:
        """Show how a stage ended ("done", "interrupted", "failed") and how long it took."""

    def phase_begins(self, progress: ProgressState) -> None:
        """Show that a phase begins within the stage."""

    def changed(self, progress: ProgressState) -> None:
        """Show a new count or note."""

    def message(self, text: str) -> None:
        """Print a sentence that stays on the screen."""


class PlainView:
    """Plain lines: one for each stage and each new phase, else at most one per interval, and a heartbeat."""

    def __init__(self, stream: TextIO, interval: float, heartbeat: float, clock: Clock) -> None:
        self._stream, self._interval, self._heartbeat, self._clock = stream, interval, heartbeat, clock
        self._last = float("-inf")
        self._seen: set[str] = set()  # phases of this stage that already have a line
        self._lock = threading.Lock()
        self._stopped = threading.Event()

    def start(self, progress: ProgressState) -> None:
        threading.Thread(target=self._beat, args=(progress,), daemon=True, name="progress").start()

    def stop(self) -> None:
        self._stopped.set()

    def stage_begins(self, progress: ProgressState) -> None:
        self._seen.clear()
        self._print(f"{progress.line()}: begins")

    def stage_ends(self, progress: ProgressState, how: str, seconds: float) -> None:
        self._print(f"{progress.line()}: {how} after {format_duration(seconds)}")

    def phase_begins(self, progress: ProgressState) -> None:
        name = re.sub(r"\d+", "#", progress.phase)  # "sampling 256" and "sampling 128" are one phase
        if name in self._seen:
            self.changed(progress)
        else:
            self._seen.add(name)
            self._report(progress)

    def changed(self, progress: ProgressState) -> None:
        if self._clock() - self._last >= self._interval:
            self._report(progress)

    def message(self, text: str) -> None:
        self._print(text)

    def _report(self, progress: ProgressState) -> None:
        self._print(" | ".join(text for text in (progress.line(), progress.time_left()) if text))

    def _print(self, text: str) -> None:
        with self._lock:
            self._last = self._clock()
            self._stream.write(make_visible(text) + "\n")
            self._stream.flush()

    def _beat(self, progress: ProgressState) -> None:
        """Print that the command is still at work whenever nothing was printed for a while."""
        while not self._stopped.wait(self._heartbeat / 4):
            quiet = self._clock() - self._last
            if quiet >= self._heartbeat and progress.line():
                self._print(f"{progress.line()} | still at it")


class LiveView:
    """Two live lines at the bottom of a terminal, drawn by rich; finished stages stay above them."""

    def __init__(self, stream: TextIO, clock: Clock) -> None:
        from rich.console import Console
        from rich.live import Live
        from rich.spinner import Spinner

        self._progress: ProgressState | None = None
        self._console = Console(file=stream, highlight=False)
        self._live = Live(
            console=self._console,
            get_renderable=self._render,
            transient=True,
            refresh_per_second=8,
            redirect_stdout=sys.stdout.isatty(),  # piped output stays in the pipe
        )
        self._spinner = Spinner("dots")
        self._clock = clock
        self._phase_began = clock()

    def start(self, progress: ProgressState) -> None:
        self._progress = progress
        self._live.start()
        self._console.show_cursor(True)

    def stop(self) -> None:
        self._live.stop()

    def stage_begins(self, progress: ProgressState) -> None:
        self._phase_began = self._clock()

    def stage_ends(self, progress: ProgressState, how: str, seconds: float) -> None:
        self.message(f"{progress.line()}: {how} after {format_duration(seconds)}")

    def phase_begins(self, progress: ProgressState) -> None:
        self._phase_began = self._clock()

    def changed(self, progress: ProgressState) -> None:
        """Do nothing: the next refresh shows the change."""

    def message(self, text: str) -> None:
        self._console.print(make_visible(text), markup=False)

    def _render(self) -> RenderableType:
        """Return two lines: stage, bar, count and time left; phase, its seconds, and the note."""
        from rich.console import Group
        from rich.progress_bar import ProgressBar
        from rich.table import Table
        from rich.text import Text

        progress = self._progress
        if progress is None or progress.current is None:
            return Text("")
        stage = progress.current
        top = Table.grid(padding=(0, 1))
        bar = ProgressBar(total=stage.total, completed=stage.done, width=14, pulse=stage.total is None)
        left = Text(progress.time_left(), style="cyan", overflow="ellipsis", no_wrap=True)
        top.add_row(self._spinner, Text(progress.title(), style="bold"), bar, Text(progress.count()), left)
        seconds = self._clock() - self._phase_began
        phase = f"{progress.phase} {format_duration(seconds)}" if progress.phase and seconds >= 2 else progress.phase
        below = "  " + " | ".join(text for text in (phase, stage.text) if text)
        return Group(top, Text(below, style="dim", overflow="ellipsis", no_wrap=True))


def format_duration(seconds: float) -> str:
    """Format seconds in one or two units.

    >>> [format_duration(seconds) for seconds in (3.21, 45, 270, 7500, 273600)]
    ['3.2 s', '45 s', '4 min 30 s', '2 h 5 min', '3 d 4 h']
    """
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {part_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
