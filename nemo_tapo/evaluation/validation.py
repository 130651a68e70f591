"""Measure the policy on held-out problems between the steps of RL (`evaluation.every`)."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.metrics import TIME_VALIDATION, VALIDATION_ACCURACY, VALIDATION_BEST_STEP, validation_key
from nemo_tapo.types import Query, Request, Rollout
from nemo_tapo.utils.concurrency import run_concurrently
from nemo_tapo.utils.seeding import seed_from


class Validation:
    """`interfaces.Validation`: a few samples of the policy as it is trained, at the rollouts' temperature and length.

    A sample's seed depends on the run's seed and the problem alone: all measurements of a run draw the same random
    numbers, and the rollouts of training draw theirs as without it.
    """

    def __init__(self, cfg: RunConfig, tools: Tools, benchmarks: Mapping[str, Sequence[Query]]) -> None:
        """Take the first `evaluation.validation_problems` problems of each set whose prompt leaves room for a rollout.

        Raises ValueError if there is no set, or none is left of one.
        """
        room = cfg.model.max_length - cfg.rollout.max_tokens
        fitting = {name: [q for q in queries if len(q.prompt_ids) <= room] for name, queries in benchmarks.items()}
        self.sets = {name: queries[: cfg.evaluation.validation_problems] for name, queries in fitting.items()}
        if not self.sets:
            raise ValueError("evaluation.every is set, but the task has no held-out set: leave it out.")
        for name, queries in self.sets.items():
            if not queries:
                raise ValueError(f"evaluation.every is set, but {name} has no problem that leaves room for a rollout.")
        self._cfg, self._tools = cfg, tools
        self.best_step, self._best_accuracy = 0, -1.0

    def due(self, step: int) -> bool:
        """Return True after every `evaluation.every` steps and after the last one."""
        every = self._cfg.evaluation.every
        return step == self._cfg.steps or (every is not None and step % every == 0)

    async def measure(self, step: int) -> dict[str, float]:
        """Return the accuracy and mean length on each set, and the mean accuracy over the sets.

        A response that could not be graded counts as wrong.
        """
        begin = time.perf_counter()
        sampled = await run_concurrently(self._sample_set(name, queries) for name, queries in self.sets.items())
        measured: dict[str, float] = {}
        for name, rollouts in zip(self.sets, sampled, strict=True):
            count = len(rollouts)
            measured[validation_key(name, "accuracy")] = sum(r.correct for r in rollouts) / count
            measured[validation_key(name, "length")] = sum(len(r.completion.token_ids) for r in rollouts) / count
            measured[validation_key(name, "truncated")] = sum(r.completion.truncated for r in rollouts) / count
        accuracy = sum(measured[validation_key(name, "accuracy")] for name in self.sets) / len(self.sets)
        if accuracy > self._best_accuracy:  # of equal ones the first
            self.best_step, self._best_accuracy = step, accuracy
        seconds = time.perf_counter() - begin
        best = {VALIDATION_ACCURACY: accuracy, VALIDATION_BEST_STEP: self.best_step}
        return {**best, **measured, TIME_VALIDATION: seconds}

    def state(self) -> dict[str, Any]:
        """Return the best step and its accuracy."""
        return {"best_step": self.best_step, "best_accuracy": self._best_accuracy}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on from what `state` returned; an empty state is that of a run that was not validated so far."""
        self.best_step = int(state.get("best_step", 0))
        self._best_accuracy = float(state.get("best_accuracy", -1.0))

    async def _sample_set(self, name: str, queries: Sequence[Query]) -> list[Rollout]:
        samples = range(self._cfg.evaluation.validation_samples)
        return await run_concurrently(self._sample(name, query, index) for query in queries for index in samples)

    async def _sample(self, name: str, query: Query, index: int) -> Rollout:
        settings = self._cfg.rollout
        request = Request(
            uid=f"validation/{name}/{query.uid}/{index}",
            prompt_ids=query.prompt_ids,
            seed=seed_from(self._cfg.seed, "validate", name, query.uid, index),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        completion = await self._tools.generator.generate(request)
        return Rollout(query, index, completion, await self._tools.grade_completion(query, completion))
