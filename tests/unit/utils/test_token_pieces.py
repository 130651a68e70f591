"""The text of each token of a response, for tokenizers of every kind."""

from __future__ import annotations

import pytest

from nemo_tapo.utils.token_text import TokenPieces, decode_token_pieces
from tests.helpers.text_tokenizers import CORPUS, KINDS, build_text_tokenizer


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("text", [*CORPUS, "3 * 4 = 12\n  twelve \U0001f980 \u5357 legs"])
def test_the_pieces_joined_are_the_text(kind: str, text: str) -> None:
    tokenizer = build_text_tokenizer(kind)
    ids = tokenizer.encode(text)
    pieces = decode_token_pieces(ids, tokenizer.decode)
    assert pieces == TokenPieces(tokenizer.decode).split(ids)
    assert len(pieces) == len(ids)
    assert "".join(pieces) == tokenizer.decode(ids) == text
    assert len(ids) > 12, "a text of one token would show nothing"
