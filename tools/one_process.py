"""Run a command of nemo-tapo with a tiny Qwen3 model in this process, without Ray, vLLM and Megatron.

    python tools/one_process.py run --config examples/configs/countdown-1n0g.yaml output=runs/try ...

Stages, loop, algorithms and losses are the package's own; model, sampling and optimizer are plain transformers and
torch, on `local.threads` threads. It starts in seconds, which is what an experiment on a busy machine needs. It is no
runtime of the package: nothing is distributed, and at the same seeds it samples other texts than the local runtime.
"""

from __future__ import annotations

import asyncio
import json
import sys
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor, nn
from transformers import DynamicCache, Qwen3ForCausalLM

from nemo_tapo import cli
from nemo_tapo.batch import micro_batches
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Loss
from nemo_tapo.metrics import LOSS, Parts, reduce_parts
from nemo_tapo.runtime import registry
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.local.lr_schedule import compute_learning_rate
from nemo_tapo.runtime.scripted_runtime import ScriptedActor
from nemo_tapo.sweeps import serial
from nemo_tapo.types import Batch, Completion, Request, UpdateResult

MOST = 320  # requests in one batch


class Logits(nn.Module):
    """Token ids to logits. Rows are padded on the right, where a causal model needs no mask."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.hf = Qwen3ForCausalLM.from_pretrained(path, dtype=torch.float32)

    def forward(self, ids: Tensor) -> Tensor:
        return self.hf(ids, use_cache=False).logits


class Muon(torch.optim.Optimizer):
    """torch.optim.Muon with its defaults, in float32 and matrices of one shape together.

    torch's own orthogonalises in bfloat16, which costs a processor without such arithmetic more than the gradient does.
    """

    def __init__(self, params: list[nn.Parameter], lr: float, weight_decay: float) -> None:
        super().__init__(params, {"lr": lr, "weight_decay": weight_decay})

    @torch.no_grad()
    def step(self) -> None:  # type: ignore[override]
        shapes: dict[torch.Size, list[Tensor]] = {}
        for p in self.param_groups[0]["params"]:
            shapes.setdefault(p.shape, []).append(p)
        lr, decay = self.param_groups[0]["lr"], self.param_groups[0]["weight_decay"]
        for (rows, columns), matrices in shapes.items():
            updates = []
            for p in matrices:
                moment = self.state[p].setdefault("momentum_buffer", torch.zeros_like(p))
                moment.lerp_(p.grad, 0.05)
                updates.append(p.grad.lerp(moment, 0.95))
            for p, update in zip(matrices, orthogonalise(torch.stack(updates)), strict=True):
                p.mul_(1 - lr * decay).add_(update, alpha=-lr * max(1.0, rows / columns) ** 0.5)


def orthogonalise(matrices: Tensor) -> Tensor:
    """Bring the singular values of matrices [n, a, b] near 1, by Newton-Schulz iterations with Muon's coefficients."""
    x = matrices / matrices.norm(dim=(1, 2), keepdim=True).clamp(min=1e-7)
    tall = x.shape[1] > x.shape[2]
    x = x.mT if tall else x
    for _ in range(5):
        gram = x @ x.mT
        x = 3.4445 * x + (-4.7750 * gram + 2.0315 * gram @ gram) @ x
    return x.mT if tall else x


def copy_untied(model: Logits) -> dict[str, Tensor]:
    """Return a copy of the weights by name, without the output matrix if it is the embedding."""
    left_out = {"hf.lm_head.weight"} if model.hf.config.tie_word_embeddings else set()
    return {name: w.detach().clone() for name, w in model.state_dict().items() if name not in left_out}


