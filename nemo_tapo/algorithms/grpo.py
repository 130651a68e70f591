"""Implement GRPO: K rollouts a query, advantages relative to the group (Eq. 1 and 2 of arXiv 2606.18844).

TAPO (tapo.py) extends this class: it constructs from each group. Without constructions the two are the same.
"""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.equations.advantage import AdvantageRules, group_advantages, is_uniform
from nemo_tapo.equations.importance import ImportanceRules
from nemo_tapo.losses.base import Loss
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import (
    MASKED_ROLLOUTS,
    RESPONSE_LENGTH_MAX,
    RESPONSE_LENGTH_MEAN,
    RESPONSE_LENGTH_TRUNCATED,
    REWARD_MEAN,
    ROWS,
    SAMPLED_QUERIES,
    TIME_GRADING,
    TIME_ROLLOUTS,
    TIME_SYNTHESIS,
    TOKENS_GENERATED,
    TOKENS_TRAINED,
    UNIFORM_GROUPS_SHARE,
    UNIFORM_KEPT,
    grade_count,
    replaced_count,
)
from nemo_tapo.types import Construction, Experience, Group, Kind, Query, Request, Rollout, Row
from nemo_tapo.utils.concurrency import run_concurrently
from nemo_tapo.utils.seeding import seed_from

COMPARED_QUERIES = 4  # in a step: the first rollout of so many tells by which weights the engine samples


