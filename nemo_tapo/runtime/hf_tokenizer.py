"""The policy's tokenizer as its model directory defines it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from nemo_tapo.utils.token_ids import share_ids


class HFTokenizer:
    """Implementation of `interfaces.Tokenizer` that wraps Hugging Face's AutoTokenizer.

    Raises ValueError if `path` holds no tokenizer with a chat template and an EOS token.
    """

    def __init__(self, path: Path, enable_thinking: bool = False) -> None:
        from transformers import AutoTokenizer

        if not (path / "tokenizer_config.json").is_file():
            raise ValueError(f"model.path: no tokenizer in '{path}' (tokenizer_config.json is missing).")
        self._set_tokenizer(AutoTokenizer.from_pretrained(path, local_files_only=True), path, enable_thinking)

    @classmethod
    def from_loaded(cls, tokenizer: Any, name: object, enable_thinking: bool = False) -> HFTokenizer:
        """Wrap a tokenizer that is already loaded. `name` identifies it in error messages.

        Raises ValueError if it has no chat template or no EOS token.
        """
        wrapper = cls.__new__(cls)
        wrapper._set_tokenizer(tokenizer, name, enable_thinking)
        return wrapper

    def _set_tokenizer(self, tokenizer: Any, path: object, enable_thinking: bool) -> None:
        self._tokenizer = tokenizer
        self._enable_thinking = enable_thinking
        if self._tokenizer.chat_template is None:
            raise ValueError(f"model.path: the tokenizer in '{path}' has no chat template.")
        if self._tokenizer.eos_token_id is None:
            raise ValueError(f"model.path: the tokenizer in '{path}' has no EOS token.")
        # Use the tokenizer's EOS, not the list in the generation config: the same single id ends every row.
        self.eos_id: int = self._tokenizer.eos_token_id
        pad = self._tokenizer.pad_token_id
        self.pad_id: int = self.eos_id if pad is None else pad

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Return the ids of one user turn and the opening of the assistant's turn, chat template applied."""
        text = self._tokenizer.apply_chat_template(
            [{"role": "user", "content": user_text}],
            tokenize=False,
            add_generation_prompt=True,
            enable_thinking=self._enable_thinking,
        )
        return self.encode(text)

    def encode(self, text: str) -> tuple[int, ...]:
        """Return the ids of plain text, nothing added. The text of a special token becomes that token."""
        return share_ids(self._tokenizer.encode(text, add_special_tokens=False))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out; no clean-up of spaces."""
        text = self._tokenizer.decode(list(ids), skip_special_tokens=True, clean_up_tokenization_spaces=False)
        return str(text)

    def decode_with_special_tokens(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens included, for people to read."""
        return str(self._tokenizer.decode(list(ids), skip_special_tokens=False, clean_up_tokenization_spaces=False))
