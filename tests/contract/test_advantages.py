"""Eq. 1, 4 and 5 beside NeMo-RL's `GRPOAdvantageEstimator`: where the two agree, and each place where they do not."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nemo_tapo.equations.advantage import AdvantageRules, group_advantages, normalise
from tests.helpers import reference

pytestmark = pytest.mark.nemo_rl
EPS = 1e-6
GROUPS = [[1.0, 0, 0, 1, 0, 0, 0, 0], [1.0, 1, 1, 0, 1, 1, 0, 1], [0.25, 0.5, 1, 0], [0.0, 1]]


class Settings(dict[str, Any]):
    """A mapping on v0.7.0, an object with attributes on main."""

    __getattr__ = dict.__getitem__


def theirs(prompts: list[int], rewards: list[float], leave_one_out: bool = False, scaled: bool = True) -> list[float]:
    """NeMo-RL's advantages; `prompts` are prompt tokens, one a row."""
    from nemo_rl.algorithms.advantage_estimator import GRPOAdvantageEstimator

    settings = Settings(use_leave_one_out_baseline=leave_one_out, normalize_rewards=scaled)
    estimator = GRPOAdvantageEstimator(settings, None)
    ids = torch.tensor(prompts)[:, None]
    out: list[float] = estimator.compute_advantage(ids, torch.tensor(rewards), torch.ones(len(rewards), 1))[
        :, 0
    ].tolist()
    return out


@pytest.mark.parametrize("rewards", GROUPS)
def test_without_leave_one_out_and_scaling_both_subtract_the_mean(rewards: list[float]) -> None:
    mean, deviation = reference.mean(rewards), reference.population_std(rewards)
    assert theirs([0] * len(rewards), rewards, scaled=False) == pytest.approx([r - mean for r in rewards], abs=1e-6)
    assert normalise(rewards, EPS) == pytest.approx([(r - mean) / (deviation + EPS) for r in rewards])


@pytest.mark.parametrize("rewards", GROUPS)
def test_their_deviation_is_bessels_and_ours_is_the_populations(rewards: list[float]) -> None:
    """Eq. 1 divides by sqrt(sum of squares / K), NeMo-RL by sqrt(sum of squares / (K - 1))."""
    factor = math.sqrt(len(rewards) / (len(rewards) - 1))
    expected = reference.normalised(rewards, rewards, EPS)
    assert normalise(rewards, EPS) == pytest.approx(expected)
    assert [a * factor for a in theirs([0] * len(rewards), rewards)] == pytest.approx(expected, rel=1e-4)
    assert theirs([0] * len(rewards), rewards) != pytest.approx(expected, rel=1e-2)


@pytest.mark.parametrize("rewards", GROUPS[:3])
def test_their_default_baseline_leaves_the_row_itself_out(rewards: list[float]) -> None:
    size = len(rewards)
    others = [(sum(rewards) - r) / (size - 1) for r in rewards]
    left_out = theirs([0] * size, rewards, leave_one_out=True, scaled=False)
    assert left_out == pytest.approx([r - o for r, o in zip(rewards, others, strict=True)], abs=1e-6)
    mean = sum(rewards) / size
    assert left_out != pytest.approx([r - mean for r in rewards], rel=1e-2)


def test_a_reflection_group_is_not_merged_with_its_querys_rollouts() -> None:
    """Constructed rows have the query's prompt, and NeMo-RL groups by equal prompts."""
    original, constructed = [1.0, 0, 0, 1, 0, 0, 0, 0], [1.0, 1, 0, 1]
    ours = group_advantages(original, constructed, AdvantageRules(eps=EPS))
    expected = reference.advantages(original, constructed, EPS)
    assert ours[0] == pytest.approx(expected.original) and ours[1] == pytest.approx(expected.constructed)
    merged = theirs([7] * 12, original + constructed)
    alone = theirs([7] * 8, original)
    assert merged[:8] != pytest.approx(alone, rel=1e-2)  # the contamination of section 3.4
    joint = group_advantages(original, constructed, AdvantageRules(eps=EPS, decoupled=False))
    assert [a * math.sqrt(12 / 11) for a in merged] == pytest.approx(joint[0] + joint[1], rel=1e-4)


def test_two_queries_with_equal_prompts_stay_two_groups() -> None:
    first, second = [1.0, 0, 0, 0], [1.0, 1, 1, 0]
    ours = [*normalise(first, EPS), *normalise(second, EPS)]
    merged = theirs([3] * 8, first + second)
    assert theirs([3] * 4 + [4] * 4, first + second) == pytest.approx([a * math.sqrt(3 / 4) for a in ours], rel=1e-4)
    assert merged != pytest.approx([a * math.sqrt(3 / 4) for a in ours], rel=1e-2)


@pytest.mark.parametrize("reward", [0.0, 1.0])
def test_a_reflection_group_of_one_has_its_reward_for_advantage(reward: float) -> None:
    """Section 3.4; NeMo-RL gives a group of one the advantage 0, and the row would teach nothing."""
    original = [1.0, 0, 0, 1, 0, 0, 0, 0]
    assert group_advantages(original, [reward], AdvantageRules(eps=EPS))[1] == [reward]
    assert theirs([0], [reward]) == [0.0]