class GRPO:
    """Group-relative policy optimization."""

    samples = True

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        self.cfg = cfg
        self.tools = tools
        self.position = 0  # queries of the order that were sampled so far
        self.first_step: int | None = None  # of this process: the engine reports its log-probabilities, to be compared
        self.compared: set[str] = set()  # queries of this step with a rollout whose log-probabilities are asked for
        self.rules = AdvantageRules(eps=cfg.loss.advantage_eps)
        self.loss: Loss = PolicyLoss(
            clip_low=cfg.loss.clip_low,
            clip_high=cfg.loss.clip_high,
            kl_coef=cfg.loss.kl_coef,
            suppression=cfg.tapo.suppression,
            w_min=cfg.tapo.w_min,
            w_max=cfg.tapo.w_max,
            temperature=cfg.rollout.temperature,
            dual_clip=cfg.loss.dual_clip,
            ratio=cfg.loss.ratio,
            surrogate=cfg.loss.surrogate,
            importance=ImportanceRules(sequence=cfg.loss.ratio == "sequence") if cfg.rollout.lag else None,
        )

    @property
    def term_weights(self) -> Mapping[Kind, float]:
        """Eq. 6: lambda on constructed rows; `tapo.ift_weight` on examples, of which GRPO has none."""
        return {Kind.ORIGINAL: 1.0, Kind.CONSTRUCTED: self.cfg.tapo.weight, Kind.EXAMPLE: self.cfg.tapo.ift_weight}

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Sample the rollouts of all queries, and make the constructions of each group.

        With `pipeline: overlapped` a query goes on to its constructions as soon as its own rollouts are graded; with
        `barrier` it waits for the others. Both sample the same: every request has its own seed.

        With `rollout.dynamic_sampling` the first P queries are sampled and the others are there to replace them. Each
        query of equal rewards makes way for the next one. So n queries are sampled, the least n with P of mixed rewards
        among the first n, or all; that does not depend on the order in which responses arrive.
        """
        begin = time.perf_counter()
        if self.first_step is None:
            self.first_step = step
        self.compared = {query.uid for query in queries[:: -(-len(queries) // COMPARED_QUERIES)]}
        self.tools.grading_seconds = 0.0
        replaces = self.cfg.rollout.dynamic_sampling is not None
        places = min(self.cfg.rollout.queries_per_step, len(queries)) if replaces else len(queries)
        all_graded = asyncio.Barrier(places)
        graded_at: list[float] = []
        upcoming = iter(range(len(queries)))  # shared: a place whose query has no signal takes the next one
        groups: dict[int, Group] = {}
        made: dict[int, tuple[Construction, ...]] = {}

        async def fill_place() -> None:
            found = None
            for index in upcoming:
                groups[index] = await self.sample_group(queries[index], step)
                graded_at.append(time.perf_counter())
                if not replaces or not is_uniform(groups[index].rewards):
                    found = index
                    break
            if self.cfg.pipeline == "barrier":
                await all_graded.wait()
            if found is not None:
                made[found] = await self.construct_group(groups[found], step)

        await run_concurrently(fill_place() for _ in range(places))
        end = time.perf_counter()
        self.position += len(groups)
        uniform = [index for index in sorted(groups) if index not in made]
        kept = sorted([*made, *uniform[: places - len(made)]])
        return Experience(
            groups=tuple(groups[index] for index in kept),
            constructions=tuple(c for index in sorted(made) for c in made[index]),
            replaced=tuple(groups[index] for index in sorted(groups) if index not in kept),
            metrics={
                TIME_ROLLOUTS: max(graded_at) - begin,
                TIME_SYNTHESIS: end - max(graded_at),  # what the rollouts do not hide
                TIME_GRADING: self.tools.grading_seconds,
            },
        )

    async def sample_group(self, query: Query, step: int) -> Group:
        """Sample and grade K responses of the policy (Algorithm 1, lines 3 to 7)."""
        settings = self.cfg.rollout

        async def one(index: int) -> Rollout:
            request = Request(
                uid=f"{query.uid}/{index}",
                prompt_ids=query.prompt_ids,
                seed=seed_from(self.cfg.seed, "rollout", step, query.uid, index),
                max_tokens=settings.max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
                logprobs=self.is_compared(query, index, step),
            )
            completion = await self.tools.generator.generate(request)
            return Rollout(query, index, completion, await self.tools.grade_completion(query, completion))

        return Group(query, tuple(await run_concurrently(one(k) for k in range(settings.samples_per_query))))

    def is_compared(self, query: Query, index: int, step: int) -> bool:
        """Return whether the engine is to report the log-probabilities of a rollout (`rollout.logprobs`)."""
        settings = self.cfg.rollout
        if settings.top_p < 1:  # with a cut-off tail the engine samples from another distribution
            return False
        if settings.logprobs in ("spot_check", "first_step") and step == self.first_step:
            return True
        spot = settings.logprobs == "spot_check" and index == 0 and query.uid in self.compared
        return spot or settings.logprobs == "always"

    async def construct_group(self, group: Group, step: int) -> tuple[Construction, ...]:
        """Return no constructions; TAPO fills this in."""
        return ()

    def compute_advantages(
        self, rewards_K: Sequence[float], constructed_M: Sequence[float] = ()
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return the advantages of a query's K rollouts and of its M constructions, from their rewards (Eq. 1, 4, 5).

        An algorithm that changes nothing but advantages overrides this method.
        """
        return group_advantages(rewards_K, constructed_M, self.rules)

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return one row a rollout, its advantage normalised within its group."""
        rows = []
        for group in experience.groups:
            advantages, _ = self.compute_group_advantages(group)
            rows += self.make_original_rows(group, advantages)
        return rows

    def compute_group_advantages(
        self, group: Group, constructed: Sequence[Construction] = ()
    ) -> tuple[Sequence[float], Sequence[float]]:
        """Return the advantages of a query's rollouts and constructions.

        A rollout without a reward enters no mean, and its own advantage is 0: nothing is learned from it.
        """
        graded = group.rewards
        if len(graded) < min(2, len(group.rollouts)):  # nothing to compare with, and nothing to construct from
            return [0.0] * len(group.rollouts), [0.0] * len(constructed)
        known, reflected = self.compute_advantages(graded, [c.reward for c in constructed])
        remaining = iter(known)
        return [next(remaining) if r.grade.graded else 0.0 for r in group.rollouts], reflected

    def make_original_rows(self, group: Group, advantages_K: Sequence[float]) -> list[Row]:
        """Return the rows of one query's rollouts, those of truncated ones left out if `rollout.overlong` says so."""
        masks = self.cfg.rollout.overlong == "mask"
        return [
            Row(
                uid=rollout.uid,
                group=group.query.uid,
                kind=Kind.ORIGINAL,
                prompt_ids=group.query.prompt_ids,
                response_ids=rollout.completion.token_ids,
                reward=rollout.reward,
                advantage=advantage,
                generation_logprobs=rollout.completion.logprobs,
            )
            for rollout, advantage in zip(group.rollouts, advantages_K, strict=True)
            if not (masks and rollout.completion.truncated)
        ]

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Count rewards, lengths, outcomes and groups without signal.

        They are of every rollout that was sampled, those of replaced queries included.
        """
        groups = experience.groups + experience.replaced
        rollouts = [r for group in groups for r in group.rollouts]
        lengths = [len(r.completion.token_ids) for r in rollouts]
        outcomes = Counter(r.grade.outcome for r in rollouts)
        rewards = [reward for group in groups for reward in group.rewards]
        uniform = sum(is_uniform(group.rewards) for group in groups)
        truncated = sum(r.completion.truncated for r in rollouts)
        return {
            **({REWARD_MEAN: sum(rewards) / len(rewards)} if rewards else {}),
            RESPONSE_LENGTH_MEAN: sum(lengths) / len(lengths),
            RESPONSE_LENGTH_MAX: max(lengths),
            RESPONSE_LENGTH_TRUNCATED: truncated / len(rollouts),
            UNIFORM_GROUPS_SHARE: uniform / len(groups),
            **self._count_selection(experience),
            ROWS: len(rows),
            TOKENS_GENERATED: sum(lengths),
            TOKENS_TRAINED: sum(len(row.response_ids) for row in rows),
            **{grade_count(outcome): count for outcome, count in sorted(outcomes.items())},
            **experience.metrics,
        }

    def _count_selection(self, experience: Experience) -> dict[str, float]:
        """Count what settings leave out: queries sampled = those of the step + replaced; truncated rollouts."""
        counts: dict[str, float] = {}
        if self.cfg.rollout.dynamic_sampling is not None:
            reasons = Counter(map(get_replacement_reason, experience.replaced))
            counts[SAMPLED_QUERIES] = len(experience.groups) + len(experience.replaced)
            counts |= {replaced_count(reason): reasons[reason] for reason in REPLACEMENT_REASONS}
            counts[UNIFORM_KEPT] = sum(is_uniform(group.rewards) for group in experience.groups)
        if self.cfg.rollout.overlong == "mask":
            counts[MASKED_ROLLOUTS] = sum(r.completion.truncated for g in experience.groups for r in g.rollouts)
        return counts

    def state(self) -> dict[str, Any]:
        """Return the place in the order of the queries, if it does not follow from the step."""
        return {} if self.cfg.rollout.dynamic_sampling is None else {"position": self.position}

    def restore(self, state: Mapping[str, Any]) -> None:
        """Go on at the place that a checkpoint holds."""
        self.position = int(state.get("position", 0))


REPLACEMENT_REASONS = ("all_right", "all_wrong", "ungraded")


def get_replacement_reason(group: Group) -> str:
    """Say what a group of equal rewards is, for TAPO mastered or beyond; "ungraded" with fewer than two rewards."""
    if len(group.rewards) < 2:
        return "ungraded"
    return "all_right" if group.correct else "all_wrong"
