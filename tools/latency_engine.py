"""Run the loop on an engine whose seconds follow a stated cost model: what a cluster's step costs, without a cluster.

    python tools/bench.py pipelines

At 8B a decoding engine is bound by latency: one decoding step takes the same time for one row as for many. So a step of
training takes as long as its longest responses, and what matters is which of them wait for which. This engine keeps a
clock of its own and advances it from one completion to the next:

    a decoding step             STEP_SECONDS, for up to MOST_AT_ONCE rows in flight; more wait for a place
    lengths                     log-normal with MEDIAN tokens and SIGMA, cut at LONGEST, drawn from the request's seed
    training                    TRAIN_SECONDS a token of the drawn lengths, on all GPUs
    what else a step does       OTHER_SECONDS (grading, weights, collation), counted where the weights are handed over

With `rollout.lag: 1` an update takes its seconds while the engine decodes the next step. The policy then has a part of
the GPUs, POLICY_SHARE, so that an update takes longer; the engines have the rest, which slows down nothing here: they
are bound by latency.

Everything else is real: the loop, the algorithm, pairs, parsing, rows, updates (of scripted texts, on a small model).
"""

from __future__ import annotations

import asyncio
import heapq
import math
import random
from collections import deque
from collections.abc import Mapping
from typing import Any

from bench_loop import Memory, run_loop
from torch import Tensor

from nemo_tapo.config.run_config import validate
from nemo_tapo.losses.base import Loss
from nemo_tapo.runtime.scripted_runtime import ScriptedActor, ScriptedGenerator, ScriptedRuntime, arithmetic_script
from nemo_tapo.types import Batch, Completion, Request, StepRecord, UpdateResult

STEP_SECONDS = 0.013  # an 8B model in bf16 on an H100: 16 GB read at half of 3.35 TB/s, and 4 ms of scheduling
MOST_AT_ONCE = 1024  # rows in flight, over all engines
MEDIAN, SIGMA, LONGEST = 2200.0, 0.75, 8192  # tokens: mean 2,850; about 4% of the responses are cut off
TRAIN_SECONDS = 4.0 / (256 * 2850)  # `nemo-tapo plan`: 4 s for the update of 256 rollouts on 32 H100
OTHER_SECONDS = 8.0
LAG = {"lag": 1, "logprobs": "always"}
PIPELINES = ("barrier", "overlapped", "deferred")
POLICY_SHARE = 0.25  # with a lag: one node of four
LONG_UPDATE, HALF = 12.0, 0.5  # an update 12 times as long, 48 s on all GPUs; on half of them about as long as rollouts
YIELDS = 20  # turns of the event loop after which everything that could react to a completion has


class LatencyEngine(ScriptedGenerator):
    """Answers with the script's text after the seconds that the cost model gives to a drawn length."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.clock = 0.0  # seconds
        self._decoding: list[tuple[float, int, asyncio.Future[None]]] = []  # heap by the time of completion
        self._others: list[tuple[float, int, asyncio.Future[None]]] = []  # the same of what takes no place
        self._queued: deque[tuple[int, asyncio.Future[None]]] = deque()  # (tokens, ...) without a place yet
        self._driver: asyncio.Task[None] | None = None
        self._number = 0

    async def generate(self, request: Request) -> Completion:
        """Return the script's answer once its drawn length is decoded."""
        done = asyncio.get_running_loop().create_future()
        self._queued.append((draw_length(request.seed), done))
        self._start()
        await done
        return self.answer(request)

    async def wait(self, seconds: float) -> None:
        """Return when the clock has advanced by `seconds`; what is decoded meanwhile goes on."""
        done = asyncio.get_running_loop().create_future()
        self._await(self.clock + seconds, self._others, done)
        self._start()
        await done

    def _start(self) -> None:
        if self._driver is None or self._driver.done():
            self._driver = asyncio.create_task(self._drive())

    def _await(
        self, end: float, heap: list[tuple[float, int, asyncio.Future[None]]], done: asyncio.Future[None]
    ) -> None:
        self._number += 1
        heapq.heappush(heap, (end, self._number, done))

    async def _drive(self) -> None:
        """Advance the clock from one end to the next while anything is under way."""
        while True:
            for _ in range(YIELDS):  # whoever waits for a completion may ask for more
                await asyncio.sleep(0)
            while self._queued and len(self._decoding) < MOST_AT_ONCE:
                tokens, done = self._queued.popleft()
                self._await(self.clock + tokens * STEP_SECONDS, self._decoding, done)
            heaps = [heap for heap in (self._decoding, self._others) if heap]
            if not heaps:
                return
            self.clock, _, done = heapq.heappop(min(heaps))
            done.set_result(None)


