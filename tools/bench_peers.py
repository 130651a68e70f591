"""Measure a GRPO step against TRL's GRPOTrainer: same model, same queries, same reward, turn by turn.

    python tools/bench.py peers [--repeats 5]

TRL and accelerate are installed into runs/bench/trl-<version>, without what they depend on, which is there already. TRL
runs in a process of its own, which waits while the other one works. Both take rounds in turn, so that a noisy minute
touches both. Two settings:

demo        the demo's model, 32 queries x 8 rollouts, 112 tokens at most (mean about 40)
long tail   a model of the same size that ends a response with probability 1/64 at every token: lengths are geometric,
            cut at 512, as those of real models have a long tail. What it writes does not matter; no reward is earned

The learning rate is 1e-12 and the KL is off on both sides: what is compared is the time of the same work. TRL samples
by transformers' `generate`, the only engine that it has without a GPU. Its other settings are its defaults.
"""

from __future__ import annotations

import json
import os
import shutil
import statistics
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[1]
TRL = {"trl": "1.16.0", "accelerate": "1.15.0"}
QUERIES, ROLLOUTS = 32, 8
END_PROBABILITY = 1 / 64
SETTINGS = {"demo": 112, "long tail": 512}  # most tokens of a response


# ---- the peer's process ----------------------------------------------------------------------------------------------


def serve_trl(model: str, most_tokens: int, threads: int) -> None:
    """Take a step for every line on standard input, and print its seconds and mean length."""
    import torch

    torch.set_num_threads(threads)
    from datasets import Dataset
    from transformers import TrainerCallback
    from trl import GRPOConfig, GRPOTrainer

    from nemo_tapo.config.sections import ArithmeticConfig
    from nemo_tapo.tasks import arithmetic
    from nemo_tapo.tasks.arithmetic_task import ArithmeticTask

    queries = ArithmeticTask(ArithmeticConfig(), 0).train_queries()
    rows = [{"prompt": [{"role": "user", "content": q.user_text}], "answer": q.answer} for q in queries[:2048]]

    def reward(completions: Sequence[Any], answer: Sequence[str], **_: Any) -> list[float]:
        texts = [completion[0]["content"] for completion in completions]
        return [arithmetic.verify_response(a, text)[0] for a, text in zip(answer, texts, strict=True)]

    class Turns(TrainerCallback):
        """Waits for its turn before a step, and tells its seconds after it."""

        def on_step_begin(self, args: Any, state: Any, control: Any, **_: Any) -> None:
            if not sys.stdin.readline():
                os._exit(0)
            self.begin = time.perf_counter()

        def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, float], **_: Any) -> None:
            if "completions/mean_length" in logs:
                seconds = time.perf_counter() - self.begin
                print(json.dumps({"seconds": seconds, "length": logs["completions/mean_length"]}), flush=True)

    settings = GRPOConfig(
        output_dir=str(ROOT / "runs" / "bench" / "trl-output"), use_cpu=True, bf16=False, learning_rate=1e-12, beta=0.0,
        per_device_train_batch_size=QUERIES * ROLLOUTS, num_generations=ROLLOUTS, max_completion_length=most_tokens,
        temperature=1.0, max_steps=10**6, logging_steps=1, save_strategy="no", report_to="none", disable_tqdm=True,
        gradient_checkpointing=False,
    )  # fmt: skip
    GRPOTrainer(model, reward, args=settings, train_dataset=Dataset.from_list(rows), callbacks=[Turns()]).train()


class Peer:
    """TRL's process, which works only when it is told to."""

    def __init__(self, model: Path, most_tokens: int, threads: int) -> None:
        folder = install_trl()
        command = [sys.executable, __file__, "--serve-trl", str(model), str(most_tokens), str(threads)]
        path = os.pathsep.join([str(folder), str(ROOT), os.environ.get("PYTHONPATH", "")])
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
            env={**os.environ, "PYTHONPATH": path, "HF_HUB_OFFLINE": "1"},
        )  # fmt: skip

    def step(self) -> dict[str, float]:
        """Take one step; return its seconds and the mean length of its responses."""
        assert self._process.stdin is not None and self._process.stdout is not None
        self._process.stdin.write("step\n")
        self._process.stdin.flush()
        for line in self._process.stdout:
            if line.startswith("{") and "seconds" in line:
                found: dict[str, float] = json.loads(line)
                return found
        raise RuntimeError("TRL's process ended; its error is above.")

    def close(self) -> None:
        assert self._process.stdin is not None
        self._process.stdin.close()
        try:
            self._process.wait(10)
        except subprocess.TimeoutExpired:
            self._process.kill()


