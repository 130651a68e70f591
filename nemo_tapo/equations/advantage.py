"""Compute decoupled advantages (Eq. 1, 4 and 5 of arXiv 2606.18844, section 3.4).

Groups are formed by key, never by comparing prompts: a query's rollouts under its uid, its constructed
trajectories under `<uid>_reflected`. The deviation is the population's (divided by the group's size).
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class AdvantageRules:
    """The switches that decide how a reflection group is normalised (`tapo.*` and `loss.advantage_eps`)."""

    eps: float = 1e-6
    decoupled: bool = True
    uniform_group: Literal["zero", "reward"] = "zero"
    baseline: Literal["constructed", "with_originals"] = "constructed"


def mean_and_deviation(rewards: Sequence[float]) -> tuple[float, float]:
    """Return mean and population standard deviation of Eq. 1. Equal rewards give a deviation of exactly 0.

    >>> mean_and_deviation([0.0, 1.0])
    (0.5, 0.5)
    """
    mean = math.fsum(rewards) / len(rewards)
    if is_uniform(rewards):  # the mean of equal floats need not equal them: do not divide rounding by eps
        return rewards[0], 0.0
    return mean, math.sqrt(math.fsum((r - mean) ** 2 for r in rewards) / len(rewards))


def is_uniform(rewards: Sequence[float]) -> bool:
    """Return True if all rewards are equal, so that Eq. 1 gives every member the advantage 0.

    >>> is_uniform([1.0, 1.0]), is_uniform([1.0, 0.0])
    (True, False)
    """
    return all(r == rewards[0] for r in rewards)


def normalise(rewards: Sequence[float], eps: float) -> list[float]:
    """Return (r - mean) / (deviation + eps) for each reward of one group (Eq. 1); [] for an empty group.

    >>> normalise([1.0, 0.0, 0.0, 1.0], eps=0.0)
    [1.0, -1.0, -1.0, 1.0]
    """
    return _relative_to(rewards, rewards, eps)


def group_advantages(
    original: Sequence[float], constructed: Sequence[float], rules: AdvantageRules
) -> tuple[list[float], list[float]]:
    """Return the advantages of one query's rollouts (Eq. 4) and of its constructed trajectories (Eq. 5).

    `original` [K] and `constructed` [m] are rewards; m may be 0.
    With `decoupled: false` both are normalised as one group, which is the contamination that section 3.4 describes.

    >>> group_advantages([1.0, 0.0], [1.0], AdvantageRules(eps=0.0))  # a single construction: its reward (section 3.4)
    ([1.0, -1.0], [1.0])
    """
    if not rules.decoupled:
        joint = normalise([*original, *constructed], rules.eps)
        return joint[: len(original)], joint[len(original) :]
    return normalise(original, rules.eps), reflection_advantages(constructed, original, rules)


def reflection_advantages(
    constructed: Sequence[float], original: Sequence[float], rules: AdvantageRules
) -> list[float]:
    """Return the advantages of constructed trajectories (Eq. 5), special cases included.

    With a single reward as baseline there is nothing to normalise: the reward itself is the advantage (section 3.4). A
    baseline of several equal rewards gives 0 under Eq. 5; `uniform_group: reward` treats it like a group of one.

    >>> reflection_advantages([1.0, 0.0], [0.0, 0.0], AdvantageRules(eps=0.0))
    [1.0, -1.0]
    >>> reflection_advantages([1.0, 1.0], [0.0, 0.0], AdvantageRules())
    [0.0, 0.0]
    """
    if not constructed:
        return []
    baseline = [*original, *constructed] if rules.baseline == "with_originals" else list(constructed)
    alone = len(baseline) == 1
    if alone or (rules.uniform_group == "reward" and is_uniform(baseline)):
        return list(constructed)
    return _relative_to(constructed, baseline, rules.eps)


def _relative_to(rewards: Sequence[float], baseline: Sequence[float], eps: float) -> list[float]:
    if not rewards:
        return []
    mean, deviation = mean_and_deviation(baseline)
    if deviation == 0.0:  # every reward equals the mean; 0 / eps, also where eps is 0
        return [0.0] * len(rewards)
    return [(r - mean) / (deviation + eps) for r in rewards]
