"""A byte-level BPE tokenizer with exactly 512 tokens for the generated task; every build gives the same bytes.

It is not trained on data. The vocabulary is the 256 bytes, three special tokens, and merges that make the words of the
task single tokens. Every digit is one token. Other text is encoded as pieces of words and as bytes.
"""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512
PAD, START, END = "<|endoftext|>", "<|im_start|>", "<|im_end|>"  # END is also the end of a response

# `enable_thinking` is accepted, as in Qwen3's template, but changes nothing.
CHAT_TEMPLATE = (
    "{% for message in messages %}"
    "{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>\n' }}"
    "{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)

# Merges never cross the borders of these pieces: a tag, the opening of a box, one digit, a step's letter or a colon
# with its blank, a word with the blank before it, one line break. Text between two such pieces is one piece.
_PIECES = r"</?[a-z]+>|\\boxed\{|[0-9]|[a-h]: |:[ \n]?|[<>] | ?[A-Za-z]+|\n"

# Words get their merges in this order; the last ones only as far as the 512 tokens allow.
_WORDS = (
    "user|assistant|<analysis>|</analysis>|<reconstruction>|</reconstruction>|\\boxed{|: |:\n|< |> |"
    "a: |b: |c: |d: |e: |f: |g: |h: |"
    "Wait| the| carry| borrow| was| is| wrong| missing| forgotten| forgot| taken| twice| took| counts| once|"
    " I| a| result| step| numbers| copied| answer| that| got|Question|Wrong|Right|Find| first| mistake| then|"
    " correct| it|Copy| this| text|Text|Go| on| after| line|First|Second|Which| differs|Old|New|Show| change|"
    " red| blue| green| sun| moon| sea| sky| dog| cat| hat|red|blue|green|sun|moon|sea|sky|dog|cat|hat|"
    " too| many| no| such| has| wrote| question| of| to| in| and| not| for|system| with| by"
).split("|")


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, with Qwen's chat markers and template. Its `save_pretrained` writes a directory."""
    from tokenizers import AddedToken, Regex, Tokenizer, decoders, models, pre_tokenizers
    from transformers import PreTrainedTokenizerFast

    vocabulary, merges = _build_vocabulary()
    core = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    core.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_PIECES), behavior="isolated"),
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


def save_tokenizer(directory: str | Path) -> Path:
    """Write the tokenizer as a Hugging Face directory, create it if it is missing, and return its path."""
    build_tokenizer().save_pretrained(str(directory))
    return Path(directory)


def _map_bytes_to_letters() -> dict[int, str]:
    """Return the printable character that represents each byte in byte-level BPE (GPT-2's mapping)."""
    printable = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    others = [byte for byte in range(256) if byte not in printable]
    letters = {byte: chr(byte) for byte in printable}
    return letters | {byte: chr(256 + i) for i, byte in enumerate(others)}


def _build_vocabulary() -> tuple[dict[str, int], list[tuple[str, str]]]:
    """Return {token: id} and the merges in rank order.

    Tokens are the special ones, the 256 bytes, then one per merge, up to 512.
    """
    letters = _map_bytes_to_letters()
    tokens = [PAD, START, END, *(letters[byte] for byte in range(256))]
    known = set(tokens)
    merges: list[tuple[str, str]] = []
    ranks: dict[tuple[str, str], int] = {}
    for word in _WORDS:
        parts = _apply_merges([letters[byte] for byte in word.encode()], ranks)
        while len(parts) > 1 and len(tokens) < VOCABULARY_SIZE:
            pair, joined = (parts[0], parts[1]), parts[0] + parts[1]
            assert joined not in known, f"two ways to {joined!r}: reorder the words"
            ranks[pair] = len(merges)
            merges.append(pair)
            tokens.append(joined)
            known.add(joined)
            parts = _apply_merges(parts, ranks)
    if len(tokens) != VOCABULARY_SIZE:
        raise ValueError(f"the words fill {len(tokens)} of {VOCABULARY_SIZE} tokens: add words")
    return {token: i for i, token in enumerate(tokens)}, merges


def _apply_merges(parts: list[str], ranks: dict[tuple[str, str], int]) -> list[str]:
    """Encode one piece by byte-pair encoding: join the pair of lowest rank until no pair has a rank."""
    while True:
        found = [(ranks[pair], i) for i, pair in enumerate(pairwise(parts)) if pair in ranks]
        if not found:
            return parts
        _, i = min(found)
        parts = [*parts[:i], parts[i] + parts[i + 1], *parts[i + 2 :]]
