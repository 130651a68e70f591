"""Supervised training as a stage: pre-training and the cold start go through the same loop as RL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.algorithms.sft import SFT
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.tracking.recorder import RunRecorder
from nemo_tapo.train import Plan, train
from nemo_tapo.types import Row

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

MODEL = "hf"  # the folder of a trained model, an ordinary Hugging Face directory


async def supervised(
    session: Session,
    name: str,
    folder: Path,
    steps: int,
    batch: Callable[[int], Sequence[Row]],
    optimizer: OptimizerConfig,
    fingerprint: dict[str, Any],
) -> None:
    """Maximum likelihood on `batch(step)` through the same loop; leaves <folder>/hf."""
    cfg = session.cfg
    plan = Plan(
        folder=folder,
        steps=steps,
        optimizer=optimizer,
        loss=cfg.loss.model_copy(update={"token_mean": True, "updates_per_batch": 1, "kl_coef": 0.0}),
        sample=False,
        checkpoint_every=max(cfg.checkpoint.every, 50),
        checkpoint_keep=1,
        fingerprint=fingerprint,
    )
    recorder = RunRecorder(folder, session.progress, name, steps, session.runtime.tokenizer)
    try:
        watched = session.runtime.recorder(recorder, session.stop)
        await train(plan, SFT(batch), session.runtime, lambda step: (), watched, session.stop)
    finally:
        recorder.close()
    await session.export(folder / MODEL)
