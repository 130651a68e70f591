"""Which tokens make up which part of a text, with tokens of one byte and tokens of several."""

import random
from collections.abc import Callable, Sequence

import pytest

from nemo_tapo.utils.token_text import (
    BLOCK,
    TokenPieces,
    common_prefix_length,
    count_tokens_within,
    decode_token_pieces,
)

Decode = Callable[[Sequence[int]], str]
WORDS = {256: b"the ", 257: "\u00e9t\u00e9 ".encode(), 258: b"", 259: "\U0001f600".encode()[:2], 260: b"\n"}


def decode_bytes(ids: Sequence[int]) -> str:
    """Decode as byte-level BPE does: ids below 256 are bytes, others of several bytes, or of none."""
    return b"".join(WORDS.get(i) if i in WORDS else bytes([i]) for i in ids).decode("utf-8", "replace")  # type: ignore[misc]


def decode_stripped(ids: Sequence[int]) -> str:
    """Decode as SentencePiece's models do, which drop the blank that a text begins with."""
    return decode_bytes(ids).removeprefix("t")


def draw_ids(seed: int, length: int) -> list[int]:
    draw = random.Random(seed)
    text = "".join(draw.choices(["a", "b ", "\n", "\u00e9", "\u2220", "\U0001f600", "t"], k=length)).encode()
    ids = [*text, *draw.choices(list(WORDS), k=length // 4)]
    cut = draw.randrange(len(ids))
    return ids[cut:] + ids[:cut]


def count_by_trying(ids: Sequence[int], text: str, decode: Decode) -> int:
    """Try every prefix: the longest whose text is not longer, stepped back to one that the text begins with."""
    best = max(n for n in range(len(ids) + 1) if len(decode(ids[:n])) <= len(text))
    while best and not text.startswith(decode(ids[:best])):
        best -= 1
    while best and decode(ids[:best]) == decode(ids[: best - 1]) and not decode(ids[best - 1 : best]):
        best -= 1
    return best


@pytest.mark.parametrize("decode", [decode_bytes, decode_stripped])
def test_tokens_within_are_those_that_trying_every_prefix_finds(decode: Decode) -> None:
    """Texts shorter than a block and several blocks long; cut anywhere, or not a beginning of the tokens' text."""
    for seed in range(60):
        ids = draw_ids(seed, 3 if seed % 3 else 2 * BLOCK)
        whole = decode(ids)
        for end in range(0, len(whole) + 1, 1 + len(whole) // 9):
            for text in (whole[:end], whole[:end] + "x"):
                assert count_tokens_within(ids, text, decode) == count_by_trying(ids, text, decode)


def test_no_tokens_are_within_a_text_that_begins_otherwise() -> None:
    assert count_tokens_within([*b"abc"], "xyz", decode_bytes) == 0
    assert count_tokens_within([], "xyz", decode_bytes) == 0


def test_long_texts_are_not_decoded_again_and_again() -> None:
    """With 8,192 tokens, halving alone would decode 13 prefixes, about 50,000 tokens."""
    seen = []

    def decode(ids: Sequence[int]) -> str:
        seen.append(len(ids))
        return decode_bytes(ids)

    ids = [97] * 8192
    assert count_tokens_within(ids, "a" * 6000, decode) == 6000
    assert sum(seen) < 26_000


def test_pieces_join_to_the_text() -> None:
    data = [*"a\u00e9\U0001f600b".encode()]
    for pieces in (decode_token_pieces(data, decode_bytes), TokenPieces(decode_bytes).split(data)):
        assert pieces == ["a", "", "\u00e9", "", "", "", "\U0001f600", "b"]


def test_remembered_pieces_are_those_of_each_token_decoded_in_place() -> None:
    pieces = TokenPieces(decode_bytes)
    for seed in range(60):
        draw = random.Random(seed)
        text = "".join(draw.choices(["a", "b ", "\u00e9", "\u2220", "\U0001f600"], k=20))
        ids = [*text.encode(), *draw.choices([256, 257, 258, 260], k=5), *text.encode()]
        assert "".join(pieces.split(ids)) == decode_bytes(ids)
        assert len(pieces.split(ids)) == len(ids)


def test_a_token_is_decoded_once() -> None:
    few = []

    def decode(ids: Sequence[int]) -> str:
        if len(ids) == 2:
            few.append(ids[-1])
        return decode_bytes(ids)

    pieces = TokenPieces(decode)
    pieces.split([*b"abcabc"])
    pieces.split([*b"cab"])
    assert sorted(few) == [*b"abc"]


@pytest.mark.parametrize(
    ("a", "b", "length"),
    [("", "", 0), ("", "a", 0), ("abc", "abd", 2), ("abc", "abc", 3), ("abc", "abcd", 3), ("x", "y", 0)],
)
def test_the_common_prefix_ends_at_the_first_difference(a: str, b: str, length: int) -> None:
    assert common_prefix_length(a, b) == common_prefix_length(b, a) == length


def test_the_common_prefix_of_long_texts() -> None:
    draw = random.Random(0)
    text = "".join(draw.choices("ab", k=5000))
    for place in range(0, 5000, 97):
        assert common_prefix_length(text, text[:place] + "c" + text[place + 1 :]) == place
