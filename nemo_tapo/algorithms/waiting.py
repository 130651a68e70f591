"""Write the pairs that wait for the next step (`pipeline: deferred`) into a checkpoint, and read them back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from nemo_tapo.algorithms.rollout_json import read_rollout, write_rollout
from nemo_tapo.types import Pair, Query


def write_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return JSON of the pairs: every rollout once, with its query; pairs name their rollouts by uid.

    Values of a query's `row` that JSON does not have (dates, bytes) become text, as they do for reward functions.

    >>> from nemo_tapo.types import Completion, Grade, Rollout
    >>> query = Query("7", "47+38=?", "85", (2, 52, 3))
    >>> wrong, right = (Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2))
    >>> pair = Pair(wrong, right, index=0, group_rewards=(0.0, 1.0))
    >>> write_pairs([pair])["pairs"]
    [{'wrong': '7/0', 'right': '7/1', 'index': 0, 'group_rewards': (0.0, 1.0)}]
    >>> read_pairs(write_pairs([pair])) == (pair,)
    True
    """
    rollouts = {rollout.uid: rollout for pair in pairs for rollout in (pair.wrong, pair.right)}
    plain = [{"query": asdict(r.query), "index": r.index, **write_rollout(r)} for r in rollouts.values()]
    return {
        "rollouts": json.loads(json.dumps(plain, default=str)),
        "pairs": [
            {"wrong": p.wrong.uid, "right": p.right.uid, "index": p.index, "group_rewards": p.group_rewards}
            for p in pairs
        ],
    }


def read_pairs(written: Mapping[str, Any]) -> tuple[Pair, ...]:
    """Return the pairs that `write_pairs` wrote, in their order."""
    found = (read_rollout(_read_query(each["query"]), each["index"], each) for each in written["rollouts"])
    rollouts = {rollout.uid: rollout for rollout in found}
    return tuple(
        Pair(rollouts[p["wrong"]], rollouts[p["right"]], p["index"], tuple(p["group_rewards"]))
        for p in written["pairs"]
    )


def _read_query(written: Mapping[str, Any]) -> Query:
    return Query(**{**written, "prompt_ids": tuple(written["prompt_ids"])})