class TimedActor(ScriptedActor):
    """Trains as ScriptedActor does and advances the engine's clock."""

    engine: LatencyEngine
    slowness = 1.0  # how many times TRAIN_SECONDS an update takes

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Make one optimizer step."""
        mean = MEDIAN * math.exp(SIGMA**2 / 2)
        await self.engine.wait(batch.rows * mean * TRAIN_SECONDS * self.slowness)
        return await super().train(batch, loss)

    async def weights(self) -> dict[str, Tensor]:
        """Hand over the weights, when nothing is sampled."""
        await self.engine.wait(OTHER_SECONDS)
        return await super().weights()


class StepSeconds(Memory):
    """A recorder that also keeps the clock at the end of every step."""

    def __init__(self, engine: LatencyEngine) -> None:
        super().__init__()
        self.engine, self.ends = engine, [0.0]

    def step(self, record: StepRecord) -> None:
        super().step(record)
        self.ends.append(self.engine.clock)


def draw_length(seed: int) -> int:
    """Draw the tokens of a response from its request's seed."""
    return max(1, min(LONGEST, round(random.Random(seed).lognormvariate(math.log(MEDIAN), SIGMA))))


def measure_pipelines(steps: int = 12, queries: int = 32) -> dict[str, float]:
    """Return the mean seconds of a step of GRPO and of TAPO under each pipeline, the first step left out."""
    settings = {"grpo": {"algorithm": "grpo"}, **{name: {"pipeline": name} for name in PIPELINES}}
    return {name: asyncio.run(mean_step_seconds(changes, steps, queries)) for name, changes in settings.items()}


def measure_lag(steps: int = 12, queries: int = 32) -> dict[str, float]:
    """Return the same of GRPO and of deferred TAPO with `rollout.lag: 1`."""
    settings = {"grpo": {"algorithm": "grpo", "rollout": LAG}, "deferred": {"pipeline": "deferred", "rollout": LAG}}
    slowness = 1 / POLICY_SHARE
    return {name: asyncio.run(mean_step_seconds(each, steps, queries, slowness)) for name, each in settings.items()}


def measure_balanced_lag(steps: int = 12, queries: int = 32) -> float:
    """Return a GRPO step's seconds with a lag over those without, where an update takes LONG_UPDATE times as long."""
    before = asyncio.run(mean_step_seconds({"algorithm": "grpo"}, steps, queries, LONG_UPDATE))
    changes = {"algorithm": "grpo", "rollout": LAG}
    return asyncio.run(mean_step_seconds(changes, steps, queries, LONG_UPDATE / HALF)) / before


async def mean_step_seconds(changes: Mapping[str, Any], steps: int, queries: int, slowness: float = 1.0) -> float:
    """Run the loop with these settings; return the mean seconds of a step by the engine's clock."""
    cfg = validate(
        {
            "steps": steps,
            "rollout": {"queries_per_step": queries, "max_tokens": 300} | changes.get("rollout", {}),
            "tapo": {"max_tokens": 800},
            "model": {"max_length": 4000},
            "loss": {"kl_rows": 0},
            **{name: value for name, value in changes.items() if name != "rollout"},
        }
    )
    runtime = ScriptedRuntime(arithmetic_script)
    runtime.generator = engine = LatencyEngine(arithmetic_script, runtime.tokenizer, 4096)
    actor = TimedActor(runtime.tokenizer.vocab_size)
    actor.engine, runtime.actor = engine, actor
    actor.slowness = slowness
    recorder = StepSeconds(engine)
    await run_loop(cfg, runtime, recorder, queries=steps * queries)
    ends = recorder.ends[1 : -1 if cfg.rollout.lag else None]  # with a lag, the last step has no next one to sample
    return (ends[-1] - ends[0]) / (len(ends) - 1)
