"""The inference engine: vLLM on this machine's CPU, in its own process (a Ray actor).

```
LocalGenerator --exchange(new requests)--> VllmEngine --step(), step(), ...--> vLLM's scheduler
               <--finished completions----
```
New requests can join while others run. The caller gives each request a key; the engine returns the key with the
completion and does not know who waits for it.
"""

from __future__ import annotations

import os
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass
from typing import TYPE_CHECKING

from torch import Tensor

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.local.hf_checkpoint import read_tensor_shapes
from nemo_tapo.runtime.local.weights import EMBEDDING, HEAD
from nemo_tapo.types import Completion, Request
from nemo_tapo.utils.token_ids import share_ids

if TYPE_CHECKING:
    from vllm import EngineArgs, SamplingParams
    from vllm.outputs import RequestOutput

SLICE_SECONDS = 0.05  # an exchange returns after this time, so that new requests can join
KV_BLOCK_TOKENS = 32  # only whole blocks are shared between prompts; the CPU default of 128 is too long for that
TOKENS_WITHOUT_TEXT = 8  # special tokens among the last ones that are searched for a text that ends the request

KeyedRequest = tuple[int, Request]
KeyedResult = tuple[int, Completion | ValueError]  # the error says why this request cannot be served


@dataclass(frozen=True)
class EngineInfo:
    """Properties of a started engine that the driver needs.

    >>> EngineInfo(pid=4711, max_model_len=1024, vocab_size=512, start_seconds=8.5).max_model_len
    1024
    """

    pid: int
    max_model_len: int  # prompt + completion, tokens
    vocab_size: int
    start_seconds: float


def make_engine_environment(cfg: RunConfig) -> dict[str, str]:
    """Return the environment variables of the engine's process. They must be set before it imports torch."""
    return {
        "VLLM_ENABLE_V1_MULTIPROCESSING": "0",  # the engine core in this process, not behind a socket
        "VLLM_CPU_KVCACHE_SPACE": str(cfg.local.kv_cache_gib),  # a fixed size makes a profiling run unnecessary
        "VLLM_LOGGING_LEVEL": "WARNING",
        "VLLM_NO_USAGE_STATS": "1",
        "HF_HUB_OFFLINE": "1",
        "TOKENIZERS_PARALLELISM": "false",
        # Else the first request for log-probabilities compiles a kernel, which takes 3 s and needs a C++ compiler.
        "TORCHDYNAMO_DISABLE": "1",
        "OMP_NUM_THREADS": str(cfg.local.threads),
        # Waiting threads sleep instead of spinning. Spinning gains a tenth on an idle machine. Beside another busy
        # process it makes generation at least five times slower: it takes time from the thread that is waited for.
        "OMP_WAIT_POLICY": "PASSIVE",
    }


def make_engine_args(cfg: RunConfig) -> EngineArgs:
    """Return vLLM's settings: fp32, eager, on this process's CPU threads."""
    from vllm import EngineArgs

    return EngineArgs(
        model=str(cfg.model.path),
        skip_tokenizer_init=True,  # token ids in and out; we decode the text, exactly as the trainer does
        generation_config="vllm",  # ignore the sampling defaults in the model directory
        dtype="float32",
        enforce_eager=True,  # compiling costs 10 s at start and saves only a seventh of the generation time
        seed=cfg.seed,
        max_model_len=cfg.model.max_length,
        max_num_seqs=cfg.local.max_num_seqs,
        # Prompts are prefilled in one piece. After a partial prefill vLLM 0.32 resets the offset of a seeded
        # random generator, which works on CUDA only ("CPU Generator does not use offset"). A full batch would
        # then crash the engine.
        enable_chunked_prefill=False,
        max_num_batched_tokens=max(4096, cfg.model.max_length, cfg.local.max_num_seqs),
        block_size=KV_BLOCK_TOKENS,
        enable_prefix_caching=True,
        logprobs_mode="processed_logprobs",  # of the sampling distribution: after temperature and top_p
        disable_log_stats=True,
    )


def make_sampling_params(request: Request, eos_id: int) -> SamplingParams:
    """Return how vLLM samples this request, whose tokens end with `eos_id`."""
    from vllm import SamplingParams
    from vllm.sampling_params import RequestOutputKind

    return SamplingParams(
        temperature=request.temperature,
        top_p=request.top_p,
        max_tokens=request.max_tokens,
        seed=request.seed,
        logprobs=0 if request.logprobs else None,  # 0: of the sampled token only
        flat_logprobs=request.logprobs,
        # Only the tokenizer's EOS ends a row, though a model directory may name other tokens too.
        ignore_eos=True,
        stop_token_ids=[eos_id],
        detokenize=False,
        # Where a text may end it, every step returns all tokens so far, for `_stops_here` to read.
        output_kind=RequestOutputKind.FINAL_ONLY if request.stop is None else RequestOutputKind.CUMULATIVE,
    )


