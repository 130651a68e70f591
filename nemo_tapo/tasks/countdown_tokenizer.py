"""A byte-level BPE tokenizer for Countdown. A number below 100 is one token: a tiny model copies tokens, not digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_tapo.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 544

_PIECES = r"</?[a-z]+>|\\boxed\{|[0-9]{1,2}|[-+*=(){}]|Wait, |: |[.]\n?| ?[A-Za-z]+|\n"
_WORDS = (
    *map(str, range(10, 100)),
    *(
        "user|assistant|<analysis>|</analysis>|<reconstruction>|</reconstruction>|\\boxed{|: |Wait, |.\n|"
        "Numbers|Target| is| not| there| all| are| used| the| numbers| answer| wrong|"
        "Question|Wrong|Right|Find| first| mistake| then| correct| it|Copy| this| text|Repeat|Check|Text|"
        "Go| on| after| line| question| and| to| of| for"
    ).split("|"),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, with Qwen's chat markers and template."""
    return build_word_tokenizer(_PIECES, _WORDS, VOCABULARY_SIZE)
