"""Let the policy train while the engine samples, each on GPUs of its own (`rollout.lag: 1`).

```
 engine   sampling step t + 1 .............. |        | sampling step t + 2 ...
 policy   scoring --> training (step t)      | refit  | (checkpoint) --> scoring --> training (step t + 1)
```
The weights move when the loop hands them over, with no request in flight: NeMo-RL's order without
`in_flight_weight_updates`. Before that the engine drops its cached prefixes, which are of the weights before.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager

from nemo_tapo.runtime.nemo_rl.colocation import POLICY, ColocationScheduler


class SeparateScheduler(ColocationScheduler):
    """The phases of the policy alone. The engine is awake from the first hand-over on, and may have older weights."""

    _awake = False

    @asynccontextmanager
    async def generating(self) -> AsyncIterator[None]:
        """Count a request inside the block. Only an engine that never had weights takes them now."""
        if not self._awake:
            async with self._lock:
                if not self._awake:  # another caller may have woken it meanwhile
                    await self._refit_engine()
        self.in_flight += 1
        try:
            yield
        finally:
            self.in_flight -= 1

    async def hand_over(self) -> None:
        """Give the policy's weights to the engine now."""
        async with self._lock:
            await self._refit_engine()

    async def _refit_engine(self) -> None:
        assert not self.in_flight, "weights may not change while requests are in flight"
        who = f"{POLICY} or engine (handing weights over)"
        await self._run_timed("prepare_for_generation/total", self._drop_prefixes_and_refit, who)
        self.stale, self._awake = False, True
        self.phase = "asleep"  # NeMo-RL prepares its policy anew after every hand-over

    def _drop_prefixes_and_refit(self) -> None:
        if self._awake:
            self._require_success(self.engine.finish_generation(), "drop its cached prefixes")
        self._refit(self.policy, self.engine, self.colocated)

    async def _make_room(self) -> None:
        """Do nothing: the engine is on other GPUs."""
