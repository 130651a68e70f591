"""What is compared while a run goes on: a fresh run's first step may end it, anything later is told."""

from __future__ import annotations

import math
from pathlib import Path

import pytest

from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.sections import LossConfig, OptimizerConfig
from nemo_tapo.scoring import PolicyComparison


def comparison(told: list[str], bound: float = 0.05, updates: int = 1) -> PolicyComparison:
    loop = LoopConfig(
        Path("runs/x"), 9, OptimizerConfig(), LossConfig(updates_per_batch=updates), engine_gap_bound=bound
    )
    return PolicyComparison(loop, told.append)


def test_one_logit_in_ten_that_bf16_rounds_otherwise_is_no_other_reference() -> None:
    """Neighbouring bf16 logits above 16 are 0.125 apart: k3 = e^-0.125 - 1 + 0.125 = 0.0075 at such a token."""
    flipped = math.exp(-0.125) - 1 + 0.125
    comparison([]).check(0, {"kl_ref": flipped / 10, "engine_gap": 0.0125}, first=True)
    with pytest.raises(ValueError, match="reference is another model"):
        comparison([], bound=0.01).check(0, {"kl_ref": flipped / 10}, first=True)  # fp32 has no such steps
    with pytest.raises(ValueError, match="reference is another model"):
        comparison([]).check(0, {"kl_ref": 0.05}, first=True)


def test_a_run_that_goes_on_is_told_and_not_ended() -> None:
    told: list[str] = []
    comparison(told).check(24, {"engine_gap": 0.2, "ratio_deviation": 0.1, "kl_ref": 3.0}, first=True)
    assert len(told) == 2 and all(sentence.startswith("step 25: ") for sentence in told)
    assert "|ratio - 1| is 0.1" in told[0] and "differ by 0.2 nats" in told[1]


def test_engine_and_actor_are_compared_after_updates_too() -> None:
    """Stale weights show only once the policy has moved: 0.015, then 0.2. It is told again when it doubles."""
    told: list[str] = []
    compared = comparison(told)
    for step, gap in enumerate((0.015, 0.02, 0.2, 0.3, 0.45, 0.01)):
        compared.check(step, {"engine_gap": gap, "kl_ref": 0.1 * step}, first=step == 0)
    assert [sentence.split(":")[0] for sentence in told] == ["step 3", "step 5"]


def test_every_fault_of_the_first_step_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="first step") as raised:
        comparison([]).check(0, {"engine_gap": math.nan, "ratio_deviation": math.nan, "kl_ref": 1.0}, first=True)
    assert len(str(raised.value).splitlines()) == 3


def test_with_several_updates_the_policy_may_move_within_a_step() -> None:
    comparison([], updates=2).check(0, {"ratio_deviation": 0.1, "kl_ref": 0.1}, first=True)