class VllmEngine:
    """One vLLM engine, fp32, eager. Not thread-safe: a Ray actor runs one call at a time.

    vLLM works in a thread of its own and goes on while answers travel. It is also started and given weights there,
    because the threads of its matrix products belong to the thread that asked for them first.
    """

    def __init__(self, cfg: RunConfig) -> None:
        started = time.monotonic()
        from vllm.v1.engine.llm_engine import LLMEngine

        self._tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
        self._max_model_len = cfg.model.max_length
        self._thread = ThreadPoolExecutor(1, "vLLM")
        self._engine = self._thread.submit(LLMEngine.from_engine_args, make_engine_args(cfg)).result()
        config = self._engine.model_config
        self._vocab_size = config.get_vocab_size()
        self._tied: bool = config.hf_config.tie_word_embeddings
        self._path = cfg.model.path
        self._shapes = {k: v for k, v in read_tensor_shapes(self._path).items() if k != HEAD or not self._tied}
        self._stops: dict[int, str] = {}  # by key, of the requests in flight that a text may end
        self._lock = threading.Lock()  # of the next three
        self._new: list[KeyedRequest] = []
        self._finished: list[KeyedResult] = []
        self._work: Future[None] | None = None  # `_run` in the thread; None: no request is left
        self._start_seconds = time.monotonic() - started

    def info(self) -> EngineInfo:
        """Return the engine's properties. As the first call to the Ray actor, it returns once the engine is ready."""
        return EngineInfo(os.getpid(), self._max_model_len, self._vocab_size, self._start_seconds)

    def busy(self) -> int:
        """Return the number of requests in flight."""
        return int(self._engine.get_num_unfinished_requests())

    def exchange(self, new: Sequence[KeyedRequest]) -> list[KeyedResult]:
        """Add the requests `new`, and return those that have finished after one time slice.

        It returns earlier if no request is left. A request that cannot be served comes back with a ValueError in place
        of its completion.
        """
        with self._lock:
            self._new += new
            if self._new and self._work is None:
                self._work = self._thread.submit(self._run)
            work = self._work
        if work is not None:
            wait([work], SLICE_SECONDS)
            if work.done():
                work.result()  # raises what ended the work
        with self._lock:
            finished, self._finished = self._finished, []
        return finished

    def _run(self) -> None:
        """Work until no request is left."""
        while True:
            with self._lock:
                new, self._new = self._new, []
                if not new and not self._engine.has_unfinished_requests():
                    self._work = None
                    return
            finished = self._step(new)
            with self._lock:
                self._finished += finished

    def _step(self, new: Sequence[KeyedRequest]) -> list[KeyedResult]:
        """Add the requests `new`, take one step of the engine, and return what has finished."""
        finished: list[KeyedResult] = []
        for key, request in new:
            refusal = self._explain_refusal(request)
            if refusal is None:
                self._add(key, request)
            else:
                finished.append((key, ValueError(refusal)))
        outputs = [o for o in self._engine.step() if o.finished or self._stops_here(o)]
        for output in outputs:
            key = int(output.request_id)
            finished.append((key, self._make_completion(output, self._stops.pop(key, None))))
        if early := [o.request_id for o in outputs if not o.finished]:
            self._engine.abort_request(early)
        return finished

    def _explain_refusal(self, request: Request) -> str | None:
        """Return a sentence that says why `request` cannot be served, or None if it can."""
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
        from vllm import TokensPrompt

        if request.stop is not None:
            self._stops[key] = request.stop
        params = make_sampling_params(request, self._tokenizer.eos_id)
        self._engine.add_request(str(key), TokensPrompt(prompt_token_ids=list(request.prompt_ids)), params)

    def _stops_here(self, output: RequestOutput) -> bool:
        """Return whether the last token completes the text that ends this request: vLLM itself reads no text."""
        stop = self._stops.get(int(output.request_id))
        if stop is None:
            return False
        tail = tuple(output.outputs[0].token_ids)[-len(stop) - TOKENS_WITHOUT_TEXT :]
        return stop in self._tokenizer.decode(tail)

    def _make_completion(self, output: RequestOutput, stop: str | None) -> Completion:
        sample = output.outputs[0]
        ids = share_ids(sample.token_ids)
        text = self._tokenizer.decode(ids)
        stopped = stop is not None and stop in text
        truncated = sample.finish_reason == "length" and not stopped
        assert truncated or stopped or ids[-1] == self._tokenizer.eos_id, f"vLLM ended {output.request_id} without EOS"
        logprobs = None
        if sample.logprobs is not None:
            logprobs = tuple(sample.logprobs.logprobs)
            assert len(logprobs) == len(ids), "vLLM gave more or fewer log-probabilities than tokens"
        return Completion(ids, text, truncated, logprobs)

    def update_weights(self, weights: Mapping[str, Tensor]) -> None:
        """Replace the weights by `weights`, {Hugging Face name: tensor} of the whole model; empty the prefix cache.

        Raises ValueError if names or shapes differ from those in the model's directory. (If a name is missing, vLLM
        keeps the old tensor and only logs it.)
        """
        assert not self.busy(), f"weights may not change while {self.busy()} requests are in flight"
        weights = dict(weights)
        if self._tied:
            weights.pop(HEAD, None)
        given = {name: tuple(tensor.shape) for name, tensor in weights.items()}
        wrong = sorted(set(given.items()) ^ set(self._shapes.items()))
        if wrong:
            raise ValueError(
                f"the weights are not those of {self._path}: {len(wrong)} names or shapes differ, "
                f"the first is {wrong[0][0]} {list(wrong[0][1])}."
            )
        if self._tied:
            # On a CPU vLLM 0.32 keeps a repacked copy of the output matrix. It repacks it again only if the matrix
            # is given under its own name. Else the model would read new embeddings but score with the old ones.
            weights[HEAD] = weights[EMBEDDING]
        self._thread.submit(self._reload, weights).result()

    def _reload(self, weights: Mapping[str, Tensor]) -> None:
        self._engine.collective_rpc("reload_weights", kwargs={"weights_iterator": list(weights.items())})
        assert self._engine.reset_prefix_cache(), "vLLM kept cached prefixes of the old weights"
