"""The schedules that NeMo-RL's workers are given, built as they build them, against the local runtime's rates."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest
import torch
from torch.optim.lr_scheduler import LRScheduler, SequentialLR

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate
from nemo_tapo.runtime.nemo_rl.cpu.policy_worker import make_megatron_schedule
from nemo_tapo.runtime.nemo_rl.sft_recipe import locate_recipe, make_megatron_scheduler, make_torch_schedulers


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


# ---- Megatron: its own scheduler class -------------------------------------------------------------------------------


def megatron(lr: float, min_lr: float, **scheduler: Any) -> dict[str, Any]:
    return {"optimizer": {"lr": lr, "min_lr": min_lr, "weight_decay": 0.0}, "scheduler": scheduler}


def test_megatron_counts_the_updates_done() -> None:
    """A warm-up of 2 to 3e-4 from 5e-7, as NeMo-RL's real worker reports it: the first update has lr_warmup_init."""
    settings = megatron(
        3e-4, 3e-4, lr_decay_style="constant", lr_decay_iters=1000, lr_warmup_iters=2, lr_warmup_init=5e-7
    )
    rate = make_megatron_schedule(settings)
    assert [rate(done) for done in range(4)] == pytest.approx([5e-7, 1.5025e-4, 3e-4, 3e-4])


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize("warmup", [0, 1, 2, 3, 50])
@pytest.mark.parametrize("steps", [2, 10])
def test_megatrons_rates_are_the_local_runtimes(schedule: Any, warmup: int, steps: int) -> None:
    settings = OptimizerConfig(lr=2e-4, warmup_steps=warmup, schedule=schedule, min_lr_ratio=0.1)
    rate = make_megatron_schedule(megatron(2e-4, 2e-5, **make_megatron_scheduler(settings, steps)))
    local = settings.model_copy(update={"warmup_steps": max(1, min(warmup, steps - 1))})
    found = [rate(done) for done in range(steps)]
    assert found == pytest.approx([compute_learning_rate(local, step, steps) for step in range(1, steps + 1)])
    assert found[0] > 0


def test_a_recipe_is_found_from_any_working_directory(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    named = Path("examples/configs/sft-qwen3-8b-1n8g-megatron.yaml")
    assert locate_recipe(named) == Path(__file__).parents[3] / named
    (tmp_path / "examples" / "configs").mkdir(parents=True)
    (tmp_path / named).write_text("sft: {}")
    assert locate_recipe(named) == tmp_path / named  # the working directory's own comes first
    with pytest.raises(ValueError, match=r"sft_recipe: no config file .*none\.yaml or .*none\.yaml"):
        locate_recipe(Path("none.yaml"))
