"""The policy's tokenizer as the runtimes see it."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.tasks.arithmetic_tokenizer import build_tokenizer


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("tokenizer")
    build_tokenizer().save_pretrained(path)
    return path


def test_chat_is_the_template_and_opens_the_answer(folder: Path) -> None:
    tokenizer = HFTokenizer(folder)
    own = build_tokenizer()
    text = own.apply_chat_template([{"role": "user", "content": "47+38=?"}], tokenize=False, add_generation_prompt=True)
    assert tokenizer.chat("47+38=?") == tuple(own.encode(text, add_special_tokens=False))
    assert tokenizer.chat("47+38=?")[-1] != tokenizer.eos_id


def test_text_survives_and_specials_do_not(folder: Path) -> None:
    tokenizer = HFTokenizer(folder)
    text = "47 , 38 = 85 .\n\n do n't  tidy\n\\boxed{85}"
    ids = tokenizer.encode(text)
    assert tokenizer.decode(ids) == text
    assert tokenizer.decode((*ids, tokenizer.eos_id, tokenizer.pad_id)) == text
    assert tokenizer.eos_id not in ids


def test_thinking_is_told_to_the_template(folder: Path, tmp_path: Path) -> None:
    build_tokenizer().save_pretrained(tmp_path)
    (tmp_path / "chat_template.jinja").write_text("{{ 'on' if enable_thinking else 'off' }}")
    assert HFTokenizer(tmp_path, enable_thinking=True).chat("?") == HFTokenizer(folder).encode("on")
    assert HFTokenizer(tmp_path, enable_thinking=False).chat("?") == HFTokenizer(folder).encode("off")


def test_what_is_missing_is_said(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"tokenizer_config\.json is missing"):
        HFTokenizer(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.chat_template = None
    tokenizer.save_pretrained(tmp_path)
    with pytest.raises(ValueError, match="has no chat template"):
        HFTokenizer(tmp_path)
    tokenizer = build_tokenizer()
    tokenizer.save_pretrained(tmp_path)
    config = json.loads((tmp_path / "tokenizer_config.json").read_text())
    config.pop("eos_token")
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    with pytest.raises(ValueError, match="has no EOS token"):
        HFTokenizer(tmp_path)
