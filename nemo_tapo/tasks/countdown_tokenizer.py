"""A byte-level BPE tokenizer for Countdown. A number below 100 is one token: a tiny model copies tokens, not digits."""

from __future__ import annotations

from typing import TYPE_CHECKING

from nemo_tapo.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 552

_PIECES = r"</?[a-z]+>|\\boxed\{|[0-9]{1,2}|[-+*=(){}]|Wait, |: | vs |[.]\n?| ?[A-Za-z]+|\n"
_WORDS = (
    *map(str, range(10, 100)),
    *(
        "user|assistant|<analysis>|</analysis>|<reconstruction>|</reconstruction>|\\boxed{|: |Wait, |.\n|"
        " vs | yes| no|Numbers|Target| is| not| there| all| are| used| the| numbers| answer| wrong|"
        "Question|Wrong|Right|Find| first| mistake| then| correct| it|Copy| this| text|Repeat|Check|Text|"
        "Go| on| after| line| question| and| of"
    ).split("|"),
)


def build_tokenizer() -> PreTrainedTokenizerFast:
    """Build the tokenizer, with Qwen's chat markers and template."""
    return build_word_tokenizer(_PIECES, _WORDS, VOCABULARY_SIZE)