def install_trl() -> Path:
    """Install TRL and accelerate, without what they depend on, unless they are there; return their folder."""
    folder = ROOT / "runs" / "bench" / f"trl-{TRL['trl']}"
    if not folder.is_dir():
        wanted = [f"{name}=={version}" for name, version in TRL.items()]
        made = folder.with_suffix(".tmp")
        shutil.rmtree(made, ignore_errors=True)
        install = [sys.executable, "-m", "pip", "install", "-q", "--no-deps", "--target", str(made), *wanted]
        subprocess.run(install, check=True)
        made.rename(folder)
    return folder


# ---- this side -------------------------------------------------------------------------------------------------------


def write_model_that_ends(source: Path, folder: Path, probability: float) -> None:
    """Write a model of the shape of `source` whose responses end with this probability at every token.

    Every token has the same embedding and no layer adds to it, so that the logits are the same everywhere: 0, and for
    the end of a turn what makes it that probability. They cost as much as those of any other model of this shape.
    """
    import torch
    from safetensors.torch import load_file, save_file

    shutil.copytree(source, folder, dirs_exist_ok=True)
    config = json.loads((folder / "config.json").read_text())
    tensors = load_file(folder / "model.safetensors")
    for name, tensor in tensors.items():
        if name.endswith(("o_proj.weight", "down_proj.weight")):
            tensor.zero_()
    tensors["model.embed_tokens.weight"].fill_(1.0)
    tensors["model.norm.weight"].fill_(1.0)
    head = torch.zeros(config["vocab_size"], config["hidden_size"])
    odds = probability / (1 - probability) * (config["vocab_size"] - 1)
    head[config["eos_token_id"]] = torch.tensor(odds).log() / config["hidden_size"]
    tensors["lm_head.weight"] = head
    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, folder / "model.safetensors")
    (folder / "config.json").write_text(
        json.dumps({**config, "tie_word_embeddings": False, "max_position_embeddings": 1024})
    )


async def measure_peers(repeats: int, threads: int = 2) -> dict[str, dict[str, list[float]]]:
    """Return {setting: {"nemo_tapo": seconds, "trl": seconds, "... length": tokens}} of `repeats` rounds."""
    source, tailed = ROOT / "assets" / "tiny-coldstart", ROOT / "runs" / "bench" / "long-tail"
    write_model_that_ends(source, tailed, END_PROBABILITY)
    return {
        name: await _measure(source if name == "demo" else tailed, most_tokens, repeats, threads)
        for name, most_tokens in SETTINGS.items()
    }


async def _measure(model: Path, most_tokens: int, repeats: int, threads: int) -> dict[str, list[float]]:
    from bench_loop import CONFIG, SAME_WORK, Memory, run_loop

    from nemo_tapo.config.load import load_config
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    cfg = load_config(CONFIG, [*SAME_WORK, f"model.path={model}", f"rollout.max_tokens={most_tokens}"])
    found: dict[str, list[float]] = {"nemo_tapo": [], "nemo_tapo length": [], "trl": [], "trl length": []}
    peer = Peer(model, most_tokens, threads)
    try:
        peer.step()  # warms up
        runtime = await LocalRuntime.start(cfg)
        try:
            for _ in range(repeats):
                memory = Memory()
                await run_loop(cfg, runtime, memory, queries=512)
                for metrics in memory.metrics[1:]:  # the first warms up
                    found["nemo_tapo"].append(metrics["time/step"])
                    found["nemo_tapo length"].append(metrics["response_length/mean"])
                for _ in memory.metrics[1:]:
                    step = peer.step()
                    found["trl"].append(step["seconds"])
                    found["trl length"].append(step["length"])
        finally:
            runtime.close()
    finally:
        peer.close()
    return found


def list_rows(seen: dict[str, dict[str, list[float]]]) -> list[tuple[str, str]]:
    """Return the table's rows: medians, and the ratio of both."""
    rows = []
    for name, found in seen.items():
        ours, theirs = statistics.median(found["nemo_tapo"]), statistics.median(found["trl"])
        lengths = (statistics.mean(found[f"{side} length"]) for side in ("nemo_tapo", "trl"))
        rows.append((f"TRL over nemo_tapo, {name}", f"{theirs / ours:.2f} ({theirs:.2f} s, {ours:.2f} s)"))
        rows.append((f"mean length, tokens, {name}", " and ".join(f"{length:.0f}" for length in lengths)))
    return rows


if __name__ == "__main__":
    assert sys.argv[1] == "--serve-trl", "tools/bench.py peers runs this"
    serve_trl(sys.argv[2], int(sys.argv[3]), int(sys.argv[4]))
