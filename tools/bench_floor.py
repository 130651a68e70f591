"""Measure a GRPO step against its floor: the same requests in a bare vLLM engine, the same rows in bare Megatron-core.

    python tools/bench.py floor [--repeats 5]

The engine alone is vLLM's `LLMEngine` with this package's settings, in a process of its own: all requests are added,
then it steps until none is left. Megatron-core alone is one process a rank, as many as the step has: forward, cross
entropy on the response tokens, backward, AdamW. No driver, no Ray, no loop, no loss of this package, no metrics. Both
wait while the loop works, and take rounds in turn with it, so that a noisy minute touches all three. The learning rate
is 1e-12, so every round does the same work.
"""

from __future__ import annotations

import itertools
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from bench_loop import CONFIG, ROOT, SAME_WORK, Memory, run_loop

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.types import Batch, Request

OVERRIDES = (*SAME_WORK, f"model.path={ROOT / 'assets' / 'tiny-coldstart'}")
REQUESTS, ROWS = "requests.json", "rows-{}-{}.safetensors"  # of the steps; of a step and a rank
PARTS = {"generation": "time/rollouts", "update": "time/update", "step": "time/step"}
Seconds = dict[str, list[float]]  # of "step", "generation", "update", "bare engine", "bare Megatron-core"


# ---- the processes that are bare -------------------------------------------------------------------------------------


def serve_engine(work: Path) -> None:
    """Sample all requests of a step for every line on standard input, and print the seconds.

    `work` has the requests of the steps, which take turns.
    """
    from vllm import TokensPrompt
    from vllm.v1.engine.llm_engine import LLMEngine

    from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
    from nemo_tapo.runtime.local.engine import make_engine_args, make_sampling_params

    cfg = load_config(CONFIG, OVERRIDES)
    steps = [[Request(**request) for request in step] for step in json.loads((work / REQUESTS).read_text())]
    eos = HFTokenizer(cfg.model.path, cfg.model.enable_thinking).eos_id
    engine = LLMEngine.from_engine_args(make_engine_args(cfg))
    print("ready", flush=True)
    for _, requests in zip(sys.stdin, itertools.cycle(steps), strict=False):
        engine.reset_prefix_cache()
        begin = time.perf_counter()
        for number, request in enumerate(requests):
            prompt = TokensPrompt(prompt_token_ids=list(request.prompt_ids))
            engine.add_request(str(number), prompt, make_sampling_params(request, eos))
        tokens = 0
        while engine.has_unfinished_requests():
            tokens += sum(len(output.outputs[0].token_ids) for output in engine.step() if output.finished)
        print(json.dumps({"seconds": time.perf_counter() - begin, "tokens": tokens}), flush=True)


def serve_rank(work: Path, rank: int) -> None:
    """Make one update on this rank's rows for every line on standard input, and print the seconds.

    `work` has each rank's rows of the steps, which take turns.
    """
    import torch
    import torch.distributed as dist
    import torch.nn.functional as F
    from safetensors.torch import load_file
    from torch import Tensor

    from nemo_tapo.batch import micro_batches
    from nemo_tapo.runtime.local import pipeline_schedule
    from nemo_tapo.runtime.local.model import get_gradient
    from nemo_tapo.runtime.local.worker import MegatronWorker

    cfg = load_config(CONFIG, OVERRIDES)
    steps = [Batch.from_dict(load_file(file)) for file in sorted(work.glob(ROWS.format("*", rank)))]
    world = cfg.local.tp * cfg.local.pp * cfg.local.dp
    worker = MegatronWorker(rank, world, f"file://{work}/ranks", cfg.model.path, cfg.local)
    optimizer = torch.optim.AdamW(worker.parameters.values(), lr=1e-12, fused=True)

    def score(logits: Tensor, part: Batch) -> tuple[Tensor, None]:
        targets = torch.where(part.token_mask[:, 1:] > 0, part.input_ids[:, 1:], -100)
        return F.cross_entropy(logits[:, :-1].flatten(0, 1), targets.flatten(), reduction="sum"), None

    print("ready", flush=True)
    for _, share in zip(sys.stdin, itertools.cycle(steps), strict=False):
        dist.barrier()
        begin = time.perf_counter()
        parts = [
            share.select(rows) for rows in micro_batches(share.input_lengths.tolist(), cfg.local.micro_batch_tokens)
        ]
        worker.model.zero_grad_buffer()
        pipeline_schedule.run(worker.model, parts, score, forward_only=False)
        for parameter in worker.parameters.values():
            parameter.grad = get_gradient(parameter)
        optimizer.step()
        dist.barrier()
        print(json.dumps({"seconds": time.perf_counter() - begin}), flush=True)


