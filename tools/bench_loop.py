"""Run the loop on the generated arithmetic for a measurement: what bench.py and latency_engine.py share."""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.types import StepRecord

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SAME_WORK = (  # three GRPO steps, the first of which warms up; the weights stay, so that all do the same
    "model.max_length=640", "algorithm=grpo", "optimizer.lr=1e-12", "loss.kl_rows=0", "rollout.logprobs=never",
    "checkpoint.every=1000000", "steps=3",
)  # fmt: skip


class Memory:
    """A recorder that keeps the metrics of each step."""

    def __init__(self) -> None:
        self.metrics: list[dict[str, float]] = []

    def phase(self, text: str) -> None: ...

    def warn(self, text: str) -> None: ...

    def resume(self, step: int, history: object) -> None: ...

    def history(self) -> list[str]:
        return []

    def step(self, record: StepRecord) -> None:
        self.metrics.append(dict(record.metrics))


async def run_loop(cfg: RunConfig, runtime: Any, recorder: Memory, queries: int) -> None:
    """Train `cfg.steps` steps on the first `queries` training queries; nothing is kept on disk."""
    from nemo_tapo.algorithms.registry import make_algorithm
    from nemo_tapo.algorithms.tools import Tools
    from nemo_tapo.config.loop import LoopConfig
    from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
    from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
    from nemo_tapo.train import train
    from nemo_tapo.utils.signals import Stop

    task = ArithmeticTask(cfg.task.arithmetic, cfg.seed)
    usable, _ = add_prompts(task.train_queries()[:queries], runtime.tokenizer, cfg.model.max_length)
    order = QueryOrder(usable, cfg.rollout.queries_per_step, cfg.seed)
    await runtime.actor.set_reference()
    with tempfile.TemporaryDirectory() as folder:
        loop = LoopConfig(Path(folder), cfg.steps, cfg.optimizer, cfg.loss, checkpoint_every=10**6, lag=cfg.rollout.lag)
        algorithm = make_algorithm(cfg, Tools(runtime.generator, runtime.tokenizer, task))
        await train(loop, algorithm, runtime, order.queries, recorder, Stop())
