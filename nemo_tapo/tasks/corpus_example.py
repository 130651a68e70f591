"""Define the example that the pre-training corpora of the tiny models consist of."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class CorpusExample:
    r"""One supervised example in plain text: `prompt` is the user's turn, `response` the assistant's.

    >>> CorpusExample("Copy this text.\nb$7", "b$7", "copy").kind
    'copy'
    """

    prompt: str
    response: str
    kind: str  # a key of the corpus's mix
