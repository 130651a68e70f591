"""A runtime for a model behind an endpoint. It starts no process.

The server has its own tokenizer, chat template and engine. Code that asks this runtime for one of them has a bug, so
those calls raise AssertionError.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_tapo.interfaces import Actor
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.types import Completion, Request

NOT_AVAILABLE = "the model is behind an endpoint: {} is not on this side"


class EndpointTokenizer:
    """A stand-in for the server's tokenizer.

    `chat` returns no token ids, so no prompt counts as too long. The server rejects prompts that are too long.
    `encode` and `decode` raise AssertionError.
    """

    eos_id = pad_id = -1

    def chat(self, user_text: str) -> tuple[int, ...]:
        """Return no token ids."""
        return ()

    def encode(self, text: str) -> tuple[int, ...]:
        """Raise AssertionError: the server encodes its own prompts."""
        raise AssertionError(NOT_AVAILABLE.format("its tokenizer"))

    def decode(self, ids: Sequence[int]) -> str:
        """Raise AssertionError: the server returns text."""
        raise AssertionError(NOT_AVAILABLE.format("its tokenizer"))


class EndpointGenerator:
    """A stand-in for the engine, which runs on the server. Its methods raise AssertionError."""

    max_model_len = 0

    async def generate(self, request: Request) -> Completion:
        """Raise AssertionError: requests go to the endpoint's client."""
        raise AssertionError(NOT_AVAILABLE.format("its engine"))

    async def update_weights(self, weights: Any) -> None:
        """Raise AssertionError: the weights on the server cannot be changed."""
        raise AssertionError(NOT_AVAILABLE.format("its engine"))


class EndpointRuntime(RuntimeDefaults):
    """Implementation of `interfaces.Runtime` for an evaluation through an endpoint: the task, and stand-ins."""

    def __init__(self) -> None:
        self.tokenizer = EndpointTokenizer()
        self.generator = EndpointGenerator()

    @property
    def actor(self) -> Actor:
        """Raise AssertionError: a served model is not trained."""
        raise AssertionError(NOT_AVAILABLE.format("its actor"))

    def close(self) -> None:
        """Do nothing: no process was started."""
