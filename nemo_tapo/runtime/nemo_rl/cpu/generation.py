"""An engine for the contract tests: NeMo-RL's GenerationInterface on CPUs, for tiny models.

Sampling is real, from the weights that the policy handed over: Hugging Face's model, every row with its own seed, in
fp64 so that a row does not depend on what else is in the batch. It sleeps, wakes and is refitted as vLLM is in NeMo-RL.
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

Sampled = tuple[list[int], list[float], bool]  # token ids, their log-probabilities, cut off by the length limit


class Sampler:
    """The model in a process of its own."""

    def __init__(self, config: Mapping[str, Any], handed_over: str) -> None:
        from transformers import AutoModelForCausalLM

        torch.set_num_threads(1)
        self.cfg, self._folder, self._refits = config, Path(handed_over), 0
        self.model = AutoModelForCausalLM.from_pretrained(config["model_name"], dtype=torch.float64).eval()

    def load(self) -> bool:
        """Takes the next weights that the policy hands over; waits for them."""
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
        self, prompts: Sequence[Sequence[int]], seeds: Sequence[int]
    ) -> list[tuple[list[int], list[float], bool]]:
        """One answer to every prompt."""
        cfg, count = self.cfg, len(prompts)
        width = max(map(len, prompts))
        ids, mask = torch.zeros(count, width, dtype=torch.long), torch.zeros(count, width, dtype=torch.long)
        for i, prompt in enumerate(prompts):  # padded on the left, so that all rows grow at the same column
            ids[i, width - len(prompt) :] = torch.tensor(prompt)
            mask[i, width - len(prompt) :] = 1
        draws = [torch.Generator().manual_seed(seed) for seed in seeds]
        tokens: list[list[int]] = [[] for _ in prompts]
        logprobs: list[list[float]] = [[] for _ in prompts]
        limits = [min(cfg["max_new_tokens"], cfg["vllm_cfg"]["max_model_len"] - len(p)) for p in prompts]
        live, past, position = set(range(count)), None, mask.cumsum(1) - 1
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
                token = int(torch.multinomial(scores[i].exp(), 1, generator=draws[i]))
                ids[i, 0] = token
                tokens[i].append(token)
                logprobs[i].append(float(scores[i, token]))
                if token in cfg["stop_token_ids"] or len(tokens[i]) >= limits[i]:
                    live.discard(i)
            mask = torch.cat([mask, torch.ones(count, 1, dtype=torch.long)], 1)
            position = position[:, -1:] + 1
        return [(t, p, t[-1] not in cfg["stop_token_ids"]) for t, p in zip(tokens, logprobs, strict=True)]


@cache
def generation_class() -> Any:
    """`CpuGeneration`, a class that NeMo-RL's setup can make in VllmGeneration's place."""
    import ray

    class CpuGeneration(compat.load("GenerationInterface")):  # type: ignore[misc]
        """One Sampler; asleep or awake, and whoever asks it asleep is told."""

        def __init__(self, cluster: Any = None, config: Any = None, **unused: Any) -> None:
            self.cfg, self.awake = config, True
            self._sampler = ray.remote(Sampler).options(num_cpus=0).remote(dict(config), os.environ[REFIT_FOLDER])
            ray.get(self._sampler.__ray_ready__.remote())

        def init_collective(self, *args: Any, **kwargs: Any) -> list[Any]:
            raise NotImplementedError("weights come by files")

        def generate(self, data: Any, greedy: bool = False) -> Any:
            assert self.awake, "asked while asleep"
            assert not self.cfg["vllm_cfg"]["async_engine"], "an async engine has no generate"
            return self._output(data, ray.get(self._asked(data)))

        async def generate_async(self, data: Any, greedy: bool = False) -> AsyncIterator[tuple[int, Any]]:
            assert self.awake, "asked while asleep"
            assert data.size == 1
            yield 0, self._output(data, await self._asked(data))

        def _asked(self, data: Any) -> Any:
            lengths = data["input_lengths"].tolist()
            prompts = [row[:n].tolist() for row, n in zip(data["input_ids"], lengths, strict=True)]
            return self._sampler.sample.remote(prompts, data["seed"].tolist())

        def _output(self, data: Any, sampled: list[Sampled]) -> Any:
            return compat.load("BatchedDataDict")(generation_output(data, sampled, self.cfg["_pad_token_id"]))

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


def generation_output(
    data: Mapping[str, Tensor], sampled: Sequence[tuple[Sequence[int], Sequence[float], bool]], pad_id: int
) -> dict[str, Tensor]:
    """NeMo-RL's GenerationOutputSpec: prompt and response, right-padded; log-probabilities 0 on the prompt."""
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
        "truncated": torch.tensor([cut for _, _, cut in sampled]),
    }
