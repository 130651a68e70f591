"""The engine: `interface.Generator` over NeMo-RL's `GenerationInterface` (vLLM, sync or async).

NeMo-RL's engine has one temperature, one top-p and one length limit, those of policy.generation; a call cannot bring
others, nor a seed. So a request for another temperature is refused; one for fewer tokens is cut, which gives what the
shorter limit would have given. No request brings stop strings (NeMo-RL would merge those of all requests of a call).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.runtime.nemo_rl.actor import Weights
from nemo_tapo.runtime.nemo_rl.colocation import Phases, blocking
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.errors import RuntimeFailure

QUIET_TICKS = 3  # turns of the event loop without a new request, after which a batch is complete


@dataclass(frozen=True)
class EngineSettings:
    """policy.generation's, one for all requests."""

    max_model_len: int
    max_new_tokens: int
    temperature: float
    top_p: float
    asynchronous: bool  # vllm_cfg.async_engine
    pad_id: int


class NemoGenerator:
    """See the module's text.

    The async engine takes one sample a call, and each returns as soon as it is finished. The sync engine takes a batch
    and returns when the longest is done: requests that wait together go together, so an overlapped pipeline samples the
    same with it, in a few large steps.
    """

    def __init__(
        self,
        engine: Any,
        phases: Phases,
        settings: EngineSettings,
        tokenizer: Tokenizer,
        batch: Callable[[Mapping[str, Any]], Any],
    ) -> None:
        """`batch` makes a BatchedDataDict."""
        self._engine, self._phases, self._settings = engine, phases, settings
        self._tokenizer, self._data = tokenizer, batch
        self.max_model_len = settings.max_model_len
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Completion:
        """Sample one completion. ValueError for settings that the engine does not have, or a prompt that is too long;
        RuntimeFailure if the engine is lost.
        """
        self._check(request)
        async with self._phases.generating():
            if self._settings.asynchronous:
                return await self._one(request)
            return await self._together(request)

    async def update_weights(self, weights: Weights) -> None:
        """The engine takes the policy's weights before it answers the next request, not now: a checkpoint may come
        first, and then the GPUs are the policy's. No request may be in flight.
        """
        assert not self._phases.in_flight, "weights may not change while requests are in flight"

    def _check(self, request: Request) -> None:
        here = self._settings
        if (request.temperature, request.top_p) != (here.temperature, here.top_p):
            raise ValueError(
                f"{request.uid} is to be sampled at temperature {request.temperature:g}, top-p {request.top_p:g}; "
                f"NeMo-RL's engine samples everything at policy.generation's {here.temperature:g}, {here.top_p:g}."
            )
        if request.max_tokens > here.max_new_tokens:
            raise ValueError(
                f"{request.uid} may have {request.max_tokens} tokens, more than policy.generation.max_new_tokens = "
                f"{here.max_new_tokens}."
            )
        if len(request.prompt_ids) + request.max_tokens > here.max_model_len:
            raise ValueError(
                f"{request.uid}: a prompt of {len(request.prompt_ids)} tokens and {request.max_tokens} to sample do "
                f"not fit vllm_cfg.max_model_len = {here.max_model_len}."
            )

    # ---- the async engine ------------------------------------------------------------------------------------------

    async def _one(self, request: Request) -> Completion:
        try:
            async for _, output in self._engine.generate_async(self._batch([request]), greedy=False):
                return self._completion(request, output, 0)
        except (ValueError, AssertionError):
            raise
        except Exception as error:  # whatever Ray or the engine raises, the run cannot go on
            raise RuntimeFailure(f"the generation engine failed: {error!r}") from error
        raise RuntimeFailure(f"the generation engine gave no answer to {request.uid}.")

    # ---- the sync engine -------------------------------------------------------------------------------------------

    async def _together(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._pump is None:
            self._pump = asyncio.create_task(self._run(), name="generator pump")
        return await future

    async def _run(self) -> None:
        taken: list[tuple[Request, asyncio.Future[Completion]]] = []
        try:
            while self._waiting:
                await self._quiet()
                taken, self._waiting = self._waiting, []
                requests = [request for request, _ in taken]
                data = self._batch(requests)
                output = await blocking(partial(self._engine.generate, data, greedy=False))
                for i, (request, future) in enumerate(taken):
                    if not future.done():  # else its coroutine was cancelled
                        future.set_result(self._completion(request, output, i))
        except Exception as error:  # whatever it is, those who wait have to hear it
            known = isinstance(error, RuntimeFailure | ValueError | AssertionError)
            told = error if known else RuntimeFailure(f"the generation engine failed: {error!r}")
            for _, future in [*taken, *self._waiting]:
                if not future.done():
                    future.set_exception(told)
            self._waiting = []
        finally:
            self._pump = None

    async def _quiet(self) -> None:
        """Returns when no request has come for a few turns of the event loop: what belongs together is there."""
        seen, quiet = len(self._waiting), 0
        while quiet < QUIET_TICKS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    # ---- NeMo-RL's form --------------------------------------------------------------------------------------------

    def _batch(self, requests: Sequence[Request]) -> Any:
        """GenerationDatumSpec: right-padded ids. `seed` is for engines that can take one; NeMo-RL's leave it alone."""
        lengths = torch.tensor([len(r.prompt_ids) for r in requests])
        ids = torch.full((len(requests), int(lengths.max())), self._settings.pad_id)
        for row, request in zip(ids, requests, strict=True):
            row[: len(request.prompt_ids)] = torch.tensor(request.prompt_ids)
        seeds = torch.tensor([request.seed for request in requests])
        return self._data({"input_ids": ids, "input_lengths": lengths, "seed": seeds})

    def _completion(self, request: Request, output: Mapping[str, Tensor], row: int) -> Completion:
        begin, given = len(request.prompt_ids), int(output["unpadded_sequence_lengths"][row])
        end = min(given, begin + request.max_tokens)
        ids = tuple(output["output_ids"][row, begin:end].tolist())
        cut = end < given or end == begin or bool(output["truncated"][row])
        logprobs = tuple(output["logprobs"][row, begin:end].tolist()) if request.logprobs else None
        return Completion(ids, self._tokenizer.decode(ids), truncated=cut, logprobs=logprobs)
