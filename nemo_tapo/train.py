"""THE loop: one step is Algorithm 1 of arXiv 2606.18844. It calls and never computes.

```
 queries --> algorithm.experience -------------------------> rows --> collate --> actor.train
             K rollouts a query  --> grade --> pairs (Eq. 3)  |  advantages        one forward: log p, H, w (Eq. 7),
             synthesise --> parse, anchor --> grade           |  (Eq. 1, 4, 5)     loss (Eq. 2, 6, 8); AdamW
                  ^                                                                      |
                  +------------------- generator.update_weights <------------------------+
```
It knows an Algorithm, a Runtime and a place to write, and nothing of where they run.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import torch

from nemo_tapo import checkpoint, interfaces
from nemo_tapo.batch import collate
from nemo_tapo.config.sections import LossConfig, OptimizerConfig
from nemo_tapo.equations.teacher import teacher_batch, with_teacher_logprobs
from nemo_tapo.interfaces import Algorithm, Recorder, Runtime
from nemo_tapo.losses.distillation import TeacherKind
from nemo_tapo.types import INSTRUCTION_PREFIX, REFLECTED_SUFFIX, Batch, Kind, Query, Row, UpdateResult
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.signals import Stop


@dataclass(frozen=True)
class Plan:
    """What one run of the loop is told."""

    folder: Path  # checkpoints go to <folder>/checkpoints
    steps: int
    optimizer: OptimizerConfig
    loss: LossConfig
    reflection_weight: float = 1.0  # lambda of Eq. 6
    example_weight: float = 1.0  # of the likelihood term
    temperature: float = 1.0  # of the rollouts
    teacher: TeacherKind | None = None  # whose log-probabilities of the rollouts' tokens the objective needs (OPSD)
    sample: bool = True  # False: supervised; the engine is left alone
    checkpoint_every: int = 20
    checkpoint_keep: int = 2
    fingerprint: dict[str, Any] = field(default_factory=dict)  # settings that decide the numbers
    engine_gap_bound: float = 0.01  # nats, checked at the first step


async def train(
    plan: Plan,
    algorithm: Algorithm,
    runtime: Runtime,
    queries: Callable[[int], Sequence[Query]],
    recorder: Recorder,
    stop: Stop,
) -> None:
    """Runs from the newest good checkpoint to `plan.steps`.

    Raises Stopped after saving when `stop` was requested, RuntimeFailure when an engine or actor is lost, DiskFull
    when a checkpoint has no room, ValueError when the checkpoint is of another experiment.
    """
    store = runtime.checkpoints(plan.folder / "checkpoints", plan.checkpoint_keep)
    try:
        await steps(plan, algorithm, runtime, queries, recorder, stop, store)
    except BaseException:
        with suppress(RuntimeFailure):  # what ended the run is the thing to tell
            await store.settle()
        raise
    await store.settle()


async def steps(
    plan: Plan,
    algorithm: Algorithm,
    runtime: Runtime,
    queries: Callable[[int], Sequence[Query]],
    recorder: Recorder,
    stop: Stop,
    store: interfaces.Store,
) -> None:
    """See `train`."""
    first = await resume(plan, runtime, recorder, store)
    for step in range(first, plan.steps):
        clock = Clock()
        recorder.phase("sampling" if plan.sample else "reading examples")
        with clock("collect"):
            experience = await algorithm.experience(step, queries(step))
        rows = algorithm.rows(experience)
        batches = [await scored(part, runtime, plan, recorder, clock) for part in parts(rows, plan)]
        recorder.phase("updating")
        with clock("update"):
            results = [await runtime.actor.train(batch, algorithm.objective) for batch in batches]
        if plan.sample:
            recorder.phase("handing weights over")
            with clock("weights"):
                await runtime.generator.update_weights(await runtime.actor.weights())
        metrics = {**algorithm.metrics(experience, rows), **merged(results), **clock.times()}
        if step == first and plan.sample:
            check_first_step(step, metrics, plan)
        recorder.step(step + 1, metrics, experience, rows, results)
        last = step + 1 == plan.steps
        if last or stop.requested or (step + 1) % plan.checkpoint_every == 0:
            recorder.phase("saving a checkpoint")
            state = {"step": step + 1, "fingerprint": plan.fingerprint}
            await store.save(state, runtime.actor.save, metrics)
        if not last:
            stop.check(f"checkpoint of step {step + 1} saved in {plan.folder / 'checkpoints'}")


async def resume(plan: Plan, runtime: Runtime, recorder: Recorder, store: interfaces.Store) -> int:
    """Sets optimizer and weights to the newest good checkpoint; returns the first step to do (0 without one)."""
    await runtime.actor.configure(plan.optimizer, plan.steps * plan.loss.updates_per_batch)
    found = store.latest(recorder.warn)
    first = 0
    if found is not None:
        require_same(found, plan.fingerprint)
        await runtime.actor.load(found.path)
        first = found.step
    recorder.resume(first + 1)
    if plan.sample:
        await runtime.generator.update_weights(await runtime.actor.weights())
    return first


def require_same(found: checkpoint.Checkpoint, fingerprint: dict[str, Any]) -> None:
    """Raises ValueError naming the settings in which a checkpoint and this run differ."""
    before = found.state["fingerprint"]
    changed = sorted(k for k in before.keys() | fingerprint.keys() if before.get(k) != fingerprint.get(k))
    if changed:
        differences = ", ".join(f"{k}: {before.get(k)} -> {fingerprint.get(k)}" for k in changed)
        raise ValueError(
            f"{found.path} belongs to a run with other settings ({differences}). Choose another `output`, or restore "
            "the settings."
        )


def parts(rows: Sequence[Row], plan: Plan) -> Iterator[list[Row]]:
    """The rows of each update: all of them, or `updates_per_batch` runs of whole queries of about equal size.

    A step has always as many updates, for the learning rate's schedule counts them; one may be without rows.
    """
    count = plan.loss.updates_per_batch
    owners = list(dict.fromkeys(query_of(row) for row in rows))
    for part in range(count):
        mine = set(owners[part * len(owners) // count : (part + 1) * len(owners) // count])
        yield [row for row in rows if query_of(row) in mine]


def query_of(row: Row) -> str:
    """The uid of the query a row belongs to."""
    return row.uid.removeprefix(INSTRUCTION_PREFIX).rsplit("/", 1)[0].removesuffix(REFLECTED_SUFFIX)


async def scored(rows: Sequence[Row], runtime: Runtime, plan: Plan, recorder: Recorder, clock: Clock) -> Batch:
    """The batch of one update, with what has to be known of other policies.

    Called for every update of a step before the first one is made: pi_old is the policy that sampled. With one update
    a batch rho is 1 at every token, and no pass is spent on it.
    """
    batch = collate(rows, runtime.tokenizer.pad_id, plan.reflection_weight, plan.loss.token_mean, plan.example_weight)
    if not plan.sample:
        return batch
    if plan.teacher is not None and batch.teacher_input_ids is not None:  # first: its rows go no further
        recorder.phase("asking the teacher")
        with clock("teacher"):
            ask = runtime.actor.logprobs if plan.teacher == "live" else runtime.actor.teacher_logprobs
            batch = with_teacher_logprobs(batch, await ask(teacher_batch(batch), plan.temperature))
    recorder.phase("scoring the reference")
    with clock("reference"):
        batch = await with_reference(batch, rows, runtime, plan)
    if plan.loss.updates_per_batch > 1:
        recorder.phase("scoring the old policy")
        with clock("old_logprobs"):
            batch = replace(batch, prev_logprobs=await runtime.actor.logprobs(batch, plan.temperature))
    return batch


async def with_reference(batch: Batch, rows: Sequence[Row], runtime: Runtime, plan: Plan) -> Batch:
    """Adds the reference policy's log-probabilities: of every row if KL is penalised, else of some original rows."""
    loss = plan.loss
    wanted = list(range(len(rows)))
    if loss.kl_coef == 0:
        original = [i for i, row in enumerate(rows) if row.kind is Kind.ORIGINAL]
        stride = max(1, -(-len(original) // loss.kl_rows)) if loss.kl_rows else len(original) + 1
        wanted = original[::stride] if loss.kl_rows else []
    if not wanted:
        return batch
    index = torch.tensor(wanted)
    part = await runtime.actor.reference_logprobs(batch.select(index), plan.temperature)
    values, known = torch.zeros(batch.input_ids.shape), torch.zeros(batch.rows)
    values[index, : part.shape[1]] = part
    known[index] = 1.0
    return replace(batch, reference_policy_logprobs=values, reference_mask=known)


def merged(results: Sequence[UpdateResult]) -> dict[str, float]:
    """Means over the step's updates (one, in the paper's setting)."""
    names = {name for r in results for name in r.metrics}
    metrics = {}
    for name in sorted(names):
        values = [r.metrics[name] for r in results if name in r.metrics]
        metrics[name] = sum(values) / len(values)
    metrics["grad_norm"] = sum(r.grad_norm for r in results) / len(results)
    metrics["lr"] = results[-1].learning_rate
    return metrics


def check_first_step(step: int, metrics: dict[str, float], plan: Plan) -> None:
    """What must hold at the first step of a process: ratio 1, KL 0 (a fresh run's), engine and actor agree.

    Raises ValueError with a sentence that says which did not and what that means.
    """
    ratio, kl, gap = (metrics.get(k, 0.0) for k in ("ratio_deviation", "kl_ref", "engine_gap"))
    once = plan.loss.updates_per_batch == 1
    if once and not ratio <= 1e-5:  # written so that nan fails
        raise ValueError(f"first step: |ratio - 1| is {ratio:.2g} on average, it must be 0 with one update a batch.")
    if step == 0 and once and not abs(kl) <= 1e-5:
        raise ValueError(f"first step: KL to the reference is {kl:.2g}, it must be 0: the reference is another model.")
    if not gap <= plan.engine_gap_bound:
        raise ValueError(
            f"first step: log-probabilities of engine and actor differ by {gap:.3g} nats a token on average, more than "
            f"the bound {plan.engine_gap_bound}: the engine does not run the actor's weights."
        )


class Clock:
    """Seconds of each part of a step, by name."""

    def __init__(self) -> None:
        self.begin = time.perf_counter()
        self.parts: dict[str, float] = {}

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        begin = time.perf_counter()
        try:
            yield
        finally:
            self.parts[name] = self.parts.get(name, 0.0) + time.perf_counter() - begin

    def times(self) -> dict[str, float]:
        """`time/<part>` and `time/step`, seconds."""
        times = {f"time/{name}": seconds for name, seconds in self.parts.items()}
        return {**times, "time/step": time.perf_counter() - self.begin}
