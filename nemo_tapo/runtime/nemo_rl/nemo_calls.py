"""Call into NeMo-RL: off the event loop, with a deadline, and with failures that name who failed.

NeMo-RL's calls block until Ray answers, and Ray waits for ever. A worker that hangs (in a collective operation, a file
system, a kernel) would hold its GPUs until the job's time limit. So every call has a deadline, `tapo.start_timeout` for
the start of engines and workers and `tapo.call_timeout` for everything after it.
"""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any, TypeVar

from nemo_tapo.utils.errors import RuntimeFailure, is_full_disk

Result = TypeVar("Result")
CALL_TIMEOUT = 3600.0  # seconds; the default of tapo.call_timeout
START_TIMEOUT = 7200.0  # seconds; the default of tapo.start_timeout: converting a large model takes most of an hour
CLOSE_TIMEOUT = 120.0  # seconds for each part at the end: NeMo-RL itself waits 30 and then ends its workers


async def run_blocking(call: Callable[[], Result], who: str, seconds: float, setting: str = "call_timeout") -> Result:
    """Run a call that blocks on Ray in a thread and return its result.

    `who` names the one who answers, `setting` the key below `tapo` that `seconds` come from. Raises RuntimeFailure
    if there is no answer in time, and what `nemo_errors_as_runtime_failure` raises. A call that hangs keeps its thread,
    which does not keep the process from ending.
    """
    with nemo_errors_as_runtime_failure(who):
        return await wait_for_answer(_start_in_thread(call), who, seconds, setting)


async def await_ray(object_ref: Any, who: str, seconds: float) -> Any:
    """Return the value of a Ray object reference; `who`, `seconds` and the errors are those of `run_blocking`."""
    with nemo_errors_as_runtime_failure(who):
        return await wait_for_answer(object_ref, who, seconds)


async def wait_for_answer(answer: Awaitable[Result], who: str, seconds: float, setting: str = "call_timeout") -> Result:
    """Return the answer of `who`. Raises RuntimeFailure if it takes more than `seconds`, the value of `setting`."""
    try:
        async with asyncio.timeout(seconds) as limit:
            return await answer
    except TimeoutError as error:
        if not limit.expired():  # the answer itself is a TimeoutError
            raise
        raise RuntimeFailure(_describe_silence(who, seconds, setting)) from error


def run_in_time(call: Callable[[], Result], who: str, seconds: float, setting: str = "call_timeout") -> Result:
    """Do what `run_blocking` does, outside an event loop or where it may stand still."""
    answers: list[Callable[[], Result]] = []
    thread = threading.Thread(target=lambda: answers.append(_catch(call)), daemon=True, name=who)
    thread.start()
    thread.join(seconds)
    if not answers:
        raise RuntimeFailure(_describe_silence(who, seconds, setting))
    with nemo_errors_as_runtime_failure(who):
        return answers[0]()


def _describe_silence(who: str, seconds: float, setting: str) -> str:
    return f"{who} did not answer within {seconds:g} seconds (tapo.{setting}): it hangs, or the limit is too short."


def _catch(call: Callable[[], Result]) -> Callable[[], Result]:
    """Make the call; return a function that returns its result or raises its error."""
    try:
        result = call()
    except BaseException as error:
        failure = error  # the name `error` ends with the block

        def fail() -> Result:
            raise failure

        return fail
    return lambda: result


def _start_in_thread(call: Callable[[], Result]) -> Awaitable[Result]:
    """Start the call in a daemon thread: asyncio's own threads would be waited for at exit, hanging or not."""
    loop = asyncio.get_running_loop()
    done: asyncio.Future[Callable[[], Result]] = loop.create_future()

    def finish(answer: Callable[[], Result]) -> None:
        if not done.done():  # else nobody waits any more
            done.set_result(answer)

    def work() -> None:
        answer = _catch(call)
        with suppress(RuntimeError):  # the event loop is closed
            loop.call_soon_threadsafe(finish, answer)

    threading.Thread(target=work, daemon=True, name="a call into NeMo-RL").start()

    async def wait() -> Result:
        return (await done)()

    return wait()


@contextmanager
def nemo_errors_as_runtime_failure(who: str) -> Iterator[None]:
    """Turn the errors of Ray and of NeMo-RL inside the block into RuntimeFailure that says `who` failed.

    A ValueError, an AssertionError or a full disk that a worker raised is re-raised unchanged: the worker is alive, and
    the message explains the fault. NeMo-RL raises RuntimeError itself, for example when a refit does not succeed.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RuntimeFailure:
        raise
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | AssertionError) or is_full_disk(error.cause):
            raise error.cause from error
        raise RuntimeFailure(f"{who} failed: {error.cause!r}\n{error}") from error
    except RayError as error:
        raise RuntimeFailure(f"{who} was lost: {error}") from error
    except (RuntimeError, TimeoutError, ConnectionError) as error:
        raise RuntimeFailure(f"{who} failed: {error!r}") from error
