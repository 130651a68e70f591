"""Gather what one run of the loop is told, for RL and for supervised training alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tapo.config.sections import LossConfig, OptimizerConfig


@dataclass(frozen=True)
class LoopConfig:
    """Settings of `train.train`.

    >>> LoopConfig(Path("runs/demo"), steps=2, optimizer=OptimizerConfig(), loss=LossConfig()).checkpoint_every
    20
    """

    folder: Path  # checkpoints go to <folder>/checkpoints
    steps: int
    optimizer: OptimizerConfig
    loss: LossConfig
    checkpoint_every: int = 20
    checkpoint_keep: int = 2
    keep_best: bool = False  # also save and keep the best validated checkpoint
    fingerprint: dict[str, Any] = field(default_factory=dict)  # settings that decide the numbers
    engine_gap_bound: float = 0.01  # nats a token, checked at the first step
    lag: int = 0  # rollout.lag: 1 samples a step beside the update of the step before
