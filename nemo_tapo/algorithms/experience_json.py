"""Write what a step collected as JSON, and read it back: what waits for its update, or for its construction.

Every object is written once, after those that it refers to, so that what was one object is one again: a pair's rollouts
are those of its group. The last one is the experience::

    [["Query", {"uid": "7", "question": "47+38=?", "prompt_ids": {"ints": "2 52 3"}, ...}],
     ["Completion", {"token_ids": {"ints": "56 53 1"}, "logprobs": {"floats": "-0.25 -1.5 -0.125"}, ...}],
     ["Grade", {"reward": 1.0, "outcome": "right", ...}],
     ["Rollout", {"query": {"object": 0}, "index": 0, "completion": {"object": 1}, "grade": {"object": 2}}],
     ["Group", ...], ..., ["Experience", ...]]
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from nemo_tapo.types import Completion, Construction, Experience, Grade, Group, Pair, Query, Rollout
from nemo_tapo.utils.token_ids import share_ids

KINDS: dict[str, Any] = {
    kind.__name__: kind for kind in (Query, Completion, Grade, Rollout, Group, Pair, Construction, Experience)
}


def write_experience(experience: Experience) -> list[Any]:
    """Return JSON of an experience of rollouts, constructions and pairs; numbers come back exactly.

    Values of a query's `row` that JSON does not have become text when it is written to a file.

    >>> query = Query("7", "47+38=?", "85", (2, 52, 3))
    >>> rollout = Rollout(query, 0, Completion((1,), "", False, (-0.1,)), Grade(1.0, "right"))
    >>> experience = Experience(groups=(Group(query, (rollout,)),), metrics={"time/rollouts": 1.5})
    >>> read_experience(write_experience(experience)) == experience
    True
    """
    assert not experience.examples and not experience.lessons, "examples and lessons are not written"
    objects: list[Any] = []
    places: dict[int, int] = {}

    def write(value: Any) -> Any:
        if type(value).__name__ in KINDS:
            if id(value) not in places:
                written = {each.name: write(getattr(value, each.name)) for each in fields(value)}
                places[id(value)] = len(objects)
                objects.append([type(value).__name__, written])
            return {"object": places[id(value)]}
        if isinstance(value, tuple):
            return _write_tuple(value, write)
        return {"mapping": dict(value)} if isinstance(value, Mapping) else value

    write(experience)
    return objects


def _write_tuple(values: tuple[Any, ...], write: Any) -> dict[str, Any]:
    """Write numbers as one text: a response has thousands, and JSON of a checkpoint has a line for each value."""
    kinds = {type(value) for value in values}
    if kinds == {int}:
        return {"ints": " ".join(map(str, values))}
    if kinds == {float}:
        return {"floats": " ".join(map(repr, values))}
    return {"tuple": [write(value) for value in values]}


def read_experience(written: Sequence[Any]) -> Experience:
    """Return the experience that `write_experience` wrote."""
    objects: list[Any] = []

    def read(value: Any) -> Any:
        if not isinstance(value, dict):
            return value
        ((kind, content),) = value.items()
        if kind == "object":
            return objects[content]
        if kind == "tuple":
            return tuple(read(each) for each in content)
        if kind == "mapping":
            return content
        if kind == "ints":
            return share_ids(list(map(int, content.split())))
        return tuple(map(float, content.split()))

    for name, values in written:
        objects.append(KINDS[name](**{key: read(value) for key, value in values.items()}))
    experience: Experience = objects[-1]
    return experience
