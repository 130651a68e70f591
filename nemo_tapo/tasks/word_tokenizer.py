"""Build a byte-level BPE tokenizer from a list of words; every build gives the same bytes.

It is not trained on data. The vocabulary is the 256 bytes, three special tokens, and merges that make the given words
single tokens. Other text is encoded as pieces of words and as bytes.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # END is also the end of a response

# `enable_thinking` is accepted, as in Qwen3's template, but changes nothing.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)


def build_word_tokenizer(pieces: str, words: Sequence[str], size: int) -> PreTrainedTokenizerFast:
    """Build a tokenizer with `size` tokens, Qwen's chat markers and its template.

    No merge crosses the borders of what the regular expression `pieces` matches; text between two such pieces is one
    piece. Words get their merges in their order, the last ones only as far as `size` allows. Raises ValueError if they
    do not fill the vocabulary.
    """
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _build_vocabulary(words, size)
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pieces), behavior="isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    core.decoder = decoders.ByteLevel()
    core.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in (PAD, START, END)])
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=core,
        eos_token=END,
        pad_token=PAD,
        model_max_length=1024,
        clean_up_tokenization_spaces=False,
    )
    tokenizer.chat_template = CHAT_TEMPLATE
    return tokenizer


def _map_bytes_to_letters() -> dict[int, str]:
    """Return the printable character that represents each byte in byte-level BPE (GPT-2's mapping)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _build_vocabulary(words: Sequence[str], size: int) -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return {token: id} and the merges in rank order.

    Tokens are the special ones, the 256 bytes, then one per merge, up to `size`.
    """
    letters = _map_bytes_to_letters()
    tokens = [PAD, START, END, *(letters[byte] for byte in range(256))]
    known = set(tokens)
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in words:
        parts = _apply_merges([letters[byte] for byte in word.encode()], ranks)
        while len(parts) > 1 and len(tokens) < size:
            pair, joined = (parts[0], parts[1]), parts[0] + parts[1]
            assert joined not in known, f"two ways to {joined!r}: reorder the words"
            ranks[pair] = len(merges)
            merges.append(pair)
            tokens.append(joined)
            known.add(joined)
            parts = _apply_merges(parts, ranks)
    if len(tokens) != size:
        raise ValueError(f"the words fill {len(tokens)} of {size} tokens: add words")
    return {token: i for i, token in enumerate(tokens)}, merges


def _apply_merges(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Encode one piece by byte-pair encoding: join the pair of lowest rank until no pair has a rank."""
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        _, i = min(found)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
