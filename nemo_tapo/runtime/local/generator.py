"""The driver's side of the engine: many coroutines wait, one task talks to the engine's process."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from nemo_tapo.runtime.local.engine import EngineInfo, KeyedRequest, KeyedResult
from nemo_tapo.runtime.local.ray_calls import await_ray_answer
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.errors import RuntimeFailure


class LocalGenerator:
    """Implementation of `interfaces.Generator` over a VllmEngine in a Ray actor.

    `generate` adds its request to a list and waits. While any request waits, one pump task sends the list to the
    engine and delivers the completions. If the engine is lost, every waiting call raises RuntimeFailure.
    """

    def __init__(self, engine: Any, info: EngineInfo, call_timeout: float) -> None:
        """Store the Ray handle `engine`. `call_timeout`, in seconds, limits one exchange or one weight update."""
        self.max_model_len = info.max_model_len
        self.pid = info.pid
        self._engine = engine
        self._who = f"the vLLM engine (process {info.pid})"
        self._timeout = call_timeout
        self._keys = itertools.count()  # uids need not be unique among requests in flight
        self._new: list[KeyedRequest] = []
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._failure_reason: str | None = None  # why the engine is gone

    async def generate(self, request: Request) -> Completion:
        """Sample one completion.

        Raises ValueError if prompt and max_tokens do not fit the engine, RuntimeFailure if the engine is lost.
        """
        if self._failure_reason is not None:
            raise RuntimeFailure(self._failure_reason)
        key = next(self._keys)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._new.append((key, request))
        self._waiting[key] = future
        if self._pump is None:
            self._pump = asyncio.create_task(self._pump_requests(), name="generator pump")
        return await future

    async def update_weights(self, weights: Any) -> None:
        """Send `weights` to the engine: {Hugging Face name: tensor}, or a Ray reference to one.

        Raises RuntimeFailure if the engine is lost.
        """
        if self._failure_reason is not None:
            raise RuntimeFailure(self._failure_reason)
        assert not self._waiting, f"weights may not change while {len(self._waiting)} requests are in flight"
        await await_ray_answer(self._engine.update_weights.remote(weights), self._who, self._timeout)

    async def _pump_requests(self) -> None:
        try:
            while self._waiting:
                # Requests made in the same tick join the same exchange, so the batches are reproducible.
                await asyncio.sleep(0)
                new, self._new = self._new, []
                self._deliver(await await_ray_answer(self._engine.exchange.remote(new), self._who, self._timeout))
        except Exception as failure:  # any failure has to reach the waiting calls
            self._fail_all(f"{failure}" if isinstance(failure, RuntimeFailure) else f"{self._who}: {failure!r}")
        finally:
            self._pump = None

    def _deliver(self, finished: list[KeyedResult]) -> None:
        for key, result in finished:
            future = self._waiting.pop(key)
            if future.done():  # its coroutine was cancelled
                continue
            if isinstance(result, Completion):
                future.set_result(result)
            else:
                future.set_exception(result)

    def _fail_all(self, why: str) -> None:
        self._failure_reason = why
        waiting, self._waiting, self._new = self._waiting, {}, []
        for future in waiting.values():
            if not future.done():
                future.set_exception(RuntimeFailure(why))
