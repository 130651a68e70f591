"""The driver's side of the engine: many waiting coroutines, one conversation with the engine's process."""

from __future__ import annotations

import asyncio
import itertools
from typing import Any

from nemo_tapo.runtime.local.engine import EngineInfo, Finished, Keyed
from nemo_tapo.runtime.local.ray_calls import answer
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.errors import RuntimeFailure


class LocalGenerator:
    """`interface.Generator` over a VllmEngine in a Ray actor.

    `generate` leaves its request in a list and waits; one pump task carries the list to the engine and brings
    completions back as long as anybody waits. When the engine is lost, everybody is told.
    """

    def __init__(self, engine: Any, info: EngineInfo, call_timeout: float) -> None:
        """`engine` is the Ray handle; `call_timeout` in seconds, of one exchange or one weight update."""
        self.max_model_len = info.max_model_len
        self.pid = info.pid
        self._engine = engine
        self._who = f"the vLLM engine (process {info.pid})"
        self._timeout = call_timeout
        self._keys = itertools.count()  # uids need not be unique among requests in flight
        self._new: list[Keyed] = []
        self._waiting: dict[int, asyncio.Future[Completion]] = {}
        self._pump: asyncio.Task[None] | None = None
        self._lost: str | None = None  # why the engine is gone

    async def generate(self, request: Request) -> Completion:
        """Sample one completion.

        Raises ValueError if prompt and max_tokens do not fit the engine, RuntimeFailure if the engine is lost.
        """
        if self._lost is not None:
            raise RuntimeFailure(self._lost)
        key = next(self._keys)
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._new.append((key, request))
        self._waiting[key] = future
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="generator pump")
        return await future

    async def update_weights(self, weights: Any) -> None:
        """Take `Actor.weights()`: {Hugging Face name: tensor}, or a Ray reference to one."""
        if self._lost is not None:
            raise RuntimeFailure(self._lost)
        assert not self._waiting, f"weights may not change while {len(self._waiting)} requests are in flight"
        await answer(self._engine.update_weights.remote(weights), self._who, self._timeout)

    async def _run(self) -> None:
        try:
            while self._waiting:
                # Whoever starts in this tick joins this exchange, so that a batch has one composition.
                await asyncio.sleep(0)
                new, self._new = self._new, []
                self._deliver(await answer(self._engine.exchange.remote(new), self._who, self._timeout))
        except Exception as failure:  # whatever it is, those who wait have to hear it
            self._lose(f"{failure}" if isinstance(failure, RuntimeFailure) else f"{self._who}: {failure!r}")
        finally:
            self._pump = None

    def _deliver(self, finished: list[Finished]) -> None:
        for key, result in finished:
            future = self._waiting.pop(key)
            if future.done():  # its coroutine was cancelled
                continue
            if isinstance(result, Completion):
                future.set_result(result)
            else:
                future.set_exception(result)

    def _lose(self, why: str) -> None:
        self._lost = why
        waiting, self._waiting, self._new = self._waiting, {}, []
        for future in waiting.values():
            if not future.done():
                future.set_exception(RuntimeFailure(why))
