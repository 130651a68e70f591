"""A judge's reply as a verdict: exactly the JSON object that was asked for, or a reason why not. Nothing is guessed."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from nemo_tapo.judge.prompt import LABELS

_FENCED = re.compile(r"```(?:json)?[ \t]*\n(.*)\n[ \t]*```", re.DOTALL)
_NEEDS = {"correction": "reflection", "located": "correction", "diagnosis": "located"}  # true only with the other


class Unparsable(Exception):
    """The reply is no verdict. `reason` is one of REASONS."""

    REASONS = ("empty", "truncated", "not_json", "keys", "not_boolean", "inconsistent")

    def __init__(self, reason: str) -> None:
        assert reason in self.REASONS, reason
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Verdict:
    """What a judge says of one response; prompt.py says what each label means."""

    reflection: bool
    correction: bool
    located: bool
    diagnosis: bool
    answer_right: bool  # the judge's opinion; the rates take the verifier's
    evidence: str = ""  # the passage that decided

    def as_dict(self) -> dict[str, Any]:
        return asdict(self)


def parse(reply: str, truncated: bool = False) -> Verdict:
    """The verdict in a reply. Allowed around the object: a <think> block before it, a code fence.

    Raises Unparsable.
    """
    if truncated:
        raise Unparsable("truncated")
    text = without_thinking(reply)
    if not text:
        raise Unparsable("empty")
    fenced = _FENCED.fullmatch(text)
    try:
        value = json.loads(fenced[1] if fenced else text, object_pairs_hook=_object)
    except (ValueError, RecursionError):  # the latter: json gives up on thousands of nested brackets
        raise Unparsable("not_json") from None
    return from_dict(value)


def from_dict(value: Any) -> Verdict:
    """A decoded object as a verdict, checked as a judge's reply is. Raises Unparsable."""
    if not isinstance(value, dict) or set(value) != {"evidence", *LABELS}:
        raise Unparsable("keys")
    if not isinstance(value["evidence"], str) or not all(isinstance(value[name], bool) for name in LABELS):
        raise Unparsable("not_boolean")
    if any(value[name] and not value[needed] for name, needed in _NEEDS.items()):
        raise Unparsable("inconsistent")
    return Verdict(**value)


def without_thinking(reply: str) -> str:
    """The reply after its reasoning. Some chat templates put the opening <think> into the prompt, not the reply.

    A </think> within the object itself (a judge may quote one) does not count.
    """
    text = reply.strip()
    if text.startswith(("{", "```")):
        return text
    _, found, after = text.partition("</think>")
    return after.strip() if found else text


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys may not repeat: the second of two would win in silence."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value
