"""Run the verifier's processes: `python -m nemo_tapo.grading.grader CPU_SECONDS SECONDS FD...`, one FD per grader.

    verifier (pool.py) --Popen--> fork server --fork--> grader 0   request <-> verdict over FD 0
                                      |     '---fork--> grader 1   ...
                                      '-- waits; reports a grader that dies on its FD and forks another one

The fork server imports and warms up math-verify once, so a new grader costs milliseconds. With `--functions JSON` at
the end it imports a user's reward functions instead (calls.py). While a grader works, two
timers run whose signals have no handler, so the kernel ends the process even inside C code. SIGPROF limits processor
time, which does not depend on the machine's load. SIGALRM limits wall-clock time. Whatever else goes wrong over one
answer is an exception, and that answer's verdict. When the verifier ends, for whatever reason, the graders read
end-of-file and exit, and then the fork server exits. Messages are JSON; a grader's first is that it is ready.
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
ANSWERS_PER_GRADER = 5_000  # then the grader is replaced, because the parser's cache only grows
MEMORY = 512 << 20  # bytes that a grader may use beyond what the fork server uses
MEMORY_OF_FUNCTIONS = 4 << 30  # the same if it calls a user's functions
FUNCTIONS_OPTION = "--functions"
# A gold answer gets this many times the wall-clock limit: which rows are used must not depend on the machine's load.
GOLD_DEADLINE_FACTOR = 20
RETIRED, BROKEN = 3, 4  # exit codes of a grader; 0: the verifier has ended


def main(arguments: list[str]) -> int:
    """Run the fork server. Return 0 when the verifier has ended, or 1 if this module's own code failed in a grader."""
    functions = arguments[-1] if FUNCTIONS_OPTION in arguments else None
    limits = (float(arguments[0]), float(arguments[1]))  # in the order of TIMERS
    connections = [Connection(int(fd)) for fd in (arguments[2:] if functions is None else arguments[2:-2])]
    signal.pthread_sigmask(signal.SIG_SETMASK, [])  # the verifier's blocked and ignored signals are inherited
    for signum in (*TIMERS, signal.SIGCHLD):
        signal.signal(signum, signal.SIG_DFL)
    if functions is None:
        from nemo_tapo.grading.equivalence import warm_up

        warm_up()
    else:
        from nemo_tapo.grading.calls import load_functions

        load_functions(functions)
    gc.collect()
    gc.freeze()  # graders share these pages; a collection would copy them
    memory = MEMORY if functions is None else MEMORY_OF_FUNCTIONS
    graders: dict[int, int] = {}  # process id -> slot
    signal.signal(signal.SIGTERM, _exit)
    try:
        graders = {_fork_grader(i, connections, limits, memory): i for i in range(len(connections))}
        while graders:
            pid, status = os.wait()
            slot = graders.pop(pid)
            code = os.waitstatus_to_exitcode(status)
            if code == BROKEN:
                return 1
            if code == RETIRED or (code != 0 and _send(connections[slot], {"died": code})):
                graders[_fork_grader(slot, connections, limits, memory)] = slot
    finally:
        for pid in graders:  # the parent has to wait for them, or they stay as zombies
            os.kill(pid, signal.SIGKILL)
            os.waitpid(pid, 0)
    return 0


def _exit(signum: int, frame: FrameType | None) -> NoReturn:
    """Exit on SIGTERM through the `finally` of `main`."""
    sys.exit(0)


def _send(connection: Connection, message: dict[str, Any]) -> bool:
    """Send a message; return False if the other end is closed."""
    try:
        connection.send_bytes(json.dumps(message).encode())
    except OSError:
        return False
    return True


def _fork_grader(slot: int, connections: list[Connection], limits: tuple[float, ...], memory: int) -> int:
    """Fork a grader and return its process id."""
    pid = os.fork()
    if pid:
        return pid
    code = BROKEN
    try:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)
        for other in connections[:slot] + connections[slot + 1 :]:
            other.close()
        code = _serve_requests(connections[slot], limits, memory)
    except Exception:
        traceback.print_exc()
    finally:
        sys.stderr.flush()
        os._exit(code)


def _serve_requests(connection: Connection, limits: tuple[float, ...], memory: int) -> int:
    """Answer requests in a grader until the verifier ends or the grader is to be replaced. Return the exit code."""
    _limit_memory(memory)
    _send(connection, {"ready": True})
    for _ in range(ANSWERS_PER_GRADER):
        try:
            request = json.loads(connection.recv_bytes())
        except (EOFError, OSError):
            return 0
        processor_time, deadline = limits
        signal.setitimer(signal.ITIMER_PROF, processor_time)
        signal.setitimer(signal.ITIMER_REAL, deadline * get_deadline_factor(request["question"]))
        verdict = _compute_verdict(*request["question"])
        for timer in TIMERS.values():
            signal.setitimer(timer, 0)
        if not _send(connection, {"id": request["id"], "verdict": verdict}):
            return 0
    return RETIRED


def get_deadline_factor(question: Sequence[str]) -> int:
    """Return the factor by which the wall-clock limit of a question is multiplied.

    >>> get_deadline_factor(("compare", "5", "x")), get_deadline_factor(("fault", "5"))
    (1, 20)
    """
    return GOLD_DEADLINE_FACTOR if question[0] == "fault" else 1


def _compute_verdict(kind: str, *texts: str) -> str | None:
    """Answer one question: compare an answer with the gold answer, find the fault of a gold answer, call a function.

    Whatever is raised meanwhile, by any library and of any type, is the verdict of this one answer.
    """
    if kind == "call":
        from nemo_tapo.grading import calls

        return calls.answer_call(*texts)
    from nemo_tapo.grading import equivalence

    try:
        return equivalence.compare_answers(*texts) if kind == "compare" else equivalence.find_gold_fault(*texts)
    except (MemoryError, RecursionError):
        return "too_large" if kind == "compare" else "is too large to be worked out"
    except BaseException as error:  # math-verify's TimeoutException is no Exception
        return "raised" if kind == "compare" else f"cannot be worked out ({type(error).__name__})"


def _limit_memory(memory: int) -> None:
    """Limit the address space to `memory` bytes beyond its present size."""
    try:
        with open("/proc/self/statm") as file:
            used = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not Linux: only the timers limit it
        return
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    wanted = used + memory
    resource.setrlimit(resource.RLIMIT_AS, (wanted if hard == resource.RLIM_INFINITY else min(wanted, hard), hard))


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    sys.exit(main(sys.argv[1:]))
