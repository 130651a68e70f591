"""The learning rate by hand."""

from __future__ import annotations

import pytest

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate


def test_linear_warm_up_reaches_lr_at_its_last_step() -> None:
    settings = OptimizerConfig(lr=1.0, warmup_steps=4, schedule="constant")
    assert [compute_learning_rate(settings, i, 10) for i in (1, 2, 3, 4, 5, 10)] == [0.25, 0.5, 0.75, 1.0, 1.0, 1.0]


def test_cosine_falls_from_the_warm_up_to_the_last_step_and_stays() -> None:
    settings = OptimizerConfig(lr=2.0, warmup_steps=2, schedule="cosine", min_lr_ratio=0.1)
    rates = [compute_learning_rate(settings, i, 6) for i in (2, 3, 4, 5, 6, 7)]
    half = 2 * (0.1 + 0.9 * 0.5)
    quarter = 0.9 * 0.5 * 2**0.5  # cos(pi / 4) of the way around the middle
    assert rates == pytest.approx([2.0, half + quarter, half, half - quarter, 0.2, 0.2])


@pytest.mark.parametrize(("warmup", "total"), [(0, 1), (0, 5), (5, 5), (9, 5)])
def test_short_runs_have_a_rate_for_every_step(warmup: int, total: int) -> None:
    settings = OptimizerConfig(lr=1.0, warmup_steps=warmup)
    rates = [compute_learning_rate(settings, i, total) for i in range(1, total + 1)]
    assert all(0 <= rate <= 1 for rate in rates)
    assert rates[0] > 0 or total == 1
