"""Processes that grade and may be killed, seen from the verifier: questions in, verdicts out, always.

One thread a grader asks it one question at a time (worker.py has the other side), so nothing here belongs to an event
loop. A grader that dies takes at most the question in its hands with it.
"""

from __future__ import annotations

import itertools
import json
import os
import queue
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from nemo_tapo.grading.grader import patience
from nemo_tapo.utils.errors import RuntimeFailure

START_SECONDS = 180.0  # for imports from a slow disk
LEAVE_SECONDS = 2.0  # for a nursery to end its graders; then all are killed
GRACE_SECONDS = 5.0  # after the deadline, by which the grader's own timer should have ended it
ENDED_BY = {-signal.SIGPROF: "processor_time", -signal.SIGALRM: "clock_time"}  # exit code of a grader -> why
GRADERS = 5  # that one question may cost; a fork each, and whoever kills from outside may hit the same one twice
NURSERIES = 3  # in a row that may fail

Question = tuple[str, ...]  # ("compare", gold, answer) or ("fault", gold), normalised


@dataclass(frozen=True)
class Reply:
    """What came of a question."""

    verdict: str | None  # of compare.compare or compare.fault
    ended: str | None = None  # without a verdict: "processor_time", "clock_time" or "died"


class Pool:
    """`workers` graders, started by the first question.

    deadline: seconds on the clock that a question may take; processor_time: seconds of its grader's processor.
    """

    def __init__(self, workers: int, deadline: float, processor_time: float) -> None:
        self.workers, self.deadline, self.processor_time = workers, deadline, processor_time
        self.deaths = 0  # graders that ended over a question
        self._questions: queue.SimpleQueue[tuple[Future[Reply], Question] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        # Locks that may be taken again: a garbage collection within may find the verifier unused and close this.
        self._gate = threading.RLock()  # over the next two
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._lock = threading.RLock()  # over the rest; held while a nursery starts
        self._nursery: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._generation = 0  # of nurseries
        self._fruitless = 0  # nurseries in a row that gave no verdict
        self._errors: IO[bytes] | None = None  # what the latest nursery wrote to its standard error

    def submit(self, question: Question) -> Future[Reply]:
        """Asks; returns at once. The future fails with RuntimeFailure if no process can be kept running."""
        with self._gate:
            assert not self._closed, "the verifier is closed"
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._work, args=(i,), daemon=True) for i in range(self.workers)
                ]
                for thread in self._threads:
                    thread.start()
            future: Future[Reply] = Future()
            self._questions.put((future, question))
        return future

    def close(self) -> None:
        """Ends every process and fails what was still asked. May be called twice."""
        with self._gate:
            self._closed = True
            threads, self._threads = self._threads, []
            for _ in threads:
                self._questions.put(None)  # behind the questions, which `_connection` refuses from now on
        with self._lock:
            self._kill()
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()

    # ------------------------------------------------------------------------------ a grader's thread

    def _work(self, slot: int) -> None:
        while (item := self._questions.get()) is not None:
            future, question = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._ask(slot, question))
            except BaseException as error:
                future.set_exception(error)

    def _ask(self, slot: int, question: Question) -> Reply:
        number = next(self._numbers)
        for _ in range(GRADERS):
            message = self._exchange(slot, {"id": number, "question": question})
            self._fruitless = 0
            if "died" not in message:
                return Reply(message["verdict"])
            self.deaths += 1
            if message["died"] in ENDED_BY:
                return Reply(None, ENDED_BY[message["died"]])
        return Reply(None, "died")

    def _exchange(self, slot: int, request: dict[str, Any]) -> dict[str, Any]:
        """Sends a request; the grader's answer to it, or the nursery's word that the grader died.

        Where neither comes, the nursery is replaced and asked again.
        """
        while True:
            generation, connection = self._connection(slot)
            try:
                connection.send_bytes(json.dumps(request).encode())
                while connection.poll(self.deadline * patience(request["question"]) + GRACE_SECONDS):
                    message: dict[str, Any] = json.loads(connection.recv_bytes())
                    if message.get("id", request["id"]) == request["id"]:  # else: of a question asked twice
                        return message
            except (EOFError, OSError):
                pass  # nursery and grader are gone
            self._replace(generation)

    # ------------------------------------------------------------------------------ the nursery

    def _connection(self, slot: int) -> tuple[int, Connection]:
        """The way to a grader, and the generation of its nursery; starts one where there is none."""
        with self._lock:
            while self._nursery is None:
                self._refuse()
                self._start()
            return self._generation, self._connections[slot]

    def _refuse(self) -> None:
        """Raises where no nursery shall be started any more."""
        if self._closed:
            raise RuntimeFailure("the verifier was closed before it had graded everything")
        if self._fruitless >= NURSERIES:
            raise RuntimeFailure(f"the verifier's processes do not start or do not last: {self._last_error()}")
        if find_spec("math_verify") is None:
            raise ValueError("math-verify is not installed; pip install 'math-verify[antlr4_9_3]>=0.9,<0.10'.")

    def _start(self) -> None:
        """A nursery with its graders, ready to be asked; none if it fails."""
        self._generation += 1
        self._fruitless += 1
        pairs = [socket.socketpair() for _ in range(self.workers)]
        fds = [theirs.fileno() for _, theirs in pairs]
        limits = [str(self.processor_time), str(self.deadline)]
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - read when nurseries fail
        self._nursery = subprocess.Popen(
            [sys.executable, "-P", "-m", "nemo_tapo.grading.grader", *limits, *map(str, fds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=fds,
            env=_environment(),
            start_new_session=True,  # a Ctrl-C in the terminal is not for it; and one kill reaches all of it
        )
        self._connections = [Connection(ours.detach()) for ours, _ in pairs]
        for _, theirs in pairs:
            theirs.close()
        if not self._is_ready():
            self._kill()

    def _is_ready(self) -> bool:
        until = time.monotonic() + START_SECONDS
        while time.monotonic() < until and not self._closed:
            if self._connections[0].poll(0.2):
                try:
                    return bool(json.loads(self._connections[0].recv_bytes())["ready"])
                except (EOFError, OSError):
                    return False
        return False

    def _replace(self, generation: int) -> None:
        """Gives a nursery up, unless another thread has done so already."""
        with self._lock:
            if generation == self._generation:
                self._kill()

    def _kill(self) -> None:
        """Ends nursery and graders. Their connections are left to the threads that wait on them: they read the end."""
        if self._nursery is None:
            return
        self._nursery.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._nursery.wait(LEAVE_SECONDS)
        with suppress(ProcessLookupError):  # all gone, as they should be
            os.killpg(self._nursery.pid, signal.SIGKILL)
        self._nursery.wait()
        self._nursery = None

    def _last_error(self) -> str:
        if self._errors is None:
            return "nothing was written"
        self._errors.seek(0)
        lines = self._errors.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "they ended without a word"


def _environment() -> dict[str, str]:
    """Ours, with this package to be found, and hashes fixed: sympy's ways depend on them, a verdict should not."""
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, path))}
