"""Prefix anchoring in the tokens of language models: pieces of words, pieces of characters, blanks before a text."""

from __future__ import annotations

import random

import pytest

from nemo_tapo.algorithms.reflection import anchor_prefix, encode_as_sampled
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.utils.token_text import common_prefix_length
from tests.helpers.text_tokenizers import CORPUS, KINDS, build_text_tokenizer

WRONG = "3 crabs have 3 * 8 = 24 legs.\n2 bees have 2 * 6 = 12 legs.\n24 + 12 = 36\nThe answer is \\boxed{36}."
KEPT = "3 crabs have 3 * 8 = 24 legs."


@pytest.fixture(scope="module", params=KINDS)
def tokenizer(request: pytest.FixtureRequest) -> HFTokenizer:
    return build_text_tokenizer(request.param)


def draw_words(draw: random.Random) -> str:
    """Draw a few pieces of the corpus, cut at any character."""
    pieces = []
    for _ in range(draw.randint(1, 6)):
        text = draw.choice(CORPUS)
        begin = draw.randrange(len(text))
        pieces.append(text[begin : begin + draw.randint(1, 30)])
    return "".join(pieces).strip(" ")


@pytest.mark.parametrize(
    "rest", ["\nWait, a crab has 10 legs.", " Wait, 3 * 10 = 30.", "5", "\n\n caf\u00e9 \U0001f600", "  "]
)
def test_a_row_says_what_was_graded_and_begins_with_what_was_sampled(tokenizer: HFTokenizer, rest: str) -> None:
    sampled = (*tokenizer.encode(WRONG), tokenizer.eos_id)
    ids, kept, chars = anchor_prefix(KEPT + rest, WRONG, sampled, tokenizer)
    assert tokenizer.decode(ids) == KEPT + rest
    assert ids[-1] == tokenizer.eos_id
    assert ids[:kept] == sampled[:kept]
    assert chars > len(KEPT) - 8, "a token of the end at most may be cut"
    assert tokenizer.decode(ids[:kept]) == (KEPT + rest)[:chars]


def test_any_cut_of_any_text_keeps_as_many_sampled_tokens_as_fit(tokenizer: HFTokenizer) -> None:
    draw = random.Random(3)
    for _ in range(300):
        sampled = tokenizer.encode(draw_words(draw))
        wrong = tokenizer.decode(sampled)
        rest = draw.choice(("", " Wait, no.", "\nSo 5", "\u00e9\U0001f600", "7"))
        text = wrong[: draw.randint(1, len(wrong))] + rest
        shared = common_prefix_length(text, wrong)
        ids, kept, _ = encode_as_sampled(text, shared, (*sampled, tokenizer.eos_id), tokenizer)
        assert tokenizer.decode(ids) == text
        assert ids[:kept] == sampled[:kept]
        fits = [n for n in range(len(sampled) + 1) if text[:shared].startswith(tokenizer.decode(sampled[:n]))]
        assert len(tokenizer.decode(sampled[:kept])) == len(tokenizer.decode(sampled[: max(fits)]))


def test_broken_characters_are_kept_as_they_were_sampled() -> None:
    """A policy at temperature 1 samples halves of characters; their bytes stay, though the text has only U+FFFD."""
    tokenizer, draw = build_text_tokenizer("byte_level"), random.Random(5)
    whole = tokenizer.encode("2 bees \U0001f980 \u5357\u00fc have 12 legs.")
    for _ in range(300):
        sampled = tuple(draw.choice(whole) for _ in range(12))
        wrong = tokenizer.decode(sampled)
        text = wrong[: draw.randint(0, len(wrong))] + " Wait"
        shared = common_prefix_length(text, wrong)
        ids, kept, _ = encode_as_sampled(text, shared, sampled, tokenizer)
        assert ids[:kept] == sampled[:kept]
        assert tokenizer.decode(ids) == text
    assert "\ufffd" in "".join(tokenizer.decode([i]) for i in whole)