class OneProcessActor(ScriptedActor):
    """The policy's training in this process; what does not touch the model's kind is the scripted actor's."""

    def __init__(self, path: Path, micro_batch_tokens: int) -> None:
        self.path, self.micro_batch_tokens = path, micro_batch_tokens
        self.model = Logits(path)
        self.vocab = VocabShard(0, self.model.hf.config.vocab_size)
        self.reference = self._copy()
        self.teacher: dict[str, Tensor] | None = None

    def _copy(self) -> dict[str, Tensor]:
        return copy_untied(self.model)

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        self.settings, self.total_steps, self.steps_done = optimizer, total_steps, 0
        named = dict(self.model.named_parameters())
        inner = [p for n, p in named.items() if p.ndim == 2 and ".layers." in n and optimizer.name == "muon"]
        others = [p for p in named.values() if not any(p is q for q in inner)]
        groups = [
            {"params": [p for p in others if p.ndim > 1], "weight_decay": optimizer.weight_decay},
            {"params": [p for p in others if p.ndim <= 1], "weight_decay": 0.0},
        ]
        adamw = torch.optim.AdamW(groups, lr=optimizer.lr, betas=optimizer.betas, eps=optimizer.eps)
        self.optimizers: list[tuple[float, torch.optim.Optimizer]] = [(1.0, adamw)]
        if inner:
            muon = Muon(inner, lr=optimizer.muon_lr, weight_decay=optimizer.weight_decay)
            self.optimizers.append((optimizer.muon_lr / optimizer.lr, muon))

    async def load_model(self, path: Path) -> None:
        self.model.hf.load_state_dict(load_file(path / "model.safetensors"), strict=False)

    async def set_reference(self) -> None:
        self.reference = self._copy()

    async def set_teacher(self, path: Path) -> None:
        self.teacher = copy_untied(Logits(path))

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        self.model.zero_grad()
        parts: list[Parts] = []
        weights: Tensor | None = None
        for rows in micro_batches(batch.input_lengths.tolist(), self.micro_batch_tokens):
            part = batch.select(rows)
            output = loss(self.model(part.input_ids), part, self.vocab, self._teacher_logits(part, loss.needs))
            output.loss.backward()
            parts.append(output.parts)
            if output.token_weights is not None:
                weights = torch.ones(batch.input_ids.shape) if weights is None else weights
                weights[rows, : part.input_ids.shape[1]] = output.token_weights
        norm = nn.utils.clip_grad_norm_(self.model.parameters(), self.settings.clip_norm)
        self.steps_done += 1
        rate = compute_learning_rate(self.settings, self.steps_done, self.total_steps)
        for ratio, optimizer in self.optimizers:
            for group in optimizer.param_groups:
                group["lr"] = rate * ratio
            optimizer.step()
        metrics = reduce_parts(parts)
        return UpdateResult(metrics[LOSS], float(norm), rate, metrics, weights)

    async def weights(self) -> dict[str, Tensor]:
        return self._copy()

    async def save(self, path: Path) -> None:
        save_file(self._untied(), path / "model.safetensors")
        torch.save([o.state_dict() for _, o in self.optimizers], path / "optimizer.pt")
        (path / "optimizer.json").write_text(json.dumps({"steps_done": self.steps_done}))

    async def load(self, path: Path) -> None:
        await self.load_model(path)
        states = torch.load(path / "optimizer.pt", weights_only=True)
        for (_, optimizer), state in zip(self.optimizers, states, strict=True):
            optimizer.load_state_dict(state)
        self.steps_done = json.loads((path / "optimizer.json").read_text())["steps_done"]

    async def export(self, path: Path) -> None:
        path.mkdir(parents=True, exist_ok=True)
        for file in self.path.iterdir():
            if file.suffix in (".json", ".jinja"):
                (path / file.name).write_bytes(file.read_bytes())
        save_file(self._untied(), path / "model.safetensors", metadata={"format": "pt"})

    def _untied(self) -> dict[str, Tensor]:
        return {name.removeprefix("hf."): weight for name, weight in self._copy().items()}


