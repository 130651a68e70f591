"""The verifier's processes: `python -m nemo_tapo.grading.grader CPU_SECONDS SECONDS FD...`, one FD a grader.

    verifier (pool.py) --Popen--> nursery --fork--> grader 0   request <-> verdict over FD 0
                                    |   '---fork--> grader 1   ...
                                    '-- waits; a grader that dies is reported on its FD and replaced by another fork

The nursery imports and warms math-verify once, so a fresh grader costs milliseconds. While a grader works, two timers
run whose signals nobody catches: the kernel ends the process even inside C code. SIGPROF is for processor time, which
does not depend on what else the machine does; SIGALRM for time on the clock. When the verifier goes away, however it
does, the graders read end-of-file and leave, and then so does the nursery. Messages are JSON.
"""

from __future__ import annotations

import gc
import json
import os
import resource
import signal
import sys
import traceback
from collections.abc import Sequence
from multiprocessing.connection import Connection
from types import FrameType
from typing import Any, NoReturn

TIMERS = {signal.SIGPROF: signal.ITIMER_PROF, signal.SIGALRM: signal.ITIMER_REAL}
ANSWERS = 5_000  # after so many a grader is replaced: the parser never forgets what it learned
MEMORY = 512 << 20  # bytes a grader may use beyond what the nursery has
PATIENCE = 20  # times the time on the clock for a gold answer: which rows are used must not depend on the load
RETIRED, BROKEN = 3, 4  # exit codes of a grader; 0: the verifier has gone


def main(arguments: list[str]) -> int:
    """The nursery. Returns when the verifier has gone, or 1 when a grader failed by our own fault."""
    limits = (float(arguments[0]), float(arguments[1]))  # in the order of TIMERS
    connections = [Connection(int(fd)) for fd in arguments[2:]]
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # what the verifier blocks or ignores is inherited
    for signum in (*TIMERS, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    from nemo_tapo.grading.equivalence import warm_up

    warm_up()
    gc.collect()
    gc.freeze()  # graders share these pages; a collection would copy them
    _send(connections[0], {"ready": True})
    graders: dict[int, int] = {}  # process id -> slot
    signal.signal(signal.SIGTERM, _leave)
    try:
        graders = {_fork(i, connections, limits): i for i in range(len(connections))}
        while graders:
            pid, status = os.wait()
            slot = graders.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code == BROKEN:
                return 1
            if code == RETIRED or (code != 0 and _send(connections[slot], {"died": code})):
                graders[_fork(slot, connections, limits)] = slot
    finally:
        for pid in graders:  # whoever started them has to wait for them, or they stay as zombies
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return 0


def _leave(signum: int, frame: FrameType | None) -> NoReturn:
    sys.exit(0)


def _send(connection: Connection, message: dict[str, Any]) -> bool:
    """Whether somebody is there to read it."""
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:
        return False
    return True


def _fork(slot: int, connections: list[Connection], limits: tuple[float, ...]) -> int:
    """A new grader; its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for other in connections[:slot] + connections[slot + 1 :]:
            other.close()
        code = _serve(connections[slot], limits)
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve(connection: Connection, limits: tuple[float, ...]) -> int:
    """A grader: answers requests until the verifier goes or its own time has come."""
    _limit_memory()
    for _ in range(ANSWERS):
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return 0
        processor_time, deadline = limits
        signal.setitimer(signal.ITIMER_PROF, processor_time)
        signal.setitimer(signal.ITIMER_REAL, deadline * patience(request["question"]))
        verdict = _verdict(*request["question"])
        for timer in TIMERS.values():
            signal.setitimer(timer, 0)
        if not _send(connection, {"id": request["id"], "verdict": verdict}):
            return 0
    return RETIRED


def patience(question: Sequence[str]) -> int:
    """By how much the deadline of a question is stretched."""
    return PATIENCE if question[0] == "fault" else 1


def _verdict(what: str, *texts: str) -> str | None:
    from nemo_tapo.grading import equivalence

    try:
        return equivalence.compare(*texts) if what == "compare" else equivalence.fault(*texts)
    except (MemoryError, RecursionError):
        return "too_large" if what == "compare" else "is too large to be worked out"


def _limit_memory() -> None:
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # no Linux: the timers have to do
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + MEMORY
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
