"""Run a sweep on this machine, one `nemo-tapo run` process after the other.

The output of a run goes to sweep.log in its folder and to the terminal. If another process is working in a run's
folder, the sweep waits for it. The lock on sweep.lock lasts as long as the sweep that took it, or the run that
inherited it, is alive.
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

from nemo_tapo.sweeps.expand import SweepJob
from nemo_tapo.sweeps.state import FAILURE_FILE, LOCK_FILE, LOG_FILE, Failure, RunState, read_run_state, write_failure
from nemo_tapo.utils.errors import Stopped
from nemo_tapo.utils.files import refuse_foreign_link

PROGRAM = (sys.executable, "-m", "nemo_tapo.cli")  # nemo-tapo, as a command
STOP_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGUSR1)
STOP_EXIT_CODES = {128 + signum for signum in STOP_SIGNALS}  # exit codes of a run that was asked to stop


class ChildProcess:
    """The current run; a request to stop the sweep is passed on to it."""

    def __init__(self) -> None:
        self.process: subprocess.Popen[bytes] | None = None
        self.signum: int | None = None

    @contextmanager
    def forward_signals(self) -> Iterator[None]:
        """Pass the stop signals on to the current run while the block is active."""
        before = {signum: signal.signal(signum, self._pass_on) for signum in STOP_SIGNALS}
        try:
            yield
        finally:
            for signum, handler in before.items():
                signal.signal(signum, handler)

    def _pass_on(self, signum: int, frame: FrameType | None) -> None:
        self.signum = signum
        if self.process is not None and self.process.poll() is None:
            self.process.send_signal(signum)  # a second signal ends the run at once, as a second Ctrl-C would


def run_jobs(jobs: Sequence[SweepJob], config: Path) -> list[tuple[SweepJob, Failure]]:
    """Run the jobs that are not done, in order, and return those that failed. Raises Stopped when asked to stop."""
    child, failed = ChildProcess(), []
    with child.forward_signals():
        for number, job in enumerate(jobs, 1):
            with lock_folder(job.folder, child) as lock:
                if child.signum is None and read_run_state(job) is not RunState.DONE:
                    print_status(f"{number} of {len(jobs)}, {job.name}: {describe_start(job)}")
                    begin, logged = time.monotonic(), get_log_size(job.folder / LOG_FILE)
                    code = run_one(job, config, child, lock)
                    failure = find_failure(job, code, child.signum, logged)
                    if failure is not None:
                        write_failure(job.folder, failure)
                        failed.append((job, failure))
                    result = "done" if failure is None else f"failed with exit code {code}: {failure.reason}"
                    if child.signum is None:
                        print_status(
                            f"{number} of {len(jobs)}, {job.name}: {result} ({time.monotonic() - begin:.0f} s)"
                        )
            if child.signum is not None:
                done = sum(read_run_state(each) is RunState.DONE for each in jobs)
                raise Stopped(child.signum, f"the sweep was at {job.name}, {done} of {len(jobs)} runs are done")
    return failed


def print_status(text: str) -> None:
    print(f"sweep: {text}", flush=True)


def describe_start(job: SweepJob) -> str:
    """Return how the run starts: new, from where it was stopped, or again after a failure."""
    return {
        RunState.NEW: "starts",
        RunState.STARTED: "goes on where it was stopped",
        RunState.FAILED: "failed before, is tried again",
    }[read_run_state(job)]


@contextmanager
def lock_folder(folder: Path, child: ChildProcess) -> Iterator[int]:
    """Lock the folder against other processes; yield the lock's file descriptor for the run to inherit.

    Waits while another process has the lock, until it is free or the sweep is asked to stop.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / LOCK_FILE, "ab", opener=refuse_foreign_link) as file:
        announced = False
        while child.signum is None:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                break
            except BlockingIOError:
                if not announced:
                    print_status(f"another process is at work in {folder}; waiting for it")
                announced = True
                time.sleep(0.2)
        yield file.fileno()


def run_one(job: SweepJob, config: Path, child: ChildProcess, lock: int) -> int:
    """Run one job to its end and return its exit code."""
    (job.folder / FAILURE_FILE).unlink(missing_ok=True)
    command = [*PROGRAM, "run", "--config", str(config), *job.overrides]
    with (
        open(job.folder / LOG_FILE, "ab", opener=refuse_foreign_link) as log,
        (job.folder / LOG_FILE).open("rb") as shown,
    ):
        shown.seek(0, os.SEEK_END)
        # In a new session, Ctrl-C reaches the run only through this process, and not also through the terminal.
        child.process = subprocess.Popen(
            command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, start_new_session=True, pass_fds=(lock,)
        )
        if child.signum is not None:  # asked to stop between the last check and the start
            child.process.send_signal(child.signum)
        while child.process.poll() is None:
            relay_log(shown)
            time.sleep(0.1)
        relay_log(shown)
    return child.process.returncode


def relay_log(log: BinaryIO) -> None:
    """Copy what is new in the log to the terminal."""
    sys.stdout.buffer.write(log.read())
    sys.stdout.flush()


def find_failure(job: SweepJob, code: int, asked_to_stop: int | None, logged: int) -> Failure | None:
    """Return why a run failed; None if it is done, or ended because it was asked to stop.

    logged: size of the log in bytes before the run began.
    """
    if code == 0 and read_run_state(job) is RunState.DONE:
        return None
    if asked_to_stop is not None and (code in STOP_EXIT_CODES or code < 0):
        return None
    if code == 0:
        return Failure(0, "it ended without its evaluation")
    return Failure(code, read_failure_reason(job.folder / LOG_FILE, code, logged))


def get_log_size(log: Path) -> int:
    return log.stat().st_size if log.is_file() else 0


def read_failure_reason(log: Path, code: int, begin: int = 0) -> str:
    """Return the sentence in which the run said why it ended.

    It is taken from the part of the log after the byte `begin`. For a run that a signal killed, it names the signal.
    """
    if code < 0:
        return f"killed by {signal.Signals(-code).name}"
    with log.open("rb") as file:
        file.seek(max(begin, get_log_size(log) - 20_000))
        lines = [line.strip() for line in file.read().decode(errors="replace").splitlines() if line.strip()]
    messages = [line.removeprefix("nemo-tapo: ") for line in lines if line.startswith("nemo-tapo: ")]
    return (messages or lines or ["it said nothing"])[-1]
