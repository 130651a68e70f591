"""Stand-ins where NeMo-RL's part cannot run at all: an engine that answers by script, a policy that notes calls."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.runtime.nemo_rl.cpu.generation import make_generation_output
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, arithmetic_script
from nemo_tapo.types import Request

LIMIT = 900  # tokens of one answer


class StubEngine:
    """`GenerationInterface` by arithmetic_script, a function of (prompt, seed). Keeps what it was asked."""

    def __init__(self, batch: Callable[[Any], Any] = dict, calls: list[str] | None = None) -> None:
        self.batch, self.tokenizer = batch, CharacterTokenizer()
        self.sizes: list[int] = []
        self.keys: set[str] = set()
        self.longest_prompt = 0
        self.calls = [] if calls is None else calls

    def generate(self, data: Mapping[str, Tensor], greedy: bool = False) -> Any:
        return self._answer(data)

    async def generate_async(self, data: Mapping[str, Tensor], greedy: bool = False) -> AsyncIterator[tuple[int, Any]]:
        for _ in range(int(data["seed"][0]) % 61):  # others get their turn
            await asyncio.sleep(0)
        yield 0, self._answer(data)

    def prepare_for_generation(self, *args: Any, **kwargs: Any) -> bool:
        self.calls.append("wake")
        return True

    def finish_generation(self, *args: Any, **kwargs: Any) -> bool:
        self.calls.append("sleep")
        return True

    def _answer(self, data: Mapping[str, Tensor]) -> Any:
        lengths = data["input_lengths"].tolist()
        self.sizes.append(len(lengths))
        self.keys |= set(data.keys())
        self.longest_prompt = max(self.longest_prompt, *lengths)
        if "generate" not in self.calls[-1:]:
            self.calls.append("generate")
        sampled = [
            self.sample(tuple(row[:n].tolist()), int(seed), data.get("stop_strings"))
            for row, n, seed in zip(data["input_ids"], lengths, data["seed"], strict=True)
        ]
        return self.batch(make_generation_output(data, sampled, self.tokenizer.pad_id))

    def sample(
        self, prompt: tuple[int, ...], seed: int, stops: list[list[str]] | None
    ) -> tuple[list[int], list[float], bool]:
        """Tokens; log-probabilities that name their place: -(i + 1) / 1000 of token i; cut off at LIMIT.

        `stops` end every request of the call, as NeMo-RL's vLLM workers have it; the text that ends it is part of it.
        """
        text = arithmetic_script(self.tokenizer.decode(prompt), Request("", prompt, seed, LIMIT))
        ids = [*self.tokenizer.encode(text), self.tokenizer.eos_id]
        for stop in {each for row in stops or [] for each in row}:
            if stop in text:
                ids = ids[: text.index(stop) + len(stop)]
        cut = ids[:LIMIT]
        return cut, [-(i + 1) / 1000 for i in range(len(cut))], len(cut) < len(ids)


class NotingPolicy:
    """The phase switches of NeMo-RL's Policy, by name and in order."""

    def __init__(self, calls: list[str]) -> None:
        self.calls = calls
        self.sizes: list[tuple[int, int, int]] = []  # of every update: rows, rows that count, gbs
        self.widths: list[int] = []  # of every pass

    def prepare_for_lp_inference(self) -> None:
        self.calls.append("prepare_for_lp_inference")

    def prepare_for_training(self) -> None:
        self.calls.append("prepare_for_training")

    def offload_after_refit(self) -> None:
        self.calls.append("offload_after_refit")

    def train(self, data: Any, loss: Any, gbs: int) -> dict[str, Any]:
        self.calls.append("train")
        self.widths.append(data["input_ids"].shape[1])
        self.sizes.append((len(data["input_ids"]), int(data["sample_mask"].sum()), gbs))
        return {"loss": torch.zeros(1), "grad_norm": torch.zeros(1), "all_mb_metrics": {"loss": [0.0], "lr": [0.0]}}

    def get_reference_policy_logprobs(self, data: Any) -> dict[str, Tensor]:
        self.calls.append("reference")
        self.widths.append(data["input_ids"].shape[1])
        return {"reference_logprobs": torch.zeros(data["input_ids"].shape)}

    def save_checkpoint(self, **paths: Any) -> None:
        self.calls.append("save")
