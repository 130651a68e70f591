"""Manage the grader processes for the verifier: each question gets a verdict, or a reason why there is none.

One thread per grader sends it one question at a time (grader.py is the other side), so this code needs no event loop.
Graders may be killed at any time; a grader that dies loses at most the question that it works on. An answer that kills
every grader that reads it is given up and counted, however many follow. Only graders that cannot be started are a
failure of the whole.
"""

from __future__ import annotations

import asyncio
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
import weakref
from concurrent.futures import Future
from contextlib import suppress
from dataclasses import dataclass
from importlib.util import find_spec
from multiprocessing.connection import Connection
from pathlib import Path
from typing import IO, Any

from nemo_tapo.grading.grader import FUNCTIONS_OPTION, get_deadline_factor
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.process_memory import list_children

START_SECONDS = 180.0  # enough to import from a slow disk
SHUTDOWN_SECONDS = 2.0  # for the fork server to end its graders; then all are killed
GRACE_SECONDS = 5.0  # added to the deadline: by then the grader's own timer should have ended it
FAILURE_BY_EXIT_CODE = {-signal.SIGPROF: "processor_time", -signal.SIGALRM: "clock_time"}
# Graders that may die over one question. A new one is only a fork, and a kill from outside may hit a question twice.
GRADERS_PER_QUESTION = 5
MAX_FAILED_STARTS = 3  # fork servers in a row whose graders do not get ready

Question = tuple[str, ...]  # ("compare", gold, answer), ("fault", gold), normalised; ("call", number, JSON)


@dataclass(frozen=True)
class GraderReply:
    """The reply to one question: a verdict, or the reason why there is none.

    >>> GraderReply("right"), GraderReply(None, "died")
    (GraderReply(verdict='right', failure=None), GraderReply(verdict=None, failure='died'))
    """

    verdict: str | None  # the result of equivalence.compare_answers, .find_gold_fault or calls.answer_call
    failure: str | None = None  # set if there is no verdict: "processor_time", "clock_time" or "died"


_POOLS: weakref.WeakSet[GraderPool] = weakref.WeakSet()  # of this process


def list_grader_processes() -> list[int]:
    """Return the ids of every fork server and grader that this process has started and that still runs."""
    servers = [server.pid for pool in list(_POOLS) if (server := pool._fork_server) is not None]
    return [pid for server in servers for pid in (server, *list_children(server))]


