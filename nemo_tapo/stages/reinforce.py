"""Run reinforcement learning as a stage."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import flatten_settings, rl_fingerprint
from nemo_tapo.config.sections import RolloutConfig
from nemo_tapo.datasets.query_order import QueryOrder
from nemo_tapo.evaluation.validation import Validation
from nemo_tapo.interfaces import Algorithm
from nemo_tapo.stages.session import Session
from nemo_tapo.tracking.recorder import RunRecorder, SampleRecording
from nemo_tapo.tracking.trackers import Trackers
from nemo_tapo.types import Query


async def reinforce(session: Session, model: Path) -> None:
    """Train with TAPO or the configured algorithm, from `model` into <output>/hf.

    `model` is also the reference policy.
    """
    cfg = session.cfg
    await session.runtime.actor.load_model(model)
    await session.runtime.actor.set_reference()
    if cfg.teacher is not None and cfg.teacher.path is not None:
        await session.runtime.actor.set_teacher(cfg.teacher.path.resolve())
    order = QueryOrder(session.train_queries(), cfg.rollout.queries_per_step, cfg.seed)
    algorithm = make_algorithm(cfg, session.tools)
    loop = LoopConfig(
        folder=session.output,
        steps=cfg.steps,
        optimizer=cfg.optimizer,
        loss=cfg.loss,
        checkpoint_every=cfg.checkpoint.every,
        checkpoint_keep=cfg.checkpoint.keep,
        keep_best=cfg.checkpoint.keep_best,
        fingerprint=rl_fingerprint(cfg),
        engine_gap_bound=cfg.engine_gap_bound,
        lag=cfg.rollout.lag,
    )
    samples = SampleRecording(
        session.runtime.tokenizer,
        cfg.tapo if cfg.constructs else None,
        cfg.trajectories_per_step,
        max_bytes=int(cfg.rollouts_gib * 2**30),
    )
    trackers = Trackers(cfg.logger, session.output, flatten_settings(dict(cfg)), session.progress.message)
    recorder = RunRecorder(
        session.output,
        session.progress,
        "RL",
        cfg.steps,
        samples,
        groups=cfg.record_groups,
        trackers=trackers,
        tensorboard=cfg.logger.tensorboard_enabled,
    )
    validation = None if cfg.evaluation.every is None else Validation(cfg, session.tools, session.benchmarks)
    queries = make_query_source(cfg.rollout, order, algorithm)
    await session.run_loop(loop, algorithm, queries, recorder, validation)


def make_query_source(
    rollout: RolloutConfig, order: QueryOrder, algorithm: Algorithm
) -> Callable[[int], Sequence[Query]]:
    """Return the function from a step to its queries.

    With `rollout.dynamic_sampling` these begin where the steps before ended, which `algorithm` knows, and more follow
    that may replace them.
    """
    if rollout.dynamic_sampling is None:
        return order.queries
    assert isinstance(algorithm, GRPO), "an algorithm that samples derives from GRPO"
    most = int(rollout.dynamic_sampling * rollout.queries_per_step)

    def take(step: int) -> Sequence[Query]:
        algorithm.position = order.skip_rest(algorithm.position)
        return order.starting_at(algorithm.position, most)

    return take
