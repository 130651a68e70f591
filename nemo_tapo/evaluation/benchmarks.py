"""Evaluation: plain single-pass generation on the held-out problems, and how well synthesis still works."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.algorithms.base import Tools
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.synthesis import construction_counts
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.results import Evaluated, read_evaluated
from nemo_tapo.evaluation.sample_store import Sample, Store, folder_of
from nemo_tapo.evaluation.samplers import Sampler, Verify, missing, take
from nemo_tapo.metrics import BEYOND, ELIGIBLE, MASTERED, MIXED_REFLECTION_GROUPS, REFLECTION_GROUPS
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import Query
from nemo_tapo.utils.signals import Stop

Benchmarks = Mapping[str, Sequence[Query]]


def settings_of(cfg: RunConfig, model: Mapping[str, Any], benchmarks: Benchmarks) -> dict[str, Any]:
    """What decides the samples of an evaluation. model: what tells its weights from others'."""
    e = cfg.evaluation
    return {
        "model": dict(model),
        "seed": cfg.seed,
        "evaluation": {"temperature": e.temperature, "top_p": e.top_p, "max_tokens": e.max_tokens},
        "benchmarks": {
            name: {
                "problems": len(queries),
                "data": digest([(q.uid, q.user_text, q.answer) for q in queries]),
                "prompts": digest([q.prompt_ids for q in queries]),
            }
            for name, queries in benchmarks.items()
        },
        "runs": e.runs,
        "samples": e.samples,
    }


def digest(value: Any) -> str:
    return hashlib.sha256(json.dumps(value).encode()).hexdigest()


async def evaluate(
    cfg: RunConfig,
    name: str,
    model: Mapping[str, Any],
    benchmarks: Benchmarks,
    sampler: Sampler,
    verify: Verify,
    progress: Progress,
    stop: Stop,
) -> Evaluated:
    """n samples of every problem in every run, those on disk not taken again; returns them all, graded.

    Raises ValueError if a benchmark is empty or the folder holds samples of other settings, Stopped on request, and
    what the sampler raises; samples taken until then are kept.
    """
    for benchmark, queries in benchmarks.items():
        if not queries:
            raise ValueError(f"{benchmark} has no usable problem: nothing to evaluate.")
    folder = folder_of(cfg.output, name)
    with Store(folder, settings_of(cfg, model, benchmarks)) as store:
        jobs = missing(benchmarks, cfg.evaluation, {benchmark: store.done(benchmark) for benchmark in benchmarks})
        total = sum(map(len, benchmarks.values())) * cfg.evaluation.runs * cfg.evaluation.samples
        stage = progress.stage(f"evaluating ({name})", total, "samples", done=total - len(jobs))
        right = taken = 0

        def keep(sample: Sample) -> None:
            nonlocal right, taken
            store.add(sample)
            right, taken = right + (sample.reward > 0), taken + 1
            stage.note(f"accuracy {right / taken:.3f}")
            stage.advance()

        await take(jobs, sampler, verify, cfg.seed, keep, stop)
    stop.check(f"{total - len(jobs) + taken} of {total} samples are in {folder}")
    progress.status("summarising")
    return read_evaluated(folder)


def shown_settings(cfg: RunConfig) -> dict[str, Any]:
    """The entry "settings" of evaluation.json."""
    e = cfg.evaluation
    return {
        "samples": e.samples,
        "runs": e.runs,
        "temperature": e.temperature,
        "top_p": e.top_p,
        "max_tokens": e.max_tokens,
        "seed": cfg.seed,
    }


async def measure_synthesis(cfg: RunConfig, tools: Tools, benchmarks: Benchmarks, queries: int) -> dict[str, float]:
    """One TAPO step on held-out queries without its update: how many pairs parse, are right, and give mixed groups.

    On the first `queries` of all benchmarks.
    """
    several = len(benchmarks) > 1  # then uids need not differ between them
    held_out = [replace(q, uid=f"{name}/{q.uid}") if several else q for name, of in benchmarks.items() for q in of]
    rollout = cfg.rollout.model_copy(update={"logprobs": "never"})
    algorithm: GRPO = TAPO(cfg.model_copy(update={"rollout": rollout}), tools)
    experience = await algorithm.experience(0, held_out[:queries])
    metrics = algorithm.metrics(experience, algorithm.rows(experience))
    counts = construction_counts(experience.constructions)
    names = (ELIGIBLE, MASTERED, BEYOND, REFLECTION_GROUPS, MIXED_REFLECTION_GROUPS)
    return {k.removeprefix("tapo/"): v for k, v in {**{n: metrics[n] for n in names}, **counts}.items()}
