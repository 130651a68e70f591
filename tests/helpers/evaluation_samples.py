"""Evaluations for the tests: the scripted runtime samples, or a sampler that counts."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.evaluation.benchmarks import EvaluationTarget, evaluate
from nemo_tapo.evaluation.results import EvaluationResult
from nemo_tapo.evaluation.sample_store import Sample, escape_file_name, get_evaluation_folder
from nemo_tapo.evaluation.samplers import EngineSampler, Response
from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import Grade, Query
from nemo_tapo.utils.signals import Stop

MODEL = {"weights": "of the test"}


def config(folder: Path, **settings: Any) -> RunConfig:
    chosen = {"samples": 5, "runs": 2, "max_tokens": 300, **settings}
    return validate({"output": folder, "runtime": "scripted", "evaluation": chosen})


def problems(count: int = 6) -> list[Query]:
    runtime = ScriptedRuntime(arithmetic_script)
    queries = ArithmeticTask(validate({}).task.arithmetic, 0).benchmarks()["arithmetic"][:count]
    return [replace(q, prompt_ids=runtime.tokenizer.chat(q.question)) for q in queries]


def sampled(
    cfg: RunConfig, name: str = "x", stop: Stop | None = None, benchmarks: Mapping[str, Sequence[Query]] | None = None
) -> tuple[EvaluationResult, ScriptedRuntime]:
    """An evaluation, and the runtime that was asked."""
    runtime, task = ScriptedRuntime(arithmetic_script), ArithmeticTask(cfg.task.arithmetic, 0)
    sampler = EngineSampler(runtime.generator, cfg)
    sets = benchmarks or {"arithmetic": problems()}
    target = EvaluationTarget(name, MODEL, sets)
    work = evaluate(cfg, target, sampler, task.grade, Progress(), stop or Stop())
    return asyncio.run(work), runtime


def lines(cfg: RunConfig, name: str = "x", benchmark: str = "arithmetic") -> list[str]:
    """The file's lines in an order that does not tell who came first."""
    return sorted(
        (get_evaluation_folder(cfg.output, name) / f"{escape_file_name(benchmark)}.jsonl").read_text().splitlines()
    )


def a_sample(uid: str, run: int, index: int, reward: float = 0.0, **changes: Any) -> Sample:
    values = {"text": "", "tokens": 10, "truncated": False, "outcome": "right" if reward else "wrong", "answer": "7"}
    return Sample("b", uid, run, index, reward=reward, **{**values, **changes})  # type: ignore[arg-type]


class Slow:
    """A sampler that counts how many requests are under way, and does something at one of them."""

    def __init__(self, in_flight: int, at: int, do: Callable[[], None]) -> None:
        self.in_flight, self.at, self.do = in_flight, at, do
        self.now = self.most = self.asked = 0

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        self.now, self.asked = self.now + 1, self.asked + 1
        self.most = max(self.most, self.now)
        if self.asked == self.at:
            self.do()
        for _ in range(seed % 7):
            await asyncio.sleep(0)
        self.now -= 1
        return Response("\\boxed{1}", 3, False)


def target() -> EvaluationTarget:
    return EvaluationTarget("x", MODEL, {"b": problems()})


async def grade(query: Query, text: str) -> Grade:
    return Grade(0.0, "wrong", "1")
