"""Write the pairs that wait for the next step (`pipeline: deferred`) into a checkpoint, and read them back."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.algorithms.experience_json import read_experience, write_experience
from nemo_tapo.types import Experience, Pair, Rollout


def write_pairs(pairs: Sequence[Pair]) -> list[Any]:
    """Return JSON of the pairs, as experience_json.py describes it; the engine's log-probabilities are left out.

    >>> from nemo_tapo.types import Completion, Grade, Query
    >>> query = Query("7", "47+38=?", "85", (2, 52, 3))
    >>> wrong, right = (Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2))
    >>> pair = Pair(wrong, right, index=0, group_rewards=(0.0, 1.0))
    >>> read_pairs(write_pairs([pair])) == (pair,)
    True
    """
    slim: dict[int, Rollout] = {}

    def strip(rollout: Rollout) -> Rollout:
        if id(rollout) not in slim:  # a rollout of several pairs is written once
            slim[id(rollout)] = replace(rollout, completion=replace(rollout.completion, logprobs=None))
        return slim[id(rollout)]

    stripped = (replace(pair, wrong=strip(pair.wrong), right=strip(pair.right)) for pair in pairs)
    return write_experience(Experience(waiting=tuple(stripped)))


def read_pairs(written: Sequence[Any]) -> tuple[Pair, ...]:
    """Return the pairs that `write_pairs` wrote, in their order."""
    return read_experience(written).waiting
