"""Write a rollout as JSON, without its query, and read it back: the cold start's samples."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from nemo_tapo.types import Completion, Grade, Query, Rollout
from nemo_tapo.utils.token_ids import share_ids


def write_rollout(rollout: Rollout) -> dict[str, Any]:
    """Return a rollout as JSON; the engine's log-probabilities and a grade's detail are left out."""
    completion, grade = rollout.completion, rollout.grade
    return {
        "text": completion.text,
        "token_ids": completion.token_ids,
        "truncated": completion.truncated,
        "reward": grade.reward,
        "outcome": grade.outcome,
        "answer": grade.answer,
        **({} if grade.correct_at is None else {"correct_at": grade.correct_at}),
    }


def read_rollout(query: Query, index: int, written: Mapping[str, Any]) -> Rollout:
    """Return the rollout `index` of a query: the inverse of `write_rollout`.

    Raises KeyError or TypeError if `written` is malformed.

    >>> query = Query(uid="7", question="47+38=?", answer="85")
    >>> rollout = Rollout(query, 0, Completion((5, 2), "85", truncated=False), Grade(1.0, "right", "85"))
    >>> read_rollout(query, 0, write_rollout(rollout)) == rollout
    True
    """
    return Rollout(
        query,
        index,
        Completion(share_ids(written["token_ids"]), written["text"], written["truncated"]),
        Grade(written["reward"], written["outcome"], written["answer"], written.get("correct_at")),
    )
