"""The learning rate of an optimizer step."""

from __future__ import annotations

import math

from nemo_tapo.config.sections import OptimizerConfig


def compute_learning_rate(optimizer: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of step `step` (the first is 1) in a run of `total_steps`.

    It rises linearly from 0 over `warmup_steps` and reaches `lr` at the last of them. Then it is constant, or follows
    half a cosine that reaches min_lr_ratio * lr at `total_steps` and stays there.

    >>> cosine = OptimizerConfig(lr=1.0, warmup_steps=2, schedule="cosine", min_lr_ratio=0.1)
    >>> [round(compute_learning_rate(cosine, step, total_steps=6), 2) for step in (1, 2, 4, 6, 7)]
    [0.5, 1.0, 0.55, 0.1, 0.1]
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
