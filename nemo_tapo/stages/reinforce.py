"""Reinforcement learning as a stage."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.config.run_config import rl_fingerprint
from nemo_tapo.datasets.query_order import QueryOrder
from nemo_tapo.stages.session import Session
from nemo_tapo.stages.supervised import MODEL
from nemo_tapo.tracking.recorder import RunRecorder
from nemo_tapo.train import Plan, train


async def reinforce(session: Session, model: Path) -> None:
    """TAPO (or GRPO) from `model`, which is also the reference policy; leaves <output>/hf."""
    cfg = session.cfg
    await session.runtime.actor.load_model(model)
    await session.runtime.actor.set_reference()
    if cfg.algorithm == "opsd" and cfg.opsd.teacher_path is not None:
        await session.runtime.actor.set_teacher(cfg.opsd.teacher_path.resolve())
    queries = QueryOrder(session.train_queries(), cfg.rollout.queries_per_step, cfg.seed)
    plan = Plan(
        folder=session.output,
        steps=cfg.steps,
        optimizer=cfg.optimizer,
        loss=cfg.loss,
        reflection_weight=cfg.tapo.weight,
        example_weight=cfg.tapo.ift_weight,
        temperature=cfg.rollout.temperature,
        teacher=cfg.opsd.teacher if cfg.algorithm == "opsd" and cfg.opsd.divergence == "sampled" else None,
        checkpoint_every=cfg.checkpoint.every,
        checkpoint_keep=cfg.checkpoint.keep,
        fingerprint=rl_fingerprint(cfg),
        engine_gap_bound=cfg.engine_gap_bound,
    )
    algorithm = make_algorithm(cfg, session.tools)
    recorder = RunRecorder(
        session.output,
        session.progress,
        cfg.algorithm.upper(),
        cfg.steps,
        session.runtime.tokenizer,
        cfg.tapo if cfg.constructs else None,
        cfg.trajectories_per_step,
    )
    try:
        watched = session.runtime.recorder(recorder, session.stop)
        await train(plan, algorithm, session.runtime, queries.queries, watched, session.stop)
    finally:
        recorder.close()
    await session.export(session.output / MODEL)
