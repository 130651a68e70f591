"""Collect each step's experience before its update, or beside the update of the step before (`rollout.lag: 1`).

::

    lag 0   sample 0 | update 0 | weights 1 | sample 1 | update 1 | weights 2 | sample 2 | ...

    lag 1   sample 0 | update 0   |           | update 1   |           | update 2   |
                     | sample 1.. | weights 1 | sample 2.. | weights 2 | sample 3.. | ...

Weights n are those after n steps. With lag 1 the rollouts of step t are sampled by weights t - 1, those of step 0 by
weights 0. Weights move only while nothing is sampled, so which weights sampled what does not depend on how long
anything takes. What is sampled and not trained on yet is part of a checkpoint: the weights that sampled it are not.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.algorithms.experience_json import read_experience, write_experience
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.interfaces import Algorithm
from nemo_tapo.metrics import ROLLOUT_LAG
from nemo_tapo.types import Experience, Query


class Collector:
    """Gives the loop each step's experience, in order. Use it as a context: leaving it cancels what is under way."""

    def __init__(self, cfg: LoopConfig, algorithm: Algorithm, queries: Callable[[int], Sequence[Query]]) -> None:
        self._lag, self._steps = cfg.lag, cfg.steps
        self._algorithm, self._queries = algorithm, queries
        self._under_way: asyncio.Task[Experience] | None = None  # of the next step
        self._ahead: Experience | None = None  # the same, once it is there

    async def __aenter__(self) -> Collector:
        return self

    async def __aexit__(self, *reason: object) -> None:
        if self._under_way is not None:
            self._under_way.cancel()
            await asyncio.gather(self._under_way, return_exceptions=True)

    async def collect(self, step: int) -> Experience:
        """Return the experience of `step` (from 0). With lag 1, also begin to collect that of the next step."""
        if not self._lag:
            return await self._algorithm.collect(step, self._queries(step))
        lag, experience = 1, self._ahead
        if experience is None:  # the first step of a run
            lag, experience = 0, await self._algorithm.collect(step, self._queries(step))
        self._ahead = None
        if step + 1 < self._steps:
            self._under_way = asyncio.create_task(
                self._algorithm.collect(step + 1, self._queries(step + 1)), name=f"collecting step {step + 2}"
            )
        return replace(experience, metrics={**experience.metrics, ROLLOUT_LAG: lag})

    async def finish(self) -> None:
        """Wait until the next step is collected: the engine is then free to take weights. Raises what it raised."""
        if self._under_way is not None:
            self._ahead, self._under_way = await self._under_way, None

    def state(self) -> dict[str, Any]:
        """Return what is collected and not trained on, as JSON for a checkpoint; nothing with lag 0."""
        assert self._under_way is None, "a checkpoint is written once the next step is collected"
        return {} if self._ahead is None else {"collected": write_experience(self._ahead)}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on with what a checkpoint's state holds; without it the next step is collected by its own weights."""
        self._ahead = read_experience(state["collected"]) if "collected" in state else None
