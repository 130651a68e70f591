"""Start commands of nemo-tapo in processes that can be broken, and end what they leave.

A scripted command runs in a fork of this process, which has imported everything already: a run takes a second, not
six. A local one is a new interpreter. Both have a session of their own and a marker in their environment, by which
whatever they leave behind is found.
"""

from __future__ import annotations

import os
import signal
import sys
import time
import traceback
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import psutil

from faults.commands import OUTPUT, ROOT, Command, make_argv

MARKER = "NEMO_TAPO_CHAOS"
WATCHED = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "os.truncate", "shutil.rmtree")
STOPS = (signal.SIGINT, signal.SIGTERM)
GRACE = 15.0  # seconds in which what a command started may end after it


@dataclass(frozen=True)
class Preparation:
    """What is done in the process of a command before it begins, and at one of its file operations."""

    begin: Callable[[], None] | None = None
    operation: int | None = None  # the number, from 1, of a file operation on the output folder
    strike: Callable[[], None] | None = None  # called just before that operation
    count_in: Path | None = None  # gets the number of operations


class Child:
    """A command that was started."""

    def __init__(self, pid: int, log: Path, marker: str) -> None:
        self.pid, self.log, self.marker = pid, log, marker
        self.code: int | None = None

    def poll(self) -> int | None:
        """Return the exit code, -N for signal N; None while it runs."""
        if self.code is None:
            pid, status = os.waitpid(self.pid, os.WNOHANG)
            if pid:
                self.code = os.waitstatus_to_exitcode(status)
        return self.code

    def wait(self, seconds: float) -> int | None:
        """Wait for its end, at most so long; return what `poll` does."""
        deadline = time.monotonic() + seconds
        while self.poll() is None and time.monotonic() < deadline:
            time.sleep(0.005)
        return self.code

    def send(self, signum: int) -> None:
        """Send a signal to the command alone."""
        if self.poll() is None:
            os.kill(self.pid, signum)

    def said(self) -> str:
        """Return everything that it printed."""
        return self.log.read_text(errors="replace")

    def find(self, name: str) -> list[psutil.Process]:
        """Return its descendants with `name` in their command lines."""
        found = []
        with suppress(psutil.NoSuchProcess):
            for process in psutil.Process(self.pid).children(recursive=True):
                with suppress(psutil.Error):
                    if name in " ".join([*process.cmdline(), process.name()]):
                        found.append(process)
        return found

    def end(self) -> list[str]:
        """End it and whatever it left behind; return the names of what had to be ended after GRACE seconds."""
        if self.poll() is None:
            os.kill(self.pid, signal.SIGKILL)
            self.wait(10)
        deadline = time.monotonic() + GRACE
        while (left := self._leftovers()) and time.monotonic() < deadline:
            time.sleep(0.1)
        names = []
        for process in left:
            with suppress(psutil.Error):
                names.append(process.name())
                process.kill()
        return names

    def _leftovers(self) -> list[psutil.Process]:
        """Return the living processes that have its marker or its session."""
        left = []
        for process in psutil.process_iter():
            with suppress(psutil.Error, OSError):
                if process.pid == os.getpid() or process.status() == psutil.STATUS_ZOMBIE:
                    continue
                if os.getsid(process.pid) == self.pid or process.environ().get(MARKER) == self.marker:
                    left.append(process)
        return left


def import_everything() -> None:
    """Import what scripted commands need, so that their forks need not."""
    import torch.utils.tensorboard  # noqa: F401

    import nemo_tapo.cli
    import nemo_tapo.report.html
    import nemo_tapo.runtime.scripted_runtime
    import nemo_tapo.stages.registry
    import nemo_tapo.sweeps.serial  # noqa: F401


def start(command: Command, folder: Path, preparation: Preparation, inside: bool) -> Child:
    """Start a command in `folder`; `inside`: in a fork of this process, where a preparation's `operation` counts."""
    number = len(list(folder.glob("said-*.txt")))
    log, marker = folder / f"said-{number}.txt", f"{folder.name}-{number}"
    sys.stdout.flush()
    sys.stderr.flush()
    log.touch()
    signal.pthread_sigmask(signal.SIG_BLOCK, STOPS)  # a signal may come before the child has handlers of its own
    pid = os.fork()
    if pid:
        signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
        return Child(pid, log, marker)
    code = 1
    try:
        _enter(folder, log, marker)
        if preparation.begin is not None:
            preparation.begin()
        if not inside:
            os.execv(sys.executable, make_argv(command))
        _watch_files(preparation)
        code = _call(command)
    except BaseException:
        traceback.print_exc()
    finally:
        with suppress(OSError, ValueError):
            sys.stdout.flush()
            sys.stderr.flush()
        os._exit(code)


def _enter(folder: Path, log: Path, marker: str) -> None:
    """Begin a session in `folder`, with everything printed into `log`."""
    os.setsid()
    os.chdir(folder)
    for stream, flags in ((0, os.O_RDONLY), (1, os.O_WRONLY), (2, os.O_WRONLY)):
        target = os.open(os.devnull if stream == 0 else log, flags | os.O_CREAT | os.O_APPEND, 0o644)
        os.dup2(target, stream)
        os.close(target)
    for signum in STOPS:
        signal.signal(signum, signal.default_int_handler if signum == signal.SIGINT else signal.SIG_DFL)
    signal.pthread_sigmask(signal.SIG_UNBLOCK, STOPS)
    path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
    os.environ.update({MARKER: marker, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1", "MPLBACKEND": "Agg"})


def _call(command: Command) -> int:
    from nemo_tapo.cli import main

    try:
        return main(command.arguments)
    except SystemExit as end:
        return end.code if isinstance(end.code, int) else 1


def _watch_files(preparation: Preparation) -> None:
    """Count the operations on files of the output folder, and strike before the one that is asked for."""
    count, busy = 0, False

    def watch(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal count, busy
        if busy or event not in WATCHED or not any(OUTPUT in str(argument) for argument in arguments):
            return
        busy = True
        count += 1
        if preparation.count_in is not None:
            preparation.count_in.write_text(str(count))
        if count == preparation.operation and preparation.strike is not None:
            preparation.strike()
        busy = False

    if preparation.operation is not None or preparation.count_in is not None:
        sys.addaudithook(watch)
