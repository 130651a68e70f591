"""A generation engine on CPUs for tiny models: NeMo-RL's GenerationInterface for the contract tests.

It really samples from the policy's latest weights, with Hugging Face's model. Every row has its own seed and runs in
fp64, so that it does not depend on the other rows of the batch. It sleeps, wakes and is refitted as vLLM is in NeMo-RL.
"""

from __future__ import annotations

import os
import time
from collections.abc import AsyncIterator, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.cpu.policy_worker import REFIT_FOLDER

SampledResponse = tuple[list[int], list[float], bool]  # token ids, their log-probabilities, cut off by the length limit


class CpuSampler:
    """The model, as a Ray actor in a separate process."""

    def __init__(self, config: Mapping[str, Any], refit_folder: str) -> None:
        """Load config["model_name"]; `refit_folder` is where the policy writes new weights."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        torch.set_num_threads(1)
        self.cfg, self._folder, self._refits = config, Path(refit_folder), 0
        self.tokenizer = AutoTokenizer.from_pretrained(config["model_name"])
        self.model = AutoModelForCausalLM.from_pretrained(config["model_name"], dtype=torch.float64).eval()

    def load(self) -> bool:
        """Wait for the next weights from the policy and load them.

        Raises RuntimeError if they do not appear within 60 seconds.
        """
        from safetensors.torch import load_file

        self._refits += 1
        file = self._folder / f"{self._refits}.safetensors"
        deadline = time.monotonic() + 60
        while not file.is_file():
            if time.monotonic() > deadline:
                raise RuntimeError(f"no weights came: {file} is not there")
            time.sleep(0.01)
        missing, unknown = self.model.load_state_dict(load_file(file), strict=False)
        assert not unknown and set(missing) <= {"lm_head.weight"}, (missing, unknown)  # tied to the embedding
        file.unlink()
        return True

    @torch.no_grad()
    def sample(
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int], stops: Sequence[Sequence[str]]
    ) -> list[tuple[list[int], list[float], bool]]:
        """Sample one response to every prompt, up to EOS, to one of its `stops` (none: empty) or to the limit."""
        cfg, count = self.cfg, len(prompts)
        width = max(map(len, prompts))
        ids, mask = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.long)
        for i, prompt in enumerate(prompts):  # padded on the left, so that all rows end at the same column
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        limits = [min(cfg["max_new_tokens"], cfg["vllm_cfg"]["max_model_len"] - len(p)) for p in prompts]
        live, past, position = set(range(count)), None, mask.cumsum(1) - 1
        finished = [False] * count
        while live:
            out = self.model(
                input_ids=ids,
                attention_mask=mask,
                position_ids=position.clamp(min=0),
                past_key_values=past,
                use_cache=True,
            )
            past, scores = out.past_key_values, torch.log_softmax(out.logits[:, -1] / cfg["temperature"], -1)
            ids = torch.zeros(count, 1, dtype=torch.long)
            for i in sorted(live):
                token = int(torch.multinomial(scores[i].exp(), 1, generator=generators[i]))
                ids[i, 0] = token
                tokens[i].append(token)
                logprobs[i].append(float(scores[i, token]))
                stopped = stops and any(stop in self.tokenizer.decode(tokens[i]) for stop in stops[i] or ())
                finished[i] = bool(stopped) or token in cfg["stop_token_ids"]
                if finished[i] or len(tokens[i]) >= limits[i]:
                    live.discard(i)
            mask = torch.cat([mask, torch.ones(count, 1, dtype=torch.long)], 1)
            position = position[:, -1:] + 1
        return [(t, p, not done) for t, p, done in zip(tokens, logprobs, finished, strict=True)]


@cache
def get_generation_class() -> Any:
    """Return `CpuGeneration`, the class that replaces VllmGeneration in NeMo-RL's setup.

    It is defined inside a function because its base class needs NeMo-RL.
    """
    import ray

    class CpuGeneration(compat.load("GenerationInterface")):  # type: ignore[misc]
        """One CpuSampler, asleep or awake; a request to a sleeping engine fails."""

        def __init__(self, cluster: Any = None, config: Any = None, **unused: Any) -> None:
            self.cfg, self.awake = config, True
            self._sampler = ray.remote(CpuSampler).options(num_cpus=0).remote(dict(config), os.environ[REFIT_FOLDER])
            ray.get(self._sampler.__ray_ready__.remote())

        def init_collective(self, *args: Any, **kwargs: Any) -> list[Any]:
            raise NotImplementedError("weights come by files")

        def generate(self, data: Any, greedy: bool = False) -> Any:
            assert self.awake, "asked while asleep"
            assert not self.cfg["vllm_cfg"]["async_engine"], "an async engine has no generate"
            return self._output(data, ray.get(self._sample(data)))

        async def generate_async(self, data: Any, greedy: bool = False) -> AsyncIterator[tuple[int, Any]]:
            assert self.awake, "asked while asleep"
            assert data.size == 1
            yield 0, self._output(data, await self._sample(data))

        def _sample(self, data: Any) -> Any:
            lengths = data["input_lengths"].tolist()
            prompts = [row[:n].tolist() for row, n in zip(data["input_ids"], lengths, strict=True)]
            return self._sampler.sample.remote(prompts, data["seed"].tolist(), data.get("stop_strings", []))

        def _output(self, data: Any, sampled: list[SampledResponse]) -> Any:
            return compat.load("BatchedDataDict")(make_generation_output(data, sampled, self.cfg["_pad_token_id"]))

        def prepare_for_generation(self, *args: Any, **kwargs: Any) -> bool:
            self.awake = True
            return True

        def finish_generation(self, *args: Any, **kwargs: Any) -> bool:
            self.awake = False
            return True

        def prepare_refit_info(self, state_dict_info: dict[str, Any]) -> None: ...

        def update_weights_via_ipc_zmq(self) -> list[Any]:
            assert self.awake, "refitted while asleep"
            return [self._sampler.load.remote()]

        def shutdown(self) -> bool:
            ray.kill(self._sampler)
            return True

    return CpuGeneration


def make_generation_output(
    data: Mapping[str, Tensor], sampled: Sequence[tuple[Sequence[int], Sequence[float], bool]], pad_id: int
) -> dict[str, Tensor]:
    """Return NeMo-RL's GenerationOutputSpec: prompt and response, right-padded; log-probabilities 0 on the prompt.

    >>> data = {"input_ids": torch.tensor([[1, 2]]), "input_lengths": torch.tensor([2])}
    >>> output = make_generation_output(data, [([7], [-0.5], False)], pad_id=0)
    >>> output["output_ids"], output["logprobs"]
    (tensor([[1, 2, 7]]), tensor([[ 0.0000,  0.0000, -0.5000]]))
    """
    lengths = data["input_lengths"].tolist()
    width = max(n + len(tokens) for n, (tokens, _, _) in zip(lengths, sampled, strict=True))
    ids = torch.full((len(sampled), width), pad_id, dtype=torch.long)
    logprobs = torch.zeros(len(sampled), width)
    for i, (n, (tokens, values, _)) in enumerate(zip(lengths, sampled, strict=True)):
        ids[i, :n] = data["input_ids"][i, :n]
        ids[i, n : n + len(tokens)] = torch.tensor(tokens, dtype=torch.long)
        logprobs[i, n : n + len(tokens)] = torch.tensor(values)
    generated = torch.tensor([len(tokens) for tokens, _, _ in sampled])
    return {
        "output_ids": ids,
        "logprobs": logprobs,
        "generation_lengths": generated,
        "unpadded_sequence_lengths": data["input_lengths"] + generated,
        "truncated": torch.tensor([truncated for _, _, truncated in sampled]),
    }
