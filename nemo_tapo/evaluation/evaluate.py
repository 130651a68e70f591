"""Evaluation: plain single-pass generation on the held-out problems, and how well synthesis still works."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from nemo_tapo.algorithms.base import Tools, concurrently
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.tapo import TAPO, construction_counts
from nemo_tapo.config import RunConfig
from nemo_tapo.evaluation.passk import interval, mean_pass_at_k
from nemo_tapo.seeding import seed_from
from nemo_tapo.types import Completion, Grade, Query, Request

Advance = Callable[[int], None]
Sample = tuple[Completion, Grade]


async def evaluate(cfg: RunConfig, tools: Tools, queries: Sequence[Query], advance: Advance) -> dict[str, Any]:
    """pass@1..n over `queries`, each run with seeds of its own, averaged over the runs.

    Returns JSON: pass@k with a 95% interval (bootstrap over problems, of the runs pooled), counts, lengths.
    """
    settings = cfg.evaluation
    runs = [await one_run(cfg, tools, queries, run, advance) for run in range(settings.runs)]
    flat = [sample for run in runs for samples in run for sample in samples]
    result: dict[str, Any] = {
        "problems": len(queries),
        "samples": settings.samples,
        "runs": settings.runs,
        "temperature": settings.temperature,
        "top_p": settings.top_p,
        "response_length/mean": sum(len(c.token_ids) for c, _ in flat) / len(flat),
        "truncated": sum(c.truncated for c, _ in flat) / len(flat),
        "no_answer": sum(g.outcome == "no_answer" for _, g in flat) / len(flat),
        "with_reflection": sum("Wait," in c.text for c, _ in flat) / len(flat),
    }
    correct = [[sum(g.reward > 0 for _, g in samples) for samples in run] for run in runs]
    pooled = [sum(c) for c in zip(*correct, strict=True)]
    for k in range(1, settings.samples + 1):
        result[f"pass@{k}"] = sum(mean_pass_at_k(c, settings.samples, k) for c in correct) / len(runs)
        if settings.runs == 1:
            result[f"interval95@{k}"] = interval(correct[0], settings.samples, k, cfg.seed)
        elif k == 1:
            result["interval95@1"] = interval(pooled, settings.samples * settings.runs, 1, cfg.seed)
    return result


async def one_run(
    cfg: RunConfig, tools: Tools, queries: Sequence[Query], run: int, advance: Advance
) -> list[list[Sample]]:
    """n graded samples of every query."""
    settings = cfg.evaluation

    async def one(query: Query, index: int) -> Sample:
        request = Request(
            uid=f"{query.uid}/{index}",
            prompt_ids=query.prompt_ids,
            seed=seed_from(cfg.seed, "evaluate", run, query.uid, index),
            max_tokens=settings.max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        completion = await tools.generator.generate(request)
        grade = await tools.task.grade(query, completion.text)
        advance(1)
        return completion, grade

    async def several(query: Query) -> list[Sample]:
        return await concurrently(one(query, index) for index in range(settings.samples))

    return await concurrently(several(query) for query in queries)


async def measure_synthesis(cfg: RunConfig, tools: Tools, queries: Sequence[Query]) -> dict[str, float]:
    """One TAPO step on held-out queries without its update: how many pairs parse, are right, and give mixed groups."""
    rollout = cfg.rollout.model_copy(update={"logprobs": "never"})
    algorithm: GRPO = TAPO(cfg.model_copy(update={"rollout": rollout}), tools)
    experience = await algorithm.experience(0, queries)
    metrics = algorithm.metrics(experience, algorithm.rows(experience))
    counts = construction_counts(experience.constructions)
    names = ("tapo/eligible", "tapo/mastered", "tapo/beyond", "tapo/groups", "tapo/mixed_groups")
    return {k.removeprefix("tapo/"): v for k, v in {**{n: metrics[n] for n in names}, **counts}.items()}
