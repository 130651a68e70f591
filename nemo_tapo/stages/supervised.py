"""Train on examples as a stage: pre-training and the cold start use the same loop as RL."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.algorithms.sft import SFT
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.stages.session import Session
from nemo_tapo.tracking.recorder import RunRecorder
from nemo_tapo.types import Row


@dataclass(frozen=True)
class SupervisedTraining:
    """The examples and settings of a supervised stage."""

    name: str  # in the progress display
    folder: Path  # checkpoints, metrics and the model, <folder>/hf
    steps: int
    examples: Callable[[int], Sequence[Row]]  # the rows of a step; every call with the same step gives the same rows
    optimizer: OptimizerConfig
    fingerprint: dict[str, Any]  # settings that determine the numbers: a checkpoint with others is refused


async def train_supervised(session: Session, training: SupervisedTraining) -> None:
    """Maximise the likelihood of the examples in the loop of RL, and write <folder>/hf."""
    cfg = session.cfg
    loop = LoopConfig(
        folder=training.folder,
        steps=training.steps,
        optimizer=training.optimizer,
        loss=cfg.loss.model_copy(update={"token_mean": True, "updates_per_batch": 1, "kl_coef": 0.0}),
        checkpoint_every=max(cfg.checkpoint.every, 50),
        checkpoint_keep=1,
        fingerprint=training.fingerprint,
    )
    recorder = RunRecorder(training.folder, session.progress, training.name, training.steps)
    await session.run_loop(loop, SFT(training.examples), lambda step: (), recorder)
