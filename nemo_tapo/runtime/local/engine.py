"""The inference engine: vLLM on this machine's CPU, in a process of its own (a Ray actor).

```
LocalGenerator --exchange(new requests)--> VllmEngine --step(), step(), ...--> vLLM's scheduler
               <--finished completions----
```
Requests join while others run. The engine knows nothing of who waits for what: keys in, keys out.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.types import Completion, Request

if TYPE_CHECKING:
    from vllm.outputs import RequestOutput

SLICE = 0.05  # seconds of stepping before an exchange answers, so that new requests can join
BLOCK = 32  # tokens of one KV-cache block: only whole ones are shared, and the CPU's default of 128 is long
EMBEDDING, OUTPUT = "model.embed_tokens.weight", "lm_head.weight"

Keyed = tuple[int, Request]
Finished = tuple[int, Completion | ValueError]  # the error: this request cannot be served; the others can


@dataclass(frozen=True)
class EngineInfo:
    """What the driver has to know of a started engine."""

    pid: int
    max_model_len: int  # prompt + completion, tokens
    vocab_size: int
    start_seconds: float


def engine_environment(cfg: RunConfig) -> dict[str, str]:
    """Environment of the engine's process; has to be set before it imports torch."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process, not behind a socket
        "VLLM_CPU_KVCACHE_SPACE": str(cfg.local.kv_cache_gib),  # explicit: no profiling run
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # The first request for log-probabilities would compile a kernel: 3 seconds, and a C++ compiler needed.
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(cfg.local.threads),
        # A waiting thread sleeps. Spinning gains a tenth on an idle machine; beside any other busy process it
        # makes generation five times slower and more, for it starves the thread that is waited for.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


