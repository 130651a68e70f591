"""The engine: `interfaces.Generator` over NeMo-RL's `GenerationInterface` (vLLM, sync or async).

NeMo-RL's engine has one temperature, one top-p and one length limit, set in policy.generation. A call cannot change
them, and it cannot set a seed. So a request with another temperature is refused. The answer to a request with a lower
token limit is cut, which gives the same tokens as the lower limit would have given. A text that ends a request
(`Request.stop`) needs the async engine: in a call of the sync one NeMo-RL merges the stop strings of all requests.
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
from nemo_tapo.runtime.nemo_rl.actor import WeightsHandle
from nemo_tapo.runtime.nemo_rl.colocation import ENGINE, ColocationScheduler
from nemo_tapo.runtime.nemo_rl.nemo_calls import run_blocking, wait_for_answer
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.errors import RuntimeFailure
from nemo_tapo.utils.token_ids import share_ids

QUIET_TICKS = 3  # a batch is complete after so many turns of the event loop without a new request


@dataclass(frozen=True)
class EngineSettings:
    """The sampling settings and limits of policy.generation; the same for all requests."""

    max_model_len: int
    max_new_tokens: int
    temperature: float
    top_p: float
    asynchronous: bool  # vllm_cfg.async_engine
    pad_id: int


class NemoGenerator:
    """The Generator over NeMo-RL's engine; see the module docstring.

    The async engine takes one request a call, and each call returns as soon as its response is finished. The sync
    engine takes a batch and returns when the longest response is finished. Requests that wait at the same time form one
    batch, so an overlapped pipeline also works with the sync engine, in a few large batches.
    """

    def __init__(
        self,
        engine: Any,
        scheduler: ColocationScheduler,
        settings: EngineSettings,
        tokenizer: Tokenizer,
        make_batch: Callable[[Mapping[str, Any]], Any],
    ) -> None:
        """Wrap `engine`, a GenerationInterface; `make_batch` makes a BatchedDataDict from {field: tensor}."""
        self._engine, self._scheduler, self._settings = engine, scheduler, settings
        self._tokenizer, self._make_batch = tokenizer, make_batch
        self.max_model_len = settings.max_model_len
        self._waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self._pump: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Completion:
        """Sample one completion.

        Raises ValueError for settings that differ from the engine's and for a prompt that is too long, RuntimeFailure
        if the engine is lost.
        """
        self._check_request(request)
        async with self._scheduler.generating():
            if self._settings.asynchronous:
                return await self._generate_alone(request)
            return await self._generate_in_batch(request)

    async def update_weights(self, weights: WeightsHandle) -> None:
        """Let the scheduler hand the policy's weights over: at once, or before the next request."""
        await self._scheduler.hand_over()

    def _check_request(self, request: Request) -> None:
        settings = self._settings
        if (request.temperature, request.top_p) != (settings.temperature, settings.top_p):
            raise ValueError(
                f"{request.uid} is to be sampled at temperature {request.temperature:g}, top-p {request.top_p:g}; "
                f"NeMo-RL's engine samples everything at policy.generation's {settings.temperature:g}, "
                f"{settings.top_p:g}."
            )
        if request.max_tokens > settings.max_new_tokens:
            raise ValueError(
                f"{request.uid} may have {request.max_tokens} tokens, more than policy.generation.max_new_tokens = "
                f"{settings.max_new_tokens}."
            )
        if request.stop is not None and not settings.asynchronous:
            raise ValueError(
                f"{request.uid} is to end at {request.stop!r}, which NeMo-RL's sync engine would apply to all requests "
                "of a call: set policy.generation.vllm_cfg.async_engine=true."
            )
        if len(request.prompt_ids) + request.max_tokens > settings.max_model_len:
            raise ValueError(
                f"{request.uid}: a prompt of {len(request.prompt_ids)} tokens and {request.max_tokens} to sample do "
                f"not fit vllm_cfg.max_model_len = {settings.max_model_len}."
            )

    # ---- the async engine ------------------------------------------------------------------------------------------

    async def _generate_alone(self, request: Request) -> Completion:
        try:
            outputs = await wait_for_answer(self._read_all_outputs(request), ENGINE, self._scheduler.timeout)
        except (RuntimeFailure, ValueError, AssertionError):
            raise
        except Exception as error:  # Ray and engines raise many types; after any of them the run cannot continue
            raise RuntimeFailure(f"{ENGINE} failed: {error!r}") from error
        if not outputs:
            raise RuntimeFailure(f"{ENGINE} gave no answer to {request.uid}.")
        return self._make_completion(request, outputs[-1], 0)

    async def _read_all_outputs(self, request: Request) -> list[Mapping[str, Tensor]]:
        """Read to the end of the engine's answer: NeMo-RL cancels the request of a caller that leaves before it."""
        answer = self._engine.generate_async(self._make_engine_input([request]), greedy=False)
        return [output async for _, output in answer]

    # ---- the sync engine -------------------------------------------------------------------------------------------

    async def _generate_in_batch(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self._waiting.append((request, future))
        if self._pump is None:
            self._pump = asyncio.create_task(self._run_batches(), name="generator pump")
        return await future

    async def _run_batches(self) -> None:
        batch: list[tuple[Request, asyncio.Future[Completion]]] = []
        try:
            while self._waiting:
                await self._wait_until_quiet()
                batch, self._waiting = self._waiting, []
                requests = [request for request, _ in batch]
                data = self._make_engine_input(requests)
                call = partial(self._engine.generate, data, greedy=False)
                output = await run_blocking(call, ENGINE, self._scheduler.timeout)
                for i, (request, future) in enumerate(batch):
                    if not future.done():  # otherwise its coroutine was cancelled
                        future.set_result(self._make_completion(request, output, i))
        except Exception as error:  # of any type: the waiting callers must get it, or they would wait forever
            known = isinstance(error, RuntimeFailure | ValueError | AssertionError)
            failure = error if known else RuntimeFailure(f"{ENGINE} failed: {error!r}")
            for _, future in [*batch, *self._waiting]:
                if not future.done():
                    future.set_exception(failure)
            self._waiting = []
        finally:
            self._pump = None

    async def _wait_until_quiet(self) -> None:
        """Wait until no request has come for QUIET_TICKS turns of the event loop, so that the batch is complete."""
        seen, quiet = len(self._waiting), 0
        while quiet < QUIET_TICKS:
            await asyncio.sleep(0)
            quiet = quiet + 1 if len(self._waiting) == seen else 0
            seen = len(self._waiting)

    # ---- NeMo-RL's form --------------------------------------------------------------------------------------------

    def _make_engine_input(self, requests: Sequence[Request]) -> Any:
        """Return a GenerationDatumSpec: right-padded ids; `seed` is for engines that take one, NeMo-RL's ignore it."""
        lengths = torch.tensor([len(r.prompt_ids) for r in requests])
        ids = torch.full((len(requests), int(lengths.max())), self._settings.pad_id)
        for row, request in zip(ids, requests, strict=True):
            row[: len(request.prompt_ids)] = torch.tensor(request.prompt_ids)
        seeds = torch.tensor([request.seed for request in requests])
        stops = {"stop_strings": [[r.stop] for r in requests if r.stop is not None]}
        return self._make_batch(
            {"input_ids": ids, "input_lengths": lengths, "seed": seeds, **(stops if any(stops.values()) else {})}
        )

    def _make_completion(self, request: Request, output: Mapping[str, Tensor], row: int) -> Completion:
        begin, length = len(request.prompt_ids), int(output["unpadded_sequence_lengths"][row])
        end = min(length, begin + request.max_tokens)
        ids = share_ids(output["output_ids"][row, begin:end].tolist())
        truncated = end < length or end == begin or bool(output["truncated"][row])
        logprobs = tuple(output["logprobs"][row, begin:end].tolist()) if request.logprobs else None
        return Completion(ids, self._tokenizer.decode(ids), truncated=truncated, logprobs=logprobs)
