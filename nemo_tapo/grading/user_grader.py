"""Grade responses by a user's functions: plain ones in processes that can be killed, `async` ones in this process.

UserGrader --("call", number, JSON)--> pool.py --> grader.py --> calls.answer_call --> the function
"""

from __future__ import annotations

import asyncio
import json
import weakref
from collections.abc import Callable, Sequence
from typing import Any

from nemo_tapo.config.sections import GradingConfig
from nemo_tapo.grading.calls import (
    FunctionSpec,
    encode_call,
    encode_functions,
    is_asynchronous,
    load_function,
    make_failure,
    read_grade,
)
from nemo_tapo.grading.pool import GraderPool, await_reply
from nemo_tapo.types import Grade, Query
from nemo_tapo.utils.user_code import describe_error


class UserGrader:
    """Several functions that grade, by number. Processes start at the first grade that needs one."""

    def __init__(self, cfg: GradingConfig, specs: Sequence[FunctionSpec]) -> None:
        """Load the functions here too, to see what they are; a class stays with the graders.

        Raises ValueError with a sentence for one that cannot be used.
        """
        self.cfg, self.specs = cfg, list(specs)
        self._here: dict[int, Callable[..., Any]] = {}  # asynchronous ones
        for number, spec in enumerate(self.specs):
            if not spec.is_class and is_asynchronous(function := load_function(spec)):
                self._here[number] = function
        self._pool = GraderPool(cfg.workers, cfg.deadline, cfg.deadline, encode_functions(self.specs))
        self._finalizer = weakref.finalize(self, self._pool.close)  # also when the interpreter ends

    async def grade(self, number: int, query: Query, response: str) -> Grade:
        """Grade by function `number`. A grade that is none says why; raises RuntimeFailure if no process can start."""
        if number in self._here:
            return await call_here(self._here[number], (response, query), self.cfg.deadline)
        reply = await await_reply(self._pool.submit(("call", str(number), encode_call(query, response))))
        if reply.failure == "died":
            return make_failure("died", "its process died")
        if reply.failure is not None:
            return make_failure("timeout", f"no answer in {self.cfg.deadline:g} s")
        assert reply.verdict is not None
        return Grade(**json.loads(reply.verdict))

    def close(self) -> None:
        """End the processes. May be called twice."""
        self._finalizer()


async def call_here(function: Callable[..., Any], arguments: tuple[Any, ...], deadline: float) -> Grade:
    """Await an asynchronous function in this process, at most `deadline` seconds.

    A function that blocks the event loop cannot be ended.
    """
    try:
        async with asyncio.timeout(deadline) as limit:
            value = await function(*arguments)
    except TimeoutError as error:
        if limit.expired():
            return make_failure("timeout", f"no answer in {deadline:g} s")
        return make_failure("raised", describe_error(error))
    except Exception as error:
        return make_failure("raised", describe_error(error))
    return read_grade(value)
