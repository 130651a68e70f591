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
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any, Literal

from nemo_tapo.runtime.nemo_rl.nemo_calls import CALL_TIMEOUT, run_blocking
from nemo_tapo.utils.errors import RuntimeFailure

Phase = Literal["asleep", "generating", "scoring", "training"]
POLICY, ENGINE = "NeMo-RL's policy", "NeMo-RL's generation engine"  # who did not answer, in messages


class ColocationScheduler:
    """The phases of one policy (NeMo-RL's Policy) and its engine (a GenerationInterface) on the same GPUs.

    NeMo-RL's calls block until Ray answers. Each runs in a thread, one at a time, with a deadline (nemo_calls.py).
    """

    def __init__(
        self,
        policy: Any,
        engine: Any,
        colocated: bool,
        refit: Callable[[Any, Any, bool], object],
        stale: bool = True,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Start with the engine asleep.

        `refit` copies the policy's weights to the engine. `stale` is True while the engine holds other weights than
        the policy. `timeout` is the deadline of every call, seconds.
        """
        self.policy, self.engine, self.colocated, self._refit = policy, engine, colocated, refit
        self.phase: Phase = "asleep"  # as NeMo-RL's setup leaves the engine
        self.stale, self.timeout = stale, timeout
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

    async def scoring(self, call: Callable[[], Any], what: str) -> Any:
        """Return `call()`, run while the policy is ready for forward passes; `what` it does, for a message."""
        return await self._run_in_phase("scoring", call, what)

    async def training(self, call: Callable[[], Any], what: str) -> Any:
        """Return `call()`, run while the policy is ready for an update or a checkpoint; `what` as in `scoring`."""
        return await self._run_in_phase("training", call, what)

    async def hand_over(self) -> None:
        """Note that the engine is to have the policy's weights. It takes them later, before its next request.

        It cannot take them now: a checkpoint may be written first, and for that the policy needs the GPUs.
        """
        assert not self.in_flight, "weights may not change while requests are in flight"

    def take_times(self) -> dict[str, float]:
        """Return the seconds spent in phase changes since the last call, keyed by NeMo-RL's timer names."""
        times, self.seconds = self.seconds, {}
        return times

    async def _run_in_phase(self, phase: Literal["scoring", "training"], call: Callable[[], Any], what: str) -> Any:
        async with self._lock:
            if self.phase != phase:
                await self._make_room()
                who = f"{POLICY} (preparing for {phase})"
                if phase == "scoring":
                    await self._run_timed("logprob_inference_prep", self.policy.prepare_for_lp_inference, who)
                else:
                    await self._run_timed("training_prep", self.policy.prepare_for_training, who)
                self.phase = phase
            return await run_blocking(call, f"{POLICY} ({what})", self.timeout)

    async def _make_room(self) -> None:
        """Put the engine to sleep, so that the policy has the GPUs."""
        assert not self.in_flight, f"{self.in_flight} requests in flight: the engine must not be put to sleep"
        if self.phase == "generating":
            await self._run_timed("finish_generation", self._sleep, f"{ENGINE} (going to sleep)")

    async def _wake(self) -> None:
        assert not (self.stale and self.in_flight), "weights may not change while requests are in flight"
        who = f"{POLICY} or engine (handing weights over)" if self.stale else f"{ENGINE} (waking up)"
        await self._run_timed("prepare_for_generation/total", self._refit_or_wake, who)
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

    async def _run_timed(self, name: str, call: Callable[[], Any], who: str) -> None:
        begin = time.perf_counter()
        await run_blocking(call, who, self.timeout)
        self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - begin
