"""Find which tokens make up which part of a text.

`decode` is a tokenizer's: ids to text. The text of several tokens is not always that of each joined: a character may
consist of several tokens, and a replacement character stands for what is no whole one.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

Decode = Callable[[Sequence[int]], str]

LONGEST_CHARACTER = 4  # tokens: UTF-8 has at most four bytes
BLOCK = 64  # tokens that are decoded at once


def decode_token_pieces(ids: Sequence[int], decode: Decode) -> list[str]:
    """Decode each token id to its text, so that the pieces joined are the text of all.

    A character that consists of several tokens belongs to the last of them; the others have no text. Each piece is
    decoded behind the one before it, as some tokenizers take the blank off that a text begins with.

    >>> decode_token_pieces([195, 169, 33], lambda ids: bytes(ids).decode(errors="replace"))
    ['', 'é', '!']
    """
    pieces: list[str] = []
    before = begin = 0  # of the last piece; of the tokens whose text is still missing
    for end in range(1, len(ids) + 1):
        text = decode(ids[before:end])[len(decode(ids[before:begin])) :]
        if text.endswith("\ufffd") and end < len(ids) and end - begin < LONGEST_CHARACTER:
            pieces.append("")
            continue
        pieces.append(text)
        before, begin = begin, end
    return pieces


class TokenPieces:
    """Decodes tokens to pieces as `decode_token_pieces` does, and remembers the text of each token within a text.

    >>> pieces = TokenPieces(lambda ids: bytes(ids).decode(errors="replace"))
    >>> pieces.split([33, 195, 169, 33])
    ['!', '', 'é', '!']
    """

    def __init__(self, decode: Decode) -> None:
        self._decode = decode
        self._seen: dict[int, str] = {}
        self._before: Sequence[int] = ()  # a token behind which others are decoded: see `decode_token_pieces`

    def split(self, ids: Sequence[int]) -> list[str]:
        """Return the text of each token; joined they are the text of all."""
        if not self._before:
            self._before = next(([token] for token in ids if _is_whole(self._decode([token]))), ())
        for token in set(ids).difference(self._seen):
            self._seen[token] = self._decode([*self._before, token])[len(self._decode(self._before)) :]
        pieces = [self._decode(ids[:1]), *(self._seen[token] for token in ids[1:])] if ids else []
        if "\ufffd" in "".join(pieces):
            self._mend(pieces, ids)
        return pieces if "".join(pieces) == self._decode(ids) else decode_token_pieces(ids, self._decode)

    def _mend(self, pieces: list[str], ids: Sequence[int]) -> None:
        """Decode again each run of tokens that are no whole characters."""
        begin = 0
        while begin < len(pieces):
            end = begin
            while end < len(pieces) and "\ufffd" in pieces[end]:
                end += 1
            pieces[begin:end] = decode_token_pieces(ids[begin:end], self._decode)
            begin = end + 1


def _is_whole(text: str) -> bool:
    return text != "" and "\ufffd" not in text


def common_prefix_length(a: str, b: str) -> int:
    """Count the characters that `a` and `b` share at their start.

    >>> common_prefix_length("47+38=75", "47+38=85")
    6
    """
    return _find_last(0, min(len(a), len(b)), lambda end: a[:end] == b[:end])


def _find_last(low: int, high: int, holds: Callable[[int], bool]) -> int:
    """Return the largest number up to `high` for which `holds` is true: it is for `low`, and up to some number."""
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if holds(middle) else (low, middle - 1)
    return low


def count_tokens_within(ids: Sequence[int], text: str, decode: Decode) -> int:
    """Count the first `ids` that lie wholly within a text: the largest n so that `text` begins with that of ids[:n].

    Tokens without a text of their own, at the end of these, are not counted.

    >>> count_tokens_within([195, 169, 33], "é", lambda ids: bytes(ids).decode(errors="replace"))
    2
    """
    low = _find_longest(ids, text, decode)
    # a prefix that ends inside a character decodes to a replacement character, and so fits nowhere
    while low and not text.startswith(decode(ids[:low])):
        low -= 1
    while low and not _adds_text(ids, low, decode):
        low -= 1
    return low


def _adds_text(ids: Sequence[int], place: int, decode: Decode) -> bool:
    """Return whether the last of the first `place` ids has text; another model's second end-of-turn token has none.

    A blank may have none by itself where a tokenizer takes the blank off that a text begins with (Llama 2's).
    """
    return decode(ids[place - 1 : place]) != "" or decode(ids[: place - 1]) != decode(ids[:place])


def _find_longest(ids: Sequence[int], text: str, decode: Decode) -> int:
    """Return the largest n so that the text of ids[:n] is not longer than `text`: longer prefixes have longer texts.

    Decoding takes time that grows with the tokens, so blocks are decoded, and whole prefixes only to see that it is so.
    """
    begin = offset = 0
    while begin < len(ids):
        length = len(decode(ids[begin : begin + BLOCK]))
        if offset + length > len(text):
            break
        begin, offset = min(begin + BLOCK, len(ids)), offset + length

    def fits(end: int) -> bool:
        return len(decode(ids[:end])) <= len(text)

    last = min(begin + BLOCK, len(ids))
    found = _find_last(begin, last, lambda end: offset + len(decode(ids[begin:end])) <= len(text))
    if fits(found) and (found == len(ids) or not fits(found + 1)):
        return found
    return _find_last(0, len(ids), fits)  # a text is not that of its blocks, joined
