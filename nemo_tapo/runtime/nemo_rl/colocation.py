"""Whose turn it is on the GPUs: the engine's, scoring's, training's. One place that knows NeMo-RL's order of calls.

```
 generating --finish_generation--> scoring --> training --> (checkpoint) --+
     ^          engine sleeps       prepare_for_   prepare_for_training      | weights are new: stale
     |                              lp_inference                             |
     +---- refit_policy_generation (stale), or offload + wake <--------------+
```
A phase is entered by whoever needs it, when it needs it: the loop knows nothing of memory. So synthesis, which asks the
engine while rollouts are still in flight or just done, always comes before the engine sleeps; the engine is refitted
once after the last of a step's updates; and a checkpoint is written while the engine sleeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from nemo_tapo.utils.errors import RuntimeFailure

Phase = Literal["asleep", "generating", "scoring", "training"]


class Phases:
    """The turns of one policy (NeMo-RL's Policy) and its engine (a GenerationInterface).

    NeMo-RL's calls block until Ray answers; each runs in a thread, one at a time, so that the loop goes on.
    """

    def __init__(
        self, policy: Any, engine: Any, colocated: bool, refit: Callable[[Any, Any, bool], object], stale: bool = True
    ) -> None:
        """`refit` hands the policy's weights to the engine; `stale`: the engine does not hold them yet."""
        self.policy, self.engine, self.colocated, self._refit = policy, engine, colocated, refit
        self.phase: Phase = "asleep"  # NeMo-RL's setup leaves the engine so
        self.stale = stale
        self.in_flight = 0  # requests with the engine
        self.seconds: dict[str, float] = {}  # spent in the changes since `take_times`
        self._turn = asyncio.Lock()

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        """The engine holds the policy's weights and is awake inside; many may be inside at once."""
        if self.phase != "generating" or self.stale:
            async with self._turn:
                if self.phase != "generating" or self.stale:  # another may have waited for the same
                    await self._wake()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def scoring(self, call: Callable[[], Any]) -> Any:
        """`call()` with the policy ready for forward passes."""
        return await self._in("scoring", call)

    async def training(self, call: Callable[[], Any]) -> Any:
        """`call()` with the policy ready for an update or for a checkpoint."""
        return await self._in("training", call)

    def take_times(self) -> dict[str, float]:
        """Seconds of the changes since the last call, by NeMo-RL's names."""
        times, self.seconds = self.seconds, {}
        return times

    async def _in(self, phase: Literal["scoring", "training"], call: Callable[[], Any]) -> Any:
        async with self._turn:
            if self.phase != phase:
                assert not self.in_flight, f"{self.in_flight} requests in flight: the engine must not be put to sleep"
                if self.phase == "generating":
                    await self._change("finish_generation", self._sleep)
                if phase == "scoring":
                    await self._change("logprob_inference_prep", self.policy.prepare_for_lp_inference)
                else:
                    await self._change("training_prep", self.policy.prepare_for_training)
                self.phase = phase
            return await blocking(call)

    async def _wake(self) -> None:
        assert not (self.stale and self.in_flight), "weights may not change while requests are in flight"
        await self._change("prepare_for_generation/total", self._refit_or_wake)
        self.stale, self.phase = False, "generating"

    def _refit_or_wake(self) -> None:
        if self.stale:
            if self.phase == "generating":  # as NeMo-RL: an engine is refitted from sleep
                self._sleep()
            self._refit(self.policy, self.engine, self.colocated)
        else:
            if self.colocated:
                self.policy.offload_after_refit()  # the optimizer makes room for the cache
            self._succeeds(self.engine.prepare_for_generation(), "wake up")

    def _sleep(self) -> None:
        self._succeeds(self.engine.finish_generation(), "go to sleep")

    @staticmethod
    def _succeeds(done: object, what: str) -> None:
        # NeMo-RL prints the cause and answers False
        if done is False:
            raise RuntimeFailure(f"the generation engine did not {what}; its cause is printed above.")

    async def _change(self, name: str, call: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        await blocking(call)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


async def blocking(call: Callable[[], Any]) -> Any:
    """The result of a call that waits for Ray, made in a thread; errors as `told` has them."""
    with told("a worker"):
        return await asyncio.to_thread(call)


async def asked(reference: Any, who: str) -> Any:
    """The value of a Ray object reference; errors as `told` has them."""
    with told(who):
        return await reference


@contextmanager
def told(who: str) -> Iterator[None]:
    """What Ray reports of `who` becomes RuntimeFailure.

    A ValueError or AssertionError that a worker raised is raised as it is: the worker lives and says what is wrong.
    """
    from ray.exceptions import RayError, RayTaskError

    try:
        yield
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | AssertionError):
            raise error.cause from error
        raise RuntimeFailure(f"{who} failed: {error.cause!r}\n{error}") from error
    except RayError as error:
        raise RuntimeFailure(f"{who} was lost: {error}") from error
