"""Run the loop: one step is Algorithm 1 of arXiv 2606.18844. This file calls and never computes.

```
 queries --> algorithm.collect ---> Experience --> make_rows --> collate --> add_scores --> actor.train
             K rollouts a query, graded;               advantages                     one forward: log p, H,
             pairs (Eq. 3); synthesis, parsed,         (Eq. 1, 4, 5)                  w (Eq. 7), loss (Eq. 2, 6,
             anchored, graded                                                         8); optimizer step
                  ^                                                                      |
                  +------------------- generator.update_weights <------------------------+
```
It knows an Algorithm, a Runtime and a Recorder (interfaces.py), and nothing of what they are. With `rollout.lag: 1`
the next step is collected beside the update (algorithms/collector.py).
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager, suppress

from nemo_tapo import metrics
from nemo_tapo.algorithms.collector import Collector
from nemo_tapo.batch import collate, split_into_updates
from nemo_tapo.checkpoint import require_same_run
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.interfaces import Algorithm, CheckpointStore, Recorder, Runtime, Validation
from nemo_tapo.scoring import PolicyComparison, add_scores
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
    validation: Validation | None = None,
) -> None:
    """Train from the newest good checkpoint to `cfg.steps`; `queries(step)` gives a step's queries.

    `validation` measures the policy where one is due; it changes nothing that is trained.

    Raises Stopped after saving when `stop` was requested, RuntimeFailure when an engine or actor is lost, DiskFull
    when a checkpoint has no room, ValueError when the checkpoint is of another experiment.
    """
    async with open_checkpoints(cfg, runtime) as store, Collector(cfg, algorithm, queries) as collector:
        first = await resume(cfg, algorithm, runtime, recorder, store, collector, validation)
        comparison = PolicyComparison(cfg, recorder.warn)
        for step in range(first, cfg.steps):
            timer = StepTimer(recorder)

            # Collect: rollouts, pairs, constructions, all graded; then rows with their advantages.
            with timer.measure(metrics.TIME_COLLECT, "sampling" if algorithm.samples else "reading examples"):
                experience = await collector.collect(step)
            rows = algorithm.make_rows(experience)

            # Update: every batch is scored before the first update changes the policy.
            batches = []
            for update in split_into_updates(rows, cfg.loss.updates_per_batch):
                batch = collate(
                    update, runtime.tokenizer.pad_id, algorithm.term_weights, cfg.loss.token_mean, cfg.loss.weighting
                )
                if algorithm.samples:
                    batch = await add_scores(batch, update, algorithm.loss.needs, runtime, cfg, timer)
                batches.append(batch)
            with timer.measure(metrics.TIME_UPDATE, "updating"):
                results = [await runtime.actor.train(batch, algorithm.loss) for batch in batches]
            if cfg.lag:
                with timer.measure(metrics.TIME_COLLECT, "sampling the next step"):
                    await collector.finish()
            if algorithm.samples:
                with timer.measure(metrics.TIME_WEIGHTS, "handing weights over"):
                    await hand_over_weights(runtime)

            # Record: the step's numbers, a validation and a checkpoint where they are due.
            measured = {
                **algorithm.compute_metrics(experience, rows),
                **metrics.mean_over_updates(results),
                **timer.seconds(),
            }
            if algorithm.samples:
                comparison.check(step, measured, first=step == first)
            if validation is not None and validation.due(step + 1):
                recorder.phase("validating")
                measured |= await validation.measure(step + 1)
            recorder.step(StepRecord(step + 1, measured, experience, rows, results))
            last = step + 1 == cfg.steps
            best = cfg.keep_best and validation is not None and validation.best_step == step + 1
            if last or best or stop.requested or (step + 1) % cfg.checkpoint_every == 0:
                recorder.phase("saving a checkpoint")
                state = {
                    "step": step + 1,
                    "fingerprint": cfg.fingerprint,
                    "algorithm": algorithm.state(),
                    "history": recorder.history(),
                    **collector.state(),
                }
                if validation is not None:
                    state |= {"validation": validation.state(), "keep_best": cfg.keep_best}
                await store.save(state, runtime.actor.save, measured)
            if not last:
                stop.check(f"checkpoint of step {step + 1} saved in {cfg.folder / 'checkpoints'}")
            del experience, rows, update, batches, batch, results  # or they stay while the next step is collected


async def resume(
    cfg: LoopConfig,
    algorithm: Algorithm,
    runtime: Runtime,
    recorder: Recorder,
    store: CheckpointStore,
    collector: Collector,
    validation: Validation | None = None,
) -> int:
    """Set optimizer and weights to the newest good checkpoint; return the first step to do (0 without one)."""
    await runtime.actor.configure(cfg.optimizer, cfg.steps * cfg.loss.updates_per_batch)
    found = store.latest(recorder.warn)
    if found is not None:
        require_same_run(found, cfg.fingerprint)
        algorithm.restore(found.state.get("algorithm", {}))
        collector.restore(found.state)
        if validation is not None:
            validation.restore(found.state.get("validation", {}))
        await runtime.actor.load(found.path)
    first = found.step if found is not None else 0
    recorder.resume(first + 1, found.state.get("history", ()) if found is not None else ())
    if algorithm.samples:
        await hand_over_weights(runtime)
    return first


async def hand_over_weights(runtime: Runtime) -> None:
    """Give the actor's weights to the engine."""
    await runtime.generator.update_weights(await runtime.actor.weights())


@asynccontextmanager
async def open_checkpoints(cfg: LoopConfig, runtime: Runtime) -> AsyncIterator[CheckpointStore]:
    """Open the run's checkpoints; leave when every one that was saved is on the disk."""
    store = runtime.checkpoints(cfg.folder / "checkpoints", cfg.checkpoint_keep)
    try:
        yield store
    except BaseException:
        with suppress(RuntimeFailure):  # what ended the run is the thing to tell
            await store.settle()
        raise
    await store.settle()
