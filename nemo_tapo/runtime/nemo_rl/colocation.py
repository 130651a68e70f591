"""Schedule the GPUs between the generation engine, scoring and training, in the order of calls that NeMo-RL requires.

```
 generating --finish_generation--> scoring --> training --> (checkpoint) --+
     ^          engine sleeps       prepare_for_   prepare_for_training      | weights are new: stale
     |                              lp_inference                             |
     +---- refit_policy_generation (stale), or offload + wake <--------------+
```
Callers enter a phase when they need it; the training loop knows nothing about memory. Three things follow:

- Synthesis sends its requests while rollouts are in flight or have just finished, so it always runs before the engine
  is put to sleep.
- The engine is refitted once, after the last update of a step.
- A checkpoint is written while the engine sleeps.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from typing import Any, Literal

from nemo_tapo.utils.errors import RuntimeFailure

Phase = Literal["asleep", "generating", "scoring", "training"]


class ColocationScheduler:
    """The phases of one policy (NeMo-RL's Policy) and its engine (a GenerationInterface) on the same GPUs.

    NeMo-RL's calls block until Ray answers. Each runs in a thread, one at a time, so the event loop is not blocked.
    """

    def __init__(
        self, policy: Any, engine: Any, colocated: bool, refit: Callable[[Any, Any, bool], object], stale: bool = True
    ) -> None:
        """Start with the engine asleep.

        `refit` copies the policy's weights to the engine. `stale` is True while the engine holds other weights than
        the policy.
        """
        self.policy, self.engine, self.colocated, self._refit = policy, engine, colocated, refit
        self.phase: Phase = "asleep"  # as NeMo-RL's setup leaves the engine
        self.stale = stale
        self.in_flight = 0  # requests that the engine is answering
        self.seconds: dict[str, float] = {}  # spent in phase changes since `take_times`
        self._lock = asyncio.Lock()

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        """Keep the engine awake, with the policy's weights, inside the block; many callers may be inside at once."""
        if self.phase != "generating" or self.stale:
            async with self._lock:
                if self.phase != "generating" or self.stale:  # another caller may have woken it meanwhile
                    await self._wake()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def scoring(self, call: Callable[[], Any]) -> Any:
        """Return `call()`, run while the policy is ready for forward passes."""
        return await self._run_in_phase("scoring", call)

    async def training(self, call: Callable[[], Any]) -> Any:
        """Return `call()`, run while the policy is ready for an update or a checkpoint."""
        return await self._run_in_phase("training", call)

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent in phase changes since the last call, keyed by NeMo-RL's timer names."""
        times, self.seconds = self.seconds, {}
        return times

    async def _run_in_phase(self, phase: Literal["scoring", "training"], call: Callable[[], Any]) -> Any:
        async with self._lock:
            if self.phase != phase:
                assert not self.in_flight, f"{self.in_flight} requests in flight: the engine must not be put to sleep"
                if self.phase == "generating":
                    await self._run_timed("finish_generation", self._sleep)
                if phase == "scoring":
                    await self._run_timed("logprob_inference_prep", self.policy.prepare_for_lp_inference)
                else:
                    await self._run_timed("training_prep", self.policy.prepare_for_training)
                self.phase = phase
            return await run_blocking(call)

    async def _wake(self) -> None:
        assert not (self.stale and self.in_flight), "weights may not change while requests are in flight"
        await self._run_timed("prepare_for_generation/total", self._refit_or_wake)
        self.stale, self.phase = False, "generating"

    def _refit_or_wake(self) -> None:
        if self.stale:
            if self.phase == "generating":  # NeMo-RL refits only a sleeping engine
                self._sleep()
            self._refit(self.policy, self.engine, self.colocated)
        else:
            if self.colocated:
                self.policy.offload_after_refit()  # moves the optimizer away to free memory for the KV cache
            self._require_success(self.engine.prepare_for_generation(), "wake up")

    def _sleep(self) -> None:
        self._require_success(self.engine.finish_generation(), "go to sleep")

    @staticmethod
    def _require_success(done: object, what: str) -> None:
        # On failure NeMo-RL prints the cause and returns False.
        if done is False:
            raise RuntimeFailure(f"the generation engine did not {what}; its cause is printed above.")

    async def _run_timed(self, name: str, call: Callable[[], Any]) -> None:
        begin = time.perf_counter()
        await run_blocking(call)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin


async def run_blocking(call: Callable[[], Any]) -> Any:
    """Run a call that blocks on Ray in a thread and return its result.

    Raises what `ray_errors_as_runtime_failure` raises.
    """
    with ray_errors_as_runtime_failure("a worker"):
        return await asyncio.to_thread(call)


async def await_ray(reference: Any, who: str) -> Any:
    """Return the value of a Ray object reference.

    `who` names its producer in an error. Raises what `ray_errors_as_runtime_failure` raises.
    """
    with ray_errors_as_runtime_failure(who):
        return await reference


@contextmanager
def ray_errors_as_runtime_failure(who: str) -> Iterator[None]:
    """Turn Ray's errors inside the block into RuntimeFailure; `who` names the failed process in the message.

    A ValueError or AssertionError that a worker raised is re-raised unchanged: the worker is alive, and its message
    explains the fault.
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
