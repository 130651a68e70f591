"""A runtime that runs nothing: the model is behind a server, which has its own tokenizer and template."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_tapo.interfaces import Actor
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.types import Completion, Request

NOT_HERE = "the model is behind an endpoint: {} is not on this side"


class ServedTokenizer:
    """Prompts have no token ids here, so none is too long; the server refuses what is."""

    eos_id = pad_id = -1

    def chat(self, user_text: str) -> tuple[int, ...]:
        return ()

    def encode(self, text: str) -> tuple[int, ...]:
        raise AssertionError(NOT_HERE.format("its tokenizer"))

    def decode(self, ids: Sequence[int]) -> str:
        raise AssertionError(NOT_HERE.format("its tokenizer"))


class ServedGenerator:
    """Stands where no engine was started."""

    max_model_len = 0

    async def generate(self, request: Request) -> Completion:
        raise AssertionError(NOT_HERE.format("its engine"))

    async def update_weights(self, weights: Any) -> None:
        raise AssertionError(NOT_HERE.format("its engine"))


class ServedRuntime(RuntimeDefaults):
    """`interface.Runtime` for an evaluation through an endpoint: it brings the task, and nothing was started."""

    def __init__(self) -> None:
        self.tokenizer = ServedTokenizer()
        self.generator = ServedGenerator()

    @property
    def actor(self) -> Actor:
        raise AssertionError(NOT_HERE.format("its actor"))

    def close(self) -> None:
        """Nothing was started."""
