"""Parse a judge's reply: it is exactly the JSON object that was asked for, or it is rejected with a reason."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass
from typing import Any

from nemo_tapo.judge.prompt import LABELS
from nemo_tapo.utils.thinking import skip_thinking

_FENCES = ("```", "~~~")
_LANGUAGE = re.compile(r"[ \t]*[a-zA-Z0-9]*")  # after an opening fence
_OBJECT = re.compile(r"\{|```|~~~")  # how the object, or its fence, begins
_NEEDS = {
    "correction": "reflection",
    "located": "correction",
    "diagnosis": "located",
}  # each label needs the other to be true


class UnparsableReply(Exception):
    """A reply that is not a verdict. `reason` is one of REASONS."""

    REASONS = ("empty", "truncated", "not_json", "keys", "not_boolean", "inconsistent")

    def __init__(self, reason: str) -> None:
        assert reason in self.REASONS, reason
        super().__init__(reason)
        self.reason = reason


@dataclass(frozen=True)
class Verdict:
    """A judge's labels for one response; prompt.py defines them.

    >>> Verdict(reflection=True, correction=True, located=True, diagnosis=False, answer_right=True).diagnosis
    False
    """

    reflection: bool
    correction: bool
    located: bool
    diagnosis: bool
    answer_right: bool  # the judge's opinion; the rates use the verifier's
    evidence: str = ""  # the passage that decided the labels

    def as_dict(self) -> dict[str, Any]:
        """Return the fields as the JSON object that `verdict_from_dict` reads."""
        return asdict(self)


def parse_verdict(reply: str, truncated: bool = False) -> Verdict:
    """Return the verdict in a reply. <think> blocks before the object and a code fence around it are allowed.

    The fence may stand on lines of its own or not, and name any language. Raises UnparsableReply.
    """
    if truncated:
        raise UnparsableReply("truncated")
    text = strip_thinking(reply)
    if not text:
        raise UnparsableReply("empty")
    try:
        value = json.loads(strip_fence(text), object_pairs_hook=_make_object)
    except (ValueError, RecursionError):  # RecursionError: thousands of nested brackets
        raise UnparsableReply("not_json") from None
    return verdict_from_dict(value)


def verdict_from_dict(value: Any) -> Verdict:
    """Turn a decoded JSON object into a verdict, with the checks of a judge's reply. Raises UnparsableReply."""
    if not isinstance(value, dict) or set(value) != {"evidence", *LABELS}:
        raise UnparsableReply("keys")
    if not isinstance(value["evidence"], str) or not all(isinstance(value[name], bool) for name in LABELS):
        raise UnparsableReply("not_boolean")
    if any(value[name] and not value[needed] for name, needed in _NEEDS.items()):
        raise UnparsableReply("inconsistent")
    return Verdict(**value)


def strip_thinking(reply: str) -> str:
    """Return the reply without its reasoning, that is, the part after the last </think> before the object.

    There may be several blocks. Some chat templates put the opening <think> into the prompt, so it need not be in the
    reply. A </think> inside the object itself does not count: a judge may quote one.

    >>> strip_thinking("The carry was forgotten.</think> <think>Or was it?</think> {}")
    '{}'
    """
    return skip_thinking(reply.strip(), _OBJECT)


def strip_fence(text: str) -> str:
    """Return what a code fence encloses, if the text begins with one and ends with one; else the text itself.

    >>> strip_fence("```JSON {} ```"), strip_fence("~~~\\n{}\\n~~~"), strip_fence("```{}``` and more")
    ('{}', '{}', '```{}``` and more')
    """
    if not (text.startswith(_FENCES) and text.endswith(text[:3])):
        return text
    content = text.strip(text[0])
    language = _LANGUAGE.match(content)
    assert language is not None, "it matches nothing too"
    return content[language.end() :].strip()


def _make_object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """Make a dict of a JSON object. Raises ValueError for a repeated key, of which json would silently use the last."""
    value = dict(pairs)
    if len(value) < len(pairs):
        raise ValueError("a key stands twice")
    return value
