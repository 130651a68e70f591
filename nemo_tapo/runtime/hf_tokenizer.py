"""The policy's tokenizer as its model directory defines it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any


class HFTokenizer:
    """`interface.Tokenizer` over Hugging Face's AutoTokenizer.

    Raises ValueError if `path` holds no tokenizer with a chat template and an EOS token.
    """

    def __init__(self, path: Path, enable_thinking: bool = False) -> None:
        from transformers import AutoTokenizer

        if not (path / "tokenizer_config.json").is_file():
            raise ValueError(f"model.path: no tokenizer in '{path}' (tokenizer_config.json is missing).")
        self._take(AutoTokenizer.from_pretrained(path, local_files_only=True), path, enable_thinking)

    @classmethod
    def over(cls, tokenizer: Any, name: object, enable_thinking: bool = False) -> HFTokenizer:
        """Over a tokenizer that is loaded already; `name` says whose it is."""
        made = cls.__new__(cls)
        made._take(tokenizer, name, enable_thinking)
        return made

    def _take(self, tokenizer: Any, path: object, enable_thinking: bool) -> None:
        self._tokenizer = tokenizer
        self._enable_thinking = enable_thinking
        if self._tokenizer.chat_template is None:
            raise ValueError(f"model.path: the tokenizer in '{path}' has no chat template.")
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"model.path: the tokenizer in '{path}' has no EOS token.")
        # The tokenizer's EOS, not the generation config's list: one id ends a row everywhere.
        self.eos_id: int = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Ids of one user turn and the opening of the assistant's turn, chat template applied."""
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": user_text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._enable_thinking,
        )
        return self.encode(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Ids of plain text, nothing added. The text of a special token becomes that token."""
        return tuple(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Text of ids, special tokens left out; no clean-up of spaces."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def show(self, ids: Sequence[int]) -> str:
        """Text of ids with the special tokens written out, for people."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
