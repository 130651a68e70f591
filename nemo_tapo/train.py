"""Run the loop: one step is Algorithm 1 of arXiv 2606.18844. This file calls and never computes.

```
 queries --> algorithm.experience -------------------------> rows --> collate --> actor.train
             K rollouts a query  --> grade --> pairs (Eq. 3)  |  advantages        one forward: log p, H, w (Eq. 7),
             synthesise --> parse, anchor --> grade           |  (Eq. 1, 4, 5)     loss (Eq. 2, 6, 8); AdamW
                  ^                                                                      |
                  +------------------- generator.update_weights <------------------------+
```
It knows an Algorithm, a Runtime and a Recorder (interfaces.py), and nothing of what they are.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from nemo_tapo import metrics
from nemo_tapo.batch import split_into_updates
from nemo_tapo.checkpoint import require_same_run
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.interfaces import Algorithm, CheckpointStore, Recorder, Runtime
from nemo_tapo.scoring import build_batch, check_first_step
from nemo_tapo.tracking.step_timer import StepTimer
from nemo_tapo.types import Query, StepRecord
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.signals import Stop


async def train(
    cfg: LoopConfig,
    algorithm: Algorithm,
    runtime: Runtime,
    queries: Callable[[int], Sequence[Query]],
    recorder: Recorder,
    stop: Stop,
) -> None:
    """Train from the newest good checkpoint to `cfg.steps`; `queries(step)` gives a step's queries.

    Raises Stopped after saving when `stop` was requested, RuntimeFailure when an engine or actor is lost, DiskFull
    when a checkpoint has no room, ValueError when the checkpoint is of another experiment.
    """
    async with checkpoints(cfg, runtime) as store:
        first = await resume(cfg, runtime, recorder, store)
        for step in range(first, cfg.steps):
            timer = StepTimer(recorder)

            # Collect: rollouts, pairs, constructions, all graded; then rows with their advantages.
            with timer.part(metrics.TIME_COLLECT, "sampling" if cfg.uses_engine else "reading examples"):
                experience = await algorithm.experience(step, queries(step))
            rows = algorithm.rows(experience)

            # Update: every batch is scored before the first update changes the policy.
            needs, updates = algorithm.loss.needs, split_into_updates(rows, cfg.loss.updates_per_batch)
            batches = [await build_batch(part, needs, runtime, cfg, timer) for part in updates]
            with timer.part(metrics.TIME_UPDATE, "updating"):
                results = [await runtime.actor.train(batch, algorithm.loss) for batch in batches]
            if cfg.uses_engine:
                with timer.part(metrics.TIME_WEIGHTS, "handing weights over"):
                    await hand_over_weights(runtime)

            # Record: the step's numbers, then a checkpoint where one is due.
            measured = {
                **algorithm.metrics(experience, rows),
                **metrics.mean_over_updates(results),
                **timer.seconds(),
            }
            if step == first and cfg.uses_engine:
                check_first_step(step, measured, cfg)
            recorder.step(StepRecord(step + 1, measured, experience, rows, results))
            last = step + 1 == cfg.steps
            if last or stop.requested or (step + 1) % cfg.checkpoint_every == 0:
                recorder.phase("saving a checkpoint")
                state = {"step": step + 1, "fingerprint": cfg.fingerprint}
                await store.save(state, runtime.actor.save, measured)
            if not last:
                stop.check(f"checkpoint of step {step + 1} saved in {cfg.folder / 'checkpoints'}")


async def resume(cfg: LoopConfig, runtime: Runtime, recorder: Recorder, store: CheckpointStore) -> int:
    """Set optimizer and weights to the newest good checkpoint; return the first step to do (0 without one)."""
    await runtime.actor.configure(cfg.optimizer, cfg.steps * cfg.loss.updates_per_batch)
    found = store.latest(recorder.warn)
    if found is not None:
        require_same_run(found, cfg.fingerprint)
        await runtime.actor.load(found.path)
    first = found.step if found is not None else 0
    recorder.resume(first + 1)
    if cfg.uses_engine:
        await hand_over_weights(runtime)
    return first


async def hand_over_weights(runtime: Runtime) -> None:
    """Give the actor's weights to the engine."""
    await runtime.generator.update_weights(await runtime.actor.weights())


@asynccontextmanager
async def checkpoints(cfg: LoopConfig, runtime: Runtime) -> AsyncIterator[CheckpointStore]:
    """Open the run's checkpoints; leave when every one that was saved is on the disk."""
    store = runtime.checkpoints(cfg.folder / "checkpoints", cfg.checkpoint_keep)
    try:
        yield store
    except BaseException:
        with suppress(RuntimeFailure):  # what ended the run is the thing to tell
            await store.settle()
        raise
    await store.settle()
