"""A sweep on this machine: one `nemo-tapo run` after the other, each a process of its own.

What a run prints goes to its folder's sweep.log and to the terminal. A run in whose folder another process is at work
is waited for: the lock on sweep.lock lives as long as the sweep that took it or the run that inherited it.
"""

from __future__ import annotations

import fcntl
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from types import FrameType
from typing import BinaryIO

from nemo_tapo.sweeps.expand import Job
from nemo_tapo.sweeps.state import FAILED, LOCK, LOG, Failure, State, note_failure, state_of
from nemo_tapo.utils.errors import Stopped

SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOPPED = {128 + signum for signum in SIGNALS}  # exit codes of a run that was asked to stop


class Child:
    """The run at work, to which a request to stop is passed on."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signum: int | None = None

    @contextmanager
    def listening(self) -> Iterator[None]:
        before = {signum: signal.signal(signum, self._pass_on) for signum in SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)  # a second one ends the run at once, as if typed to itself


def run_all(jobs: Sequence[Job], config: Path) -> list[tuple[Job, Failure]]:
    """Runs what is not done, in this order; returns what failed. Raises Stopped when asked to stop."""
    child, failed = Child(), []
    with child.listening():
        for place, job in enumerate(jobs, 1):
            with locked(job.folder, child) as lock:
                if child.signum is None and state_of(job) is not State.DONE:
                    say(f"{place} of {len(jobs)}, {job.name}: {went_before(job)}")
                    begin, logged = time.monotonic(), length(job.folder / LOG)
                    code = run_one(job, config, child, lock)
                    found = outcome(job, code, child.signum, logged)
                    if found is not None:
                        note_failure(job.folder, found)
                        failed.append((job, found))
                    told = "done" if found is None else f"failed with exit code {code}: {found.reason}"
                    if child.signum is None:
                        say(f"{place} of {len(jobs)}, {job.name}: {told} ({time.monotonic() - begin:.0f} s)")
            if child.signum is not None:
                done = sum(state_of(each) is State.DONE for each in jobs)
                raise Stopped(child.signum, f"the sweep was at {job.name}, {done} of {len(jobs)} runs are done")
    return failed


def say(text: str) -> None:
    print(f"sweep: {text}", flush=True)


def went_before(job: Job) -> str:
    return {
        State.NEW: "starts",
        State.STARTED: "goes on where it was stopped",
        State.FAILED: "failed before, is tried again",
    }[state_of(job)]


@contextmanager
def locked(folder: Path, child: Child) -> Iterator[int]:
    """The folder to ourselves; yields the lock's file descriptor for the run to inherit."""
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / LOCK).open("ab") as file:
        told = False
        while child.signum is None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not told:
                    say(f"another process is at work in {folder}; waiting for it")
                told = True
                time.sleep(0.2)
        yield file.fileno()


def run_one(job: Job, config: Path, child: Child, lock: int) -> int:
    """The run to its end; returns its exit code."""
    (job.folder / FAILED).unlink(missing_ok=True)
    command = [sys.executable, "-m", "nemo_tapo.cli", "run", "--config", str(config), *job.overrides]
    with (job.folder / LOG).open("ab") as log, (job.folder / LOG).open("rb") as shown:
        shown.seek(0, os.SEEK_END)
        # A session of its own: Ctrl-C reaches the run once, through us, not a second time through the terminal.
        child.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
        )
        if child.signum is not None:  # asked for between the last look and the start
            child.process.send_signal(child.signum)
        while child.process.poll() is None:
            relay(shown)
            time.sleep(0.1)
        relay(shown)
    return child.process.returncode


def relay(log: BinaryIO) -> None:
    """What is new in the log, to the terminal."""
    sys.stdout.buffer.write(log.read())
    sys.stdout.flush()


def outcome(job: Job, code: int, asked_to_stop: int | None, logged: int) -> Failure | None:
    """None for a run that is done, or that ended because it was asked to. logged: bytes of its log before it began."""
    if code == 0 and state_of(job) is State.DONE:
        return None
    if asked_to_stop is not None and (code in STOPPED or code < 0):
        return None
    if code == 0:
        return Failure(0, "it ended without its evaluation")
    return Failure(code, last_words(job.folder / LOG, code, logged))


def length(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def last_words(log: Path, code: int, begin: int = 0) -> str:
    """The sentence in which the run said why it ended, of what the log holds from the byte `begin` on."""
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as file:
        file.seek(max(begin, length(log) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    told = [line.removeprefix("nemo-tapo: ") for line in lines if line.startswith("nemo-tapo: ")]
    return (told or lines or ["it said nothing"])[-1]
