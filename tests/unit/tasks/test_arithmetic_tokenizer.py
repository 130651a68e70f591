"""The tokenizer of the generated task: size, digits, round trip, chat template, saved directory."""

from __future__ import annotations

from pathlib import Path

import pytest
from transformers import AutoTokenizer, PreTrainedTokenizerFast

from nemo_tapo.tasks.arithmetic_tokenizer import build_tokenizer, save_tokenizer


@pytest.fixture(scope="module")
def tokenizer() -> PreTrainedTokenizerFast:
    return build_tokenizer()


def test_size_and_specials(tokenizer: PreTrainedTokenizerFast) -> None:
    assert len(tokenizer) == 512
    assert sorted(tokenizer.get_vocab().values()) == list(range(512))
    assert (tokenizer.pad_token, tokenizer.eos_token) == ("<|endoftext|>", "<|im_end|>")


def test_every_digit_is_a_token_and_task_words_are_single(tokenizer: PreTrainedTokenizerFast) -> None:
    assert tokenizer.tokenize("147+38=185") == list("147+38=185")
    tags = ("<analysis>", "</analysis>", "<reconstruction>", "</reconstruction>")
    for piece in (*tags, "\\boxed{", "Wait", " carry"):
        assert len(tokenizer.encode(piece)) == 1, piece


@pytest.mark.parametrize(
    "text",
    [
        "",
        "47+38=85\n85-19=66\n\\boxed{66}",
        "<analysis>47+38=75 is wrong.</analysis>\n<reconstruction>Wait, 85</reconstruction>",
        "  two  blanks ,a comma .  \r\n\ttab ",
        "héllo ☃ 你好 🙂 \uff11\uff12",
        "a <|im_start|>user b",
        "".join(chr(i) for i in range(1, 300)),
    ],
)
def test_any_text_survives(tokenizer: PreTrainedTokenizerFast, text: str) -> None:
    assert tokenizer.decode(tokenizer.encode(text)) == text


def test_tags_are_not_special(tokenizer: PreTrainedTokenizerFast) -> None:
    text = "<reconstruction>\\boxed{66}</reconstruction>"
    assert tokenizer.decode(tokenizer.encode(text + "<|im_end|>"), skip_special_tokens=True) == text


def test_chat_template_ignores_thinking(tokenizer: PreTrainedTokenizerFast) -> None:
    messages = [{"role": "user", "content": "47+38=?"}]
    want = "<|im_start|>user\n47+38=?<|im_end|>\n<|im_start|>assistant\n"
    for thinking in (True, False):
        got = tokenizer.apply_chat_template(
            messages, tokenize=False, add_generation_prompt=True, enable_thinking=thinking
        )
        assert got == want


def test_saved_directory_is_an_ordinary_one(tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> None:
    loaded = AutoTokenizer.from_pretrained(save_tokenizer(tmp_path / "tokenizer"))
    text = "47+38=75\nWait, the carry was forgotten: 47+38=85 ☃"
    assert loaded.encode(text) == tokenizer.encode(text)
    assert loaded.decode(loaded.encode(text)) == text
    assert (loaded.eos_token_id, loaded.pad_token_id) == (tokenizer.eos_token_id, tokenizer.pad_token_id)
    assert loaded.chat_template == tokenizer.chat_template


def test_two_builds_are_the_same(tokenizer: PreTrainedTokenizerFast) -> None:
    assert build_tokenizer().backend_tokenizer.to_str() == tokenizer.backend_tokenizer.to_str()
