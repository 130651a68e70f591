"""How progress.py looks: two live lines in a terminal, plain lines in a pipe or a log."""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol, TextIO

if TYPE_CHECKING:
    from rich.console import RenderableType

Clock = Callable[[], float]


class StageState(Protocol):
    """What a view shows of the stage under way: its units of work, and a note."""

    total: int | None
    done: int
    text: str


class ProgressState(Protocol):
    """What a view shows of a command (progress.Progress)."""

    @property
    def current(self) -> StageState | None: ...

    phase: str

    def line(self) -> str: ...
    def title(self) -> str: ...
    def count(self) -> str: ...
    def time_left(self) -> str: ...


class View(Protocol):
    """How progress is shown."""

    def start(self, progress: ProgressState) -> None: ...
    def stop(self) -> None: ...
    def stage_begins(self, progress: ProgressState) -> None: ...
    def stage_ends(self, progress: ProgressState, how: str, seconds: float) -> None: ...
    def phase_begins(self, progress: ProgressState) -> None: ...
    def changed(self, progress: ProgressState) -> None: ...
    def message(self, text: str) -> None: ...


class PlainView:
    """Lines for a pipe: at most one an interval, one where a stage or new phase begins, a heartbeat."""

    def __init__(self, stream: TextIO, interval: float, heartbeat: float, clock: Clock) -> None:
        self._stream, self._interval, self._heartbeat, self._clock = stream, interval, heartbeat, clock
        self._last = float("-inf")
        self._seen: set[str] = set()  # phases of this stage that had their line
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
        self._print(f"{progress.line()}: {how} after {duration(seconds)}")

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
            self._stream.write(text + "\n")
            self._stream.flush()

    def _beat(self, progress: ProgressState) -> None:
        """Nothing new for a while: say that it is still at it."""
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
            redirect_stdout=sys.stdout.isatty(),  # what is piped stays in the pipe
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
        self.message(f"{progress.line()}: {how} after {duration(seconds)}")

    def phase_begins(self, progress: ProgressState) -> None:
        self._phase_began = self._clock()

    def changed(self, progress: ProgressState) -> None:
        """The next refresh shows it."""

    def message(self, text: str) -> None:
        self._console.print(text, markup=False)

    def _render(self) -> RenderableType:
        """Stage, bar, count, time left; below them the phase, its seconds, and the note."""
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
        phase = f"{progress.phase} {duration(seconds)}" if progress.phase and seconds >= 2 else progress.phase
        below = "  " + " | ".join(text for text in (phase, stage.text) if text)
        return Group(top, Text(below, style="dim", overflow="ellipsis", no_wrap=True))


def duration(seconds: float) -> str:
    """3.2 s, 45 s, 4 min 30 s, 2 h 5 min, 3 d 4 h."""
    if seconds < 10:
        return f"{seconds:.1f} s"
    whole = round(seconds)
    for size, unit, part, part_unit in ((86400, "d", 3600, "h"), (3600, "h", 60, "min"), (60, "min", 1, "s")):
        if whole >= size:
            rest = whole % size // part
            return f"{whole // size} {unit} {rest} {part_unit}" if rest else f"{whole // size} {unit}"
    return f"{whole} s"
