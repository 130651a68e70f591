"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from nemo_tapo.config.sections import OptimizerConfig


def learning_rate(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """The rate of step `step` (the first is 1) of a run of `total_steps`.

    Linear from 0 over `warmup_steps`, reaching `lr` at the last of them; then constant, or half a cosine that
    reaches min_lr_ratio * lr at `total_steps` and stays there.
    """
    assert step >= 1
    if step < optimizer.warmup_steps:
        return optimizer.lr * step / optimizer.warmup_steps
    if optimizer.schedule == "constant":
        return optimizer.lr
    cosine_steps = max(total_steps - optimizer.warmup_steps, 1)
    progress = min(max(step - optimizer.warmup_steps, 0) / cosine_steps, 1.0)
    low = optimizer.min_lr_ratio
    return optimizer.lr * (low + (1 - low) * 0.5 * (1 + math.cos(math.pi * progress)))
