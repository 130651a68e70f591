"""Write the pairs that wait for the next step (`pipeline: deferred`) into a checkpoint, and read them back."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from typing import Any

from nemo_tapo.types import Completion, Grade, Pair, Query, Rollout


def write_pairs(pairs: Sequence[Pair]) -> dict[str, Any]:
    """Return JSON of the pairs: every rollout once, whole, with its query; pairs name their rollouts by uid.

    The log-probabilities of the engine are left out: they belong to the rollouts' own rows, which are trained already.
    Values of a query's `row` that JSON does not have (dates, bytes) become text, as they do for reward functions.

    >>> query = Query("7", "47+38=?", "85", (2, 52, 3))
    >>> wrong, right = (Rollout(query, k, Completion((1,), "", False), Grade(float(k), "")) for k in range(2))
    >>> pair = Pair(wrong, right, index=0, group_rewards=(0.0, 1.0))
    >>> write_pairs([pair])["pairs"]
    [{'wrong': '7/0', 'right': '7/1', 'index': 0, 'group_rewards': (0.0, 1.0)}]
    >>> read_pairs(write_pairs([pair])) == (pair,)
    True
    """
    rollouts = {rollout.uid: rollout for pair in pairs for rollout in (pair.wrong, pair.right)}
    plain = (asdict(replace(r, completion=replace(r.completion, logprobs=None))) for r in rollouts.values())
    return {
        "rollouts": json.loads(json.dumps(list(plain), default=str)),
        "pairs": [
            {"wrong": p.wrong.uid, "right": p.right.uid, "index": p.index, "group_rewards": p.group_rewards}
            for p in pairs
        ],
    }


def read_pairs(written: Mapping[str, Any]) -> tuple[Pair, ...]:
    """Return the pairs that `write_pairs` wrote, in their order."""
    rollouts = {rollout.uid: rollout for rollout in map(_read_rollout, written["rollouts"])}
    return tuple(
        Pair(rollouts[p["wrong"]], rollouts[p["right"]], p["index"], tuple(p["group_rewards"]))
        for p in written["pairs"]
    )


def _read_rollout(written: Mapping[str, Any]) -> Rollout:
    query, completion = dict(written["query"]), dict(written["completion"])
    query["prompt_ids"] = tuple(query["prompt_ids"])
    completion["token_ids"] = tuple(completion["token_ids"])
    return Rollout(Query(**query), written["index"], Completion(**completion), Grade(**written["grade"]))
