"""A byte-level BPE tokenizer with exactly 512 tokens for the generated task; every build gives the same bytes.

The words of the task are single tokens, and every digit is one token.
"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.tasks.word_tokenizer import build_word_tokenizer

if TYPE_CHECKING:
    from transformers import PreTrainedTokenizerFast

VOCABULARY_SIZE = 512

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
    return build_word_tokenizer(_PIECES, _WORDS, VOCABULARY_SIZE)


def save_tokenizer(directory: str | Path) -> Path:
    """Write the tokenizer as a Hugging Face directory, create it if it is missing, and return its path."""
    build_tokenizer().save_pretrained(str(directory))
    return Path(directory)