class Bare:
    """Processes that work only when they are told to."""

    def __init__(self, commands: Sequence[Sequence[str]], environment: dict[str, str]) -> None:
        path = os.pathsep.join([str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._processes = [
            subprocess.Popen(
                [sys.executable, __file__, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
                env={**os.environ, **environment, "PYTHONPATH": path},
            )
            for command in commands
        ]  # fmt: skip
        for process in self._processes:
            assert process.stdout is not None
            if not any(line == "ready\n" for line in process.stdout):
                self.close()
                raise RuntimeError("a bare process ended before it was ready; its error is above.")

    def step(self) -> dict[str, float]:
        """Let all of them do their work once; return what the slowest tells."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.write("go\n")
            process.stdin.flush()
        return max((self._read(process) for process in self._processes), key=lambda told: told["seconds"])

    @staticmethod
    def _read(process: subprocess.Popen[str]) -> dict[str, float]:
        assert process.stdout is not None
        for line in process.stdout:
            if line.startswith("{"):
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError("a bare process ended; its error is above.")

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            assert process.stdin is not None
            process.stdin.close()
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()


# ---- the loop --------------------------------------------------------------------------------------------------------


class Capture:
    """Keeps what each step asks of engine and actor, and passes it on."""

    def __init__(self, runtime: Any) -> None:
        self.requests: list[list[Request]] = [[]]
        self.batches: list[Batch] = []
        self._runtime, self._generate, self._train = runtime, runtime.generator.generate, runtime.actor.train
        runtime.generator.generate, runtime.actor.train = self.generate, self.train

    async def generate(self, request: Request) -> Any:
        """Take the place of the generator's method."""
        self.requests[-1].append(request)
        return await self._generate(request)

    async def train(self, batch: Batch, loss: Any) -> Any:
        """Take the place of the actor's method."""
        self.batches.append(batch)
        self.requests.append([])
        return await self._train(batch, loss)

    def close(self) -> None:
        """Let the runtime work as before."""
        self._runtime.generator.generate, self._runtime.actor.train = self._generate, self._train


async def measure_floor(repeats: int) -> Seconds:
    """Return the seconds of `repeats` rounds; of the loop two steps a round."""
    from nemo_tapo.runtime.local.actor import make_worker_environment
    from nemo_tapo.runtime.local.engine import make_engine_environment
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    cfg = load_config(CONFIG, OVERRIDES)
    found: Seconds = {name: [] for name in (*PARTS, "bare engine", "bare Megatron-core")}
    runtime = await LocalRuntime.start(cfg)
    bare: list[Bare] = []
    try:
        with tempfile.TemporaryDirectory() as folder:
            await _capture(cfg, runtime, Path(folder))
            engine = Bare([["--serve-engine", folder]], make_engine_environment(cfg))
            bare.append(engine)
            commands = [["--serve-rank", folder, str(rank)] for rank in range(cfg.local.dp)]
            ranks = Bare(commands, make_worker_environment(cfg.local))
            bare.append(ranks)
            engine.step(), ranks.step()  # warm up
            for _ in range(repeats):
                memory = Memory()
                await run_loop(cfg, runtime, memory, queries=512)
                for name, key in PARTS.items():
                    found[name] += [metrics[key] for metrics in memory.metrics[1:]]  # the first step warms up
                for _ in memory.metrics[1:]:
                    found["bare engine"].append(engine.step()["seconds"])
                    found["bare Megatron-core"].append(ranks.step()["seconds"])
    finally:
        for each in bare:
            each.close()
        runtime.close()
    return found


async def _capture(cfg: RunConfig, runtime: Any, folder: Path) -> None:
    """Take three steps, and write the requests and each rank's rows of the last two, which are those that are timed."""
    from safetensors.torch import save_file

    from nemo_tapo.runtime.batch_sharding import deal_rows, select_and_pad

    capture = Capture(runtime)
    await run_loop(cfg, runtime, Memory(), queries=512)
    capture.close()
    (folder / REQUESTS).write_text(
        json.dumps([[asdict(request) for request in step] for step in capture.requests[1:3]])
    )
    for step, batch in enumerate(capture.batches[1:]):
        shares = deal_rows(batch.input_lengths.tolist(), cfg.local.dp)
        for rank, share in enumerate(shares):
            rows = select_and_pad(batch, share, max(map(len, shares))).as_dict()
            save_file({name: tensor.contiguous() for name, tensor in rows.items()}, folder / ROWS.format(step, rank))


def list_rows(found: Seconds) -> list[tuple[str, str]]:
    """Return the table's rows: medians, and the ratio of each part to its floor."""
    median = {name: statistics.median(seconds) for name, seconds in found.items()}
    floor = {"generation": median["bare engine"], "update": median["bare Megatron-core"]}
    floor["step"] = floor["generation"] + floor["update"]
    return [
        (f"{name} over its floor", f"{median[name] / floor[name]:.2f} ({median[name]:.2f} s, {floor[name]:.2f} s)")
        for name in PARTS
    ]


if __name__ == "__main__":
    if sys.argv[1] == "--serve-engine":
        serve_engine(Path(sys.argv[2]))
    else:
        assert sys.argv[1] == "--serve-rank", "tools/bench.py floor runs this"
        serve_rank(Path(sys.argv[2]), int(sys.argv[3]))