class OneProcessGenerator:
    """Samples in batches: whatever was asked for while a batch ran is the next one."""

    def __init__(self, path: Path, tokenizer: HFTokenizer, max_model_len: int) -> None:
        self.model, self.tokenizer, self.max_model_len = Logits(path), tokenizer, max_model_len
        self.waiting: list[tuple[Request, asyncio.Future[Completion]]] = []
        self.worker: asyncio.Task[None] | None = None

    async def generate(self, request: Request) -> Completion:
        future: asyncio.Future[Completion] = asyncio.get_running_loop().create_future()
        self.waiting.append((request, future))
        if self.worker is None or self.worker.done():
            self.worker = asyncio.create_task(self._work())
        return await future

    async def update_weights(self, weights: dict[str, Tensor]) -> None:
        self.model.load_state_dict(weights, strict=False)  # without the output matrix, if it is the embedding

    async def _work(self) -> None:
        await asyncio.sleep(0.02)  # let the others of a step ask
        while self.waiting:
            now, self.waiting = self.waiting[:MOST], self.waiting[MOST:]
            answers = await asyncio.to_thread(self._sample, [request for request, _ in now])
            for (_, future), answer in zip(now, answers, strict=True):
                if not future.done():
                    future.set_result(answer)
            await asyncio.sleep(0.02)

    @torch.no_grad()
    def _sample(self, requests: list[Request]) -> list[Completion]:
        """Sample one response a request; its randomness comes from its own seed."""
        longest = max(len(r.prompt_ids) for r in requests)
        pad, eos = self.tokenizer.pad_id, self.tokenizer.eos_id
        ids = torch.tensor([[pad] * (longest - len(r.prompt_ids)) + list(r.prompt_ids) for r in requests])
        mask = torch.tensor([[0] * (longest - len(r.prompt_ids)) + [1] * len(r.prompt_ids) for r in requests])
        draws = [np.random.default_rng(r.seed % 2**63).random(r.max_tokens) for r in requests]
        out: list[list[int]] = [[] for _ in requests]
        logps: list[list[float]] = [[] for _ in requests]
        rows, cache, position = list(range(len(requests))), DynamicCache(), mask.sum(1, keepdim=True) - 1
        positions = (mask.cumsum(1) - 1).clamp(min=0)
        while rows:
            result = self.model.hf(
                ids, attention_mask=mask, position_ids=positions, past_key_values=cache, logits_to_keep=1
            )
            logits = result.logits[:, -1] / torch.tensor([[requests[r].temperature] for r in rows])
            probs = logits.float().softmax(-1)
            chosen = _draw(probs, [requests[r].top_p for r in rows], [draws[r][len(out[r])] for r in rows])
            picked = probs.gather(1, chosen[:, None]).log()[:, 0].tolist()
            keep = []
            for i, (r, token) in enumerate(zip(rows, chosen.tolist(), strict=True)):
                out[r].append(token)
                logps[r].append(picked[i])
                if token != eos and len(out[r]) < requests[r].max_tokens and not self._stops_here(requests[r], out[r]):
                    keep.append(i)
            ids = chosen[:, None]
            position = position + 1
            if len(keep) < len(rows):
                index = torch.tensor(keep, dtype=torch.long)
                if keep:
                    cache.batch_select_indices(index)
                ids, mask, position, rows = ids[index], mask[index], position[index], [rows[i] for i in keep]
            mask = torch.cat([mask, torch.ones(len(rows), 1, dtype=mask.dtype)], 1)
            positions = position
        return [
            Completion(
                tuple(o),
                self.tokenizer.decode(o),
                o[-1] != eos and not self._stops_here(r, o),
                tuple(p) if r.logprobs else None,
            )
            for r, o, p in zip(requests, out, logps, strict=True)
        ]

    def _stops_here(self, request: Request, ids: list[int]) -> bool:
        """Return whether the last token completes the text that ends this request."""
        return request.stop is not None and request.stop in self.tokenizer.decode(ids[-len(request.stop) :])


def _draw(probs: Tensor, top_p: list[float], uniform: list[float]) -> Tensor:
    """Draw one token a row by inverting the cumulative distribution, sorted and cut at top-p where that is below 1."""
    draws = torch.tensor(uniform)[:, None].float()
    chosen = _invert(probs, draws)
    cut = [row for row, p in enumerate(top_p) if p < 1.0]
    if cut:
        order = probs[cut].sort(-1, descending=True)
        before = order.values.cumsum(-1) - order.values
        values = order.values.masked_fill(before >= torch.tensor([top_p[row] for row in cut])[:, None], 0.0)
        chosen[cut] = order.indices.gather(1, _invert(values, draws[cut])[:, None])[:, 0]
    return chosen


def _invert(weights: Tensor, uniform: Tensor) -> Tensor:
    """Return for each row the first place whose cumulative weight reaches that share of the row's sum."""
    cumulative = weights.cumsum(-1)
    return (cumulative < uniform * cumulative[:, -1:]).sum(-1).clamp(max=weights.shape[1] - 1)


class OneProcessRuntime(RuntimeDefaults):
    """Implementation of `interfaces.Runtime` in this process."""

    def __init__(self, cfg: RunConfig) -> None:
        torch.set_num_threads(cfg.local.threads)
        self.tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
        self.generator = OneProcessGenerator(cfg.model.path, self.tokenizer, cfg.model.max_length)
        self.actor = OneProcessActor(cfg.model.path, cfg.local.micro_batch_tokens)

    def close(self) -> None:
        """Do nothing: no process was started."""


async def start_runtime(cfg: RunConfig, command: str, status: Any, master: Any = None) -> OneProcessRuntime:
    """Take the place of `registry.start_runtime`."""
    if command == "evaluate":
        from nemo_tapo.evaluation.model_files import resolve_model_path

        cfg = resolve_model_path(cfg)
    return OneProcessRuntime(cfg)


if __name__ == "__main__":
    registry.start_runtime = start_runtime  # type: ignore[assignment]
    serial.PROGRAM = (sys.executable, __file__)  # what a sweep starts
    sys.exit(cli.main(sys.argv[1:]))