class GraderPool:
    """A pool of `workers` graders, which the first question starts.

    A question may take `deadline` seconds of wall-clock time, and `processor_time` seconds of the grader's processor.
    """

    def __init__(self, workers: int, deadline: float, processor_time: float, functions: str | None = None) -> None:
        """Prepare the pool. `functions` are a user's, as `calls.encode_functions` wrote them; None: math-verify."""
        self.workers, self.deadline, self.processor_time = workers, deadline, processor_time
        self.functions = functions
        self.deaths = 0  # graders that died, or did not answer, while they worked on a question
        self._questions: queue.SimpleQueue[tuple[Future[GraderReply], Question] | None] = queue.SimpleQueue()
        self._numbers = itertools.count()
        # Reentrant: a garbage collection inside a locked block may finalize the verifier, which closes this pool.
        self._queue_lock = threading.RLock()  # protects the next two
        self._threads: list[threading.Thread] = []
        self._closed = False
        self._server_lock = threading.RLock()  # protects the rest; held while a fork server starts
        self._fork_server: subprocess.Popen[bytes] | None = None
        self._connections: list[Connection] = []
        self._generation = 0  # number of the current fork server
        self._failed_starts = 0  # fork servers in a row whose graders did not get ready
        self._stderr: IO[bytes] | None = None  # standard error of the latest fork server
        _POOLS.add(self)

    def submit(self, question: Question) -> Future[GraderReply]:
        """Queue a question and return at once.

        The future raises RuntimeFailure if no process can be started, and ValueError if math-verify is missing.
        """
        with self._queue_lock:
            assert not self._closed, "the verifier is closed"
            if not self._threads:
                self._threads = [
                    threading.Thread(target=self._answer_questions, args=(i,), daemon=True) for i in range(self.workers)
                ]
                for thread in self._threads:
                    thread.start()
            future: Future[GraderReply] = Future()
            self._questions.put((future, question))
        return future

    def close(self) -> None:
        """End every process; questions still in the queue fail. May be called twice."""
        with self._queue_lock:
            self._closed = True
            threads, self._threads = self._threads, []
            for _ in threads:
                self._questions.put(None)  # after the questions, which `_get_connection` now refuses
        with self._server_lock:
            self._kill_fork_server()
        if threading.current_thread() not in threads:
            for thread in threads:
                thread.join()

    # ------------------------------------------------------------------------------ a grader's thread

    def _answer_questions(self, slot: int) -> None:
        """Take questions from the queue until `close`; runs in the thread of one grader."""
        while (item := self._questions.get()) is not None:
            future, question = item
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._ask_grader(slot, question))
            except BaseException as error:
                future.set_exception(error)

    def _ask_grader(self, slot: int, question: Question) -> GraderReply:
        """Ask a grader, and its replacements if it dies for another reason than a time limit."""
        number = next(self._numbers)
        for _ in range(GRADERS_PER_QUESTION):
            message = self._exchange(slot, {"id": number, "question": question})
            if "died" not in message:
                return GraderReply(message["verdict"])
            self.deaths += 1
            if message["died"] in FAILURE_BY_EXIT_CODE:
                return GraderReply(None, FAILURE_BY_EXIT_CODE[message["died"]])
        return GraderReply(None, "died")

    def _exchange(self, slot: int, request: dict[str, Any]) -> dict[str, Any]:
        """Send a request. Return the grader's answer to it, or a message that the grader died.

        If neither comes, the fork server is discarded, and the grader counts as dead.
        """
        generation, connection = self._get_connection(slot)
        try:
            connection.send_bytes(json.dumps(request).encode())
            while connection.poll(self.deadline * get_deadline_factor(request["question"]) + GRACE_SECONDS):
                message: dict[str, Any] = json.loads(connection.recv_bytes())
                if "died" in message or message.get("id") == request["id"]:
                    return message
                # else: a new grader is ready, or a late answer to an earlier question
        except (EOFError, OSError):
            pass  # fork server and grader are gone
        self._discard_fork_server(generation)
        return {"died": None}

    # ------------------------------------------------------------------------------ the fork server

    def _get_connection(self, slot: int) -> tuple[int, Connection]:
        """Return the generation of the fork server and the connection to a grader; start a server if none runs."""
        with self._server_lock:
            while self._fork_server is None:
                self._check_startable()
                self._start_fork_server()
            return self._generation, self._connections[slot]

    def _check_startable(self) -> None:
        """Check that another fork server may be started.

        Raises RuntimeFailure if the pool is closed or too many starts have failed, and ValueError if math-verify is
        missing.
        """
        if self._closed:
            raise RuntimeFailure("the verifier was closed before it had graded everything")
        if self._failed_starts >= MAX_FAILED_STARTS:
            raise RuntimeFailure(
                f"the verifier's processes did not start {MAX_FAILED_STARTS} times in a row: {self._read_last_error()}"
            )
        if self.functions is None and find_spec("math_verify") is None:
            raise ValueError("math-verify is not installed; pip install 'math-verify[antlr4_9_3]>=0.9,<0.10'.")

    def _start_fork_server(self) -> None:
        """Start a fork server and wait until its graders are ready; stop it if they are not."""
        self._generation += 1
        self._failed_starts += 1
        pairs = [socket.socketpair() for _ in range(self.workers)]
        fds = [theirs.fileno() for _, theirs in pairs]
        limits = [str(self.processor_time), str(self.deadline)]
        functions = [] if self.functions is None else [FUNCTIONS_OPTION, self.functions]
        self._stderr = tempfile.TemporaryFile()  # noqa: SIM115 - read when fork servers fail
        self._fork_server = subprocess.Popen(
            [sys.executable, "-P", "-m", "nemo_tapo.grading.grader", *limits, *map(str, fds), *functions],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=self._stderr,
            pass_fds=fds,
            env=_make_environment(),
            start_new_session=True,  # no Ctrl-C from the terminal; one kill ends the whole group
        )
        self._connections = [Connection(ours.detach()) for ours, _ in pairs]
        for _, theirs in pairs:
            theirs.close()
        if self._wait_until_ready():
            self._failed_starts = 0
        else:
            self._kill_fork_server()

    def _wait_until_ready(self) -> bool:
        """Wait until every grader is ready; return False if one ended, took too long, or the pool was closed."""
        until = time.monotonic() + START_SECONDS
        for connection in self._connections:
            while not connection.poll(0.2):
                if time.monotonic() > until or self._closed:
                    return False
            try:
                if "ready" not in json.loads(connection.recv_bytes()):
                    return False
            except (EOFError, OSError):
                return False
        return True

    def _discard_fork_server(self, generation: int) -> None:
        """Stop a fork server, unless another thread has already stopped it."""
        with self._server_lock:
            if generation == self._generation:
                self._kill_fork_server()

    def _kill_fork_server(self) -> None:
        """End the fork server and its graders.

        Their connections stay open for the threads that wait on them, which then read end-of-file.
        """
        if self._fork_server is None:
            return
        self._fork_server.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._fork_server.wait(SHUTDOWN_SECONDS)
        with suppress(ProcessLookupError):  # all have ended, as they should
            os.killpg(self._fork_server.pid, signal.SIGKILL)
        self._fork_server.wait()
        self._fork_server = None

    def _read_last_error(self) -> str:
        """Return the last line of the latest fork server's standard error."""
        if self._stderr is None:
            return "nothing was written"
        self._stderr.seek(0)
        lines = self._stderr.read().decode(errors="replace").strip().splitlines()
        return lines[-1] if lines else "they ended without a word"


async def await_reply(future: Future[GraderReply]) -> GraderReply:
    """Wait for a reply in the running event loop.

    A cancelled wait does not cancel the question, because others may wait for the same reply.
    """
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def notify(_: Future[GraderReply]) -> None:
        with suppress(RuntimeError):  # the loop is closed, so nobody waits any more
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(notify)
    await waiter
    return future.result()


def _make_environment() -> dict[str, str]:
    """Return this process's environment with the package's path and a fixed hash seed.

    sympy's algorithms depend on hashes; a verdict should not.
    """
    path = [str(Path(__file__).parents[2]), os.environ.get("PYTHONPATH", "")]
    return {**os.environ, "PYTHONHASHSEED": "0", "PYTHONPATH": os.pathsep.join(filter(None, path))}
