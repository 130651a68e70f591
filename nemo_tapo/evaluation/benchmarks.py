"""Evaluate a model on held-out problems by plain generation, and measure how well its synthesis works."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_tapo.algorithms.synthesis import count_constructions
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.evaluation.results import EvaluationResult, read_evaluation
from nemo_tapo.evaluation.sample_store import Sample, SampleStore, get_evaluation_folder
from nemo_tapo.evaluation.samplers import ResponseSampler, Verify, list_missing_jobs, take_samples
from nemo_tapo.metrics import BEYOND, ELIGIBLE, MASTERED, MIXED_REFLECTION_GROUPS, REFLECTION_GROUPS
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import Experience, Query
from nemo_tapo.utils.files import hash_json
from nemo_tapo.utils.signals import Stop

Benchmarks = Mapping[str, Sequence[Query]]


@dataclass(frozen=True)
class EvaluationTarget:
    """The model that an evaluation measures, the evaluation's name, and its benchmarks.

    >>> target = EvaluationTarget("before", {"weights": "9f86d0"}, {"sums": [Query("7", "47+38=?", "85")]})
    >>> {name: len(queries) for name, queries in target.benchmarks.items()}
    {'sums': 1}
    """

    name: str  # names the folder of the samples and the entry in evaluation.json
    model: Mapping[str, Any]  # identifies its weights; see model_files.get_model_identity
    benchmarks: Benchmarks  # {name: queries with their prompt_ids}


def get_sampling_settings(cfg: RunConfig, model: Mapping[str, Any], benchmarks: Benchmarks) -> dict[str, Any]:
    """Return the settings that determine an evaluation's samples, as the store's settings.json keeps them.

    model: the identity of the weights, see model_files.get_model_identity.
    """
    e = cfg.evaluation
    return {
        "model": dict(model),
        "seed": cfg.seed,
        "evaluation": {"temperature": e.temperature, "top_p": e.top_p, "max_tokens": e.max_tokens},
        "benchmarks": {
            name: {
                "problems": len(queries),
                "data": hash_json([(q.uid, q.user_text, q.answer) for q in queries]),
                "prompts": hash_json([q.prompt_ids for q in queries]),
            }
            for name, queries in benchmarks.items()
        },
        "runs": e.runs,
        "samples": e.samples,
        **cfg.grading_identity,
    }


async def evaluate(
    cfg: RunConfig,
    target: EvaluationTarget,
    sampler: ResponseSampler,
    verify: Verify,
    progress: Progress,
    stop: Stop,
) -> EvaluationResult:
    """Take and grade n samples of every problem in every run, and return all of them.

    Samples that are already on disk are not taken again. Raises ValueError if a benchmark is empty or the folder holds
    samples of other settings, Stopped if a stop is requested, and whatever the sampler raises. The samples taken until
    then are kept.
    """
    benchmarks = target.benchmarks
    for benchmark, queries in benchmarks.items():
        if not queries:
            raise ValueError(f"{benchmark} has no usable problem: nothing to evaluate.")
    folder = get_evaluation_folder(cfg.output, target.name)
    with SampleStore(folder, get_sampling_settings(cfg, target.model, benchmarks)) as store:
        jobs = list_missing_jobs(
            benchmarks, cfg.evaluation, {benchmark: store.read_keys(benchmark) for benchmark in benchmarks}
        )
        total = sum(map(len, benchmarks.values())) * cfg.evaluation.runs * cfg.evaluation.samples
        stage = progress.start_stage(f"evaluating ({target.name})", total, "samples", done=total - len(jobs))
        right = taken = 0

        def keep(sample: Sample) -> None:
            nonlocal right, taken
            store.add(sample)
            right, taken = right + sample.correct, taken + 1
            stage.set_note(f"accuracy {right / taken:.3f}")
            stage.advance()

        await take_samples(jobs, sampler, verify, cfg.seed, keep, stop)
    stop.check(f"{total - len(jobs) + taken} of {total} samples are in {folder}")
    progress.set_phase("summarising")
    return read_evaluation(folder)


def make_settings_entry(cfg: RunConfig) -> dict[str, Any]:
    """Return the entry "settings" of evaluation.json."""
    e = cfg.evaluation
    return {
        "samples": e.samples,
        "runs": e.runs,
        "temperature": e.temperature,
        "top_p": e.top_p,
        "max_tokens": e.max_tokens,
        "seed": cfg.seed,
    }


async def collect_once(cfg: RunConfig, tools: Tools, queries: Sequence[Query]) -> tuple[TAPO, Experience]:
    """Sample and construct as a step of TAPO does; return its algorithm too. No pair waits for a step to come."""
    rollout = cfg.rollout.model_copy(update={"logprobs": "never", "dynamic_sampling": None})
    algorithm = TAPO(cfg.model_copy(update={"rollout": rollout, "pipeline": "overlapped"}), tools)
    return algorithm, await algorithm.collect(0, queries)


async def measure_synthesis(cfg: RunConfig, tools: Tools, benchmarks: Benchmarks, queries: int) -> dict[str, float]:
    """Run one TAPO step without its update and count how many pairs parse, are correct, and give mixed groups.

    The step takes the first `queries` held-out queries of all benchmarks together.
    """
    several = len(benchmarks) > 1  # uids are unique within one benchmark only
    held_out = [
        replace(q, uid=f"{name}/{q.uid}") if several else q for name, one_set in benchmarks.items() for q in one_set
    ]
    algorithm, experience = await collect_once(cfg, tools, held_out[:queries])
    metrics = algorithm.compute_metrics(experience, algorithm.make_rows(experience))
    counts = count_constructions(experience.constructions)
    names = (ELIGIBLE, MASTERED, BEYOND, REFLECTION_GROUPS, MIXED_REFLECTION_GROUPS)
    return {k.removeprefix("tapo/"): v for k, v in {**{n: metrics[n] for n in names}, **counts}.items()}