class VllmEngine:
    """One vLLM engine, fp32, eager. Not thread-safe: a Ray actor runs one call at a time."""

    def __init__(self, cfg: RunConfig) -> None:
        started = time.monotonic()
        from vllm import EngineArgs
        from vllm.v1.engine.llm_engine import LLMEngine

        self._tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
        self._max_model_len = cfg.model.max_length
        args = EngineArgs(
            model=str(cfg.model.path),
            skip_tokenizer_init=True,  # token ids in and out; text is ours, decoded as the trainer decodes it
            generation_config="vllm",  # none of the model directory's sampling defaults
            dtype="float32",
            enforce_eager=True,  # compiling costs 10 s at start and saves a seventh of the generation
            seed=cfg.seed,
            max_model_len=self._max_model_len,
            max_num_seqs=cfg.local.max_num_seqs,
            # A prompt is prefilled whole. Part of one would make vLLM 0.32 set a seeded generator back, which
            # only CUDA's can ("CPU Generator does not use offset"): the engine would die of a full batch.
            enable_chunked_prefill=False,
            max_num_batched_tokens=max(4096, self._max_model_len, cfg.local.max_num_seqs),
            block_size=BLOCK,
            enable_prefix_caching=True,
            logprobs_mode="processed_logprobs",  # of the sampling distribution: after temperature and top_p
            disable_log_stats=True,
        )
        self._engine = LLMEngine.from_engine_args(args)
        config = self._engine.model_config
        self._vocab_size = config.get_vocab_size()
        self._tied: bool = config.hf_config.tie_word_embeddings
        self._path = cfg.model.path
        self._shapes = {k: v for k, v in stored_shapes(self._path).items() if k != OUTPUT or not self._tied}
        self._start_seconds = time.monotonic() - started

    def info(self) -> EngineInfo:
        """Answers once the engine stands."""
        return EngineInfo(os.getpid(), self._max_model_len, self._vocab_size, self._start_seconds)

    def busy(self) -> int:
        """Requests in flight."""
        return int(self._engine.get_num_unfinished_requests())

    def exchange(self, new: Sequence[Keyed]) -> list[Finished]:
        """Take new requests, run for a time slice or until nothing is left to do, return what has finished.

        A request that cannot be served comes back at once with a ValueError in place of its completion.
        """
        finished: list[Finished] = []
        for key, request in new:
            refusal = self._refusal(request)
            if refusal is None:
                self._add(key, request)
            else:
                finished.append((key, ValueError(refusal)))
        deadline = time.monotonic() + SLICE
        while self._engine.has_unfinished_requests() and time.monotonic() < deadline:
            outputs = [o for o in self._engine.step() if o.finished]
            finished += [(int(o.request_id), self._completion(o)) for o in outputs]
        return finished

    def _refusal(self, request: Request) -> str | None:
        """One sentence why `request` cannot be served, or None."""
        who, prompt = f"request '{request.uid}'", len(request.prompt_ids)
        if not prompt or request.max_tokens < 1:
            return f"{who}: {prompt} prompt tokens and max_tokens {request.max_tokens}; neither may be 0."
        if prompt + request.max_tokens > self._max_model_len:
            return (
                f"{who}: {prompt} prompt tokens and max_tokens {request.max_tokens} exceed the engine's "
                f"{self._max_model_len} tokens; raise model.max_length or shorten the request."
            )
        if not 0 <= min(request.prompt_ids) <= max(request.prompt_ids) < self._vocab_size:
            return f"{who}: a prompt token is outside the model's vocabulary of {self._vocab_size}."
        return None

    def _add(self, key: int, request: Request) -> None:
        from vllm import SamplingParams, TokensPrompt
        from vllm.sampling_params import RequestOutputKind

        params = SamplingParams(
            temperature=request.temperature,
            top_p=request.top_p,
            max_tokens=request.max_tokens,
            seed=request.seed,
            logprobs=0 if request.logprobs else None,  # 0: the sampled token's only
            flat_logprobs=request.logprobs,
            # Exactly one token ends a row, the tokenizer's EOS; a model directory may name others.
            ignore_eos=True,
            stop_token_ids=[self._tokenizer.eos_id],
            detokenize=False,
            output_kind=RequestOutputKind.FINAL_ONLY,
        )
        self._engine.add_request(str(key), TokensPrompt(prompt_token_ids=list(request.prompt_ids)), params)

    def _completion(self, output: RequestOutput) -> Completion:
        sample = output.outputs[0]
        ids = tuple(sample.token_ids)
        truncated = sample.finish_reason == "length"
        assert truncated or ids[-1] == self._tokenizer.eos_id, f"vLLM ended {output.request_id} without EOS"
        logprobs = None
        if sample.logprobs is not None:
            logprobs = tuple(sample.logprobs.logprobs)
            assert len(logprobs) == len(ids), "vLLM gave more or fewer log-probabilities than tokens"
        return Completion(ids, self._tokenizer.decode(ids), truncated, logprobs)

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Take {Hugging Face name: tensor} of the whole model; empties the prefix cache.

        Raises ValueError if names or shapes are not those of the model's directory: vLLM would keep the old
        tensor under a name that it misses, and only log it.
        """
        assert not self.busy(), f"weights may not change while {self.busy()} requests are in flight"
        weights = dict(weights)
        if self._tied:
            weights.pop(OUTPUT, None)
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wrong = sorted(set(given.items()) ^ set(self._shapes.items()))
        if wrong:
            raise ValueError(
                f"the weights are not those of {self._path}: {len(wrong)} names or shapes differ, "
                f"the first is {wrong[0][0]} {list(wrong[0][1])}."
            )
        if self._tied:
            # On a CPU vLLM has repacked the output matrix into memory of its own. Only under its own name is it
            # repacked again; else new embeddings would be read and old ones would score (vLLM 0.32).
            weights[OUTPUT] = weights[EMBEDDING]
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights.items())})
        assert self._engine.reset_prefix_cache(), "vLLM kept cached prefixes of the old weights"


def stored_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """{name: shape} of the tensors in a Hugging Face directory, from the files' headers."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in sorted(path.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            names = tensors.keys()
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes
