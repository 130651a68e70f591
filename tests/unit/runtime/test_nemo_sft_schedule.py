"""The schedule that NeMo-RL's DTensor workers are given, built as they build it, against the local runtime's rates."""

from __future__ import annotations

import importlib
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate
from nemo_tapo.runtime.nemo_rl.sft_recipe import make_torch_schedulers


def rates(settings: OptimizerConfig, steps: int) -> list[float]:
    optimizer = torch.optim.AdamW([torch.nn.Parameter(torch.zeros(1))], lr=settings.lr)

    def made(of: dict[str, Any]) -> LRScheduler:
        module, _, name = of["name"].rpartition(".")
        scheduler: LRScheduler = getattr(importlib.import_module(module), name)(optimizer, **of["kwargs"])
        return scheduler

    asked = make_torch_schedulers(settings, steps)
    if isinstance(asked, dict):
        scheduler = made(asked)
    else:
        *parts, last = asked
        scheduler = SequentialLR(optimizer, [made(of) for of in parts], last["milestones"])
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [1, 2, 3, 50])
def test_the_rates_are_the_local_runtimes(schedule: str, warmup: int) -> None:
    settings = OptimizerConfig(lr=2e-4, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.1)
    local = settings.model_copy(update={"warmup_steps": min(warmup, 9)})  # as for Megatron: the last step has the rate
    assert rates(settings, 10) == pytest.approx([compute_learning_rate(local, step, 10) for step in range(1, 11)])


def test_without_warm_up_it_begins_with_the_rate() -> None:
    settings = OptimizerConfig(lr=2e-4, warmup_steps=0, schedule="constant")
    assert rates(settings, 3) == pytest.approx([2e-4] * 3)
