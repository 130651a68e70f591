"""Implement TAPO: GRPO whose mistakes are rewritten into micro-reflective trajectories (arXiv 2606.18844).

What it adds to GRPO is section 3: select pairs (Eq. 3), synthesise and grade (3.3.2), decoupled advantages
(Eq. 4, 5). OOD token suppression (Eq. 7) and the two loss terms (Eq. 6, 8) happen where the logits are, in
losses/policy.py.
"""

from __future__ import annotations

import time
from collections import Counter, defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.algorithms import reflection
from nemo_tapo.algorithms.continuation import Continuation
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.synthesis import Synthesis, count_constructions
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.algorithms.waiting import read_pairs, write_pairs
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.equations.advantage import AdvantageRules, is_uniform
from nemo_tapo.equations.selection import Zone, classify_zone, select_pairs
from nemo_tapo.metrics import (
    BEYOND,
    CONSTRUCTED_ROWS,
    ELIGIBLE,
    INSTRUCTION_ROWS,
    MASTERED,
    MIXED_REFLECTION_GROUPS,
    PARSED,
    REFLECTION_GROUPS,
    REMOVED_NEGATIVES,
    SINGLE_REFLECTION_GROUPS,
    TIME_ROLLOUTS,
    TIME_SYNTHESIS,
    TOKENS_SYNTHESISED,
    UNIFORM_REFLECTION_GROUPS,
    UNIFORM_REFLECTION_SHARE,
    WAITING,
)
from nemo_tapo.types import (
    INSTRUCTION_PREFIX,
    REFLECTED_SUFFIX,
    Construction,
    Experience,
    Group,
    Kind,
    Pair,
    Query,
    Row,
)
from nemo_tapo.utils.concurrency import run_both, run_concurrently


class TAPO(GRPO):
    """Trajectory-augmented policy optimization."""

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        super().__init__(cfg, tools)
        self.rules = AdvantageRules(
            eps=cfg.loss.advantage_eps,
            decoupled=cfg.tapo.decoupled,
            uniform_group=cfg.tapo.uniform_group,
            baseline=cfg.tapo.reflection_baseline,
        )
        continues = cfg.tapo.construction == "continue_from_prefix"
        self.constructor = Continuation(cfg, tools) if continues else Synthesis(cfg, tools)
        self.waiting: tuple[Pair, ...] = ()  # chosen in the step before, not yet constructed (pipeline: deferred)

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Sample and construct as GRPO.collect says; with `pipeline: deferred`, construct the pairs of the step before.

        Their synthesis runs beside this step's rollouts and by the same weights, so that nothing waits for it. The
        pairs that are chosen now wait for the next step. Those of the last step are dropped: run_ended. The last
        checkpoint holds them all the same, for a run that goes on with more steps.
        """
        if not self.cfg.deferred:
            return await super().collect(step, queries)
        begin = time.perf_counter()
        experience, constructions = await run_both(super().collect(step, queries), self.construct(self.waiting, step))
        seconds = time.perf_counter() - begin
        chosen = tuple(pair for group in experience.groups for pair in self.choose_pairs(group, step))
        self.waiting = chosen
        if step + 1 == self.cfg.steps:
            constructions += tuple(Construction(pair, "run_ended") for pair in chosen)
            chosen = ()
        unhidden = {TIME_SYNTHESIS: seconds - experience.metrics[TIME_ROLLOUTS]}
        return replace(
            experience, constructions=constructions, waiting=chosen, metrics={**experience.metrics, **unhidden}
        )

    async def construct_group(self, group: Group, step: int) -> tuple[Construction, ...]:
        """Pair, synthesise and grade for one query (Algorithm 1, lines 9 to 17), unless that is deferred."""
        return () if self.cfg.deferred else await self.construct(self.choose_pairs(group, step), step)

    def choose_pairs(self, group: Group, step: int) -> tuple[Pair, ...]:
        """Choose the pairs of one query (Eq. 3)."""
        settings = self.cfg.tapo
        return select_pairs(group, settings.n_pos, settings.n_neg, settings.m_max, self.cfg.seed, step)

    async def construct(self, pairs: Sequence[Pair], step: int) -> tuple[Construction, ...]:
        """Make and grade a construction of each pair."""
        return tuple(await run_concurrently(self.constructor.construct(pair, step) for pair in pairs))

    def state(self) -> dict[str, Any]:
        """Add to GRPO's state the pairs that wait; nothing where none can."""
        return super().state() | ({"waiting": write_pairs(self.waiting)} if self.cfg.deferred else {})

    def restore(self, state: Mapping[str, Any]) -> None:
        """Let the pairs that a checkpoint holds wait again, and do as GRPO does."""
        super().restore(state)
        self.waiting = read_pairs(state["waiting"]) if "waiting" in state else ()

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return original and constructed rows, each with the advantage of its own group (Eq. 4, 5)."""
        by_query = defaultdict(list)
        for construction in experience.constructions:
            if construction.dropped is None and (self.cfg.tapo.negatives or construction.correct):
                by_query[construction.pair.wrong.query.uid].append(construction)
        rows: list[Row] = []
        for group in experience.groups:
            # deferred constructions belong to rollouts of the step before, even where the query is drawn again
            constructed = [] if self.cfg.deferred else by_query.pop(group.query.uid, [])
            original, reflected = self.compute_group_advantages(group, constructed)
            rows += self.make_original_rows(group, original)
            rows += [self.make_constructed_row(c, a) for c, a in zip(constructed, reflected, strict=True)]
        for constructed in by_query.values():
            _, reflected = self.compute_advantages(constructed[0].pair.group_rewards, [c.reward for c in constructed])
            rows += [self.make_constructed_row(c, a) for c, a in zip(constructed, reflected, strict=True)]
        return rows + self.make_ift_rows(experience)

    def make_constructed_row(self, construction: Construction, advantage: float) -> Row:
        """Make a row of a reconstruction, as an answer to the query itself: its context is not the synthesis prompt."""
        query = construction.pair.wrong.query
        first, last = reflection.count_tokens_without_loss(construction, self.cfg.tapo.prefix_loss)
        return Row(
            uid=construction.pair.uid,
            group=query.uid + REFLECTED_SUFFIX if self.cfg.tapo.decoupled else query.uid,
            kind=Kind.CONSTRUCTED,
            prompt_ids=query.prompt_ids,
            response_ids=construction.response_ids,
            reward=construction.reward,
            advantage=advantage,
            masked_tokens=first,
            masked_end=last,
        )

    def make_ift_rows(self, experience: Experience) -> list[Row]:
        """Make rows of the policy's own right answers to synthesis prompts, with advantage 1: at ratio 1 likelihood.

        There are none unless `tapo.ift_weight` asks for them. The cold start calls this format IFT (section 3.2).
        """
        if not self.cfg.tapo.ift_weight:
            return []
        rows = [
            Row(uid, uid, Kind.EXAMPLE, c.request_ids, c.answer_ids, c.reward, 1.0)
            for c in experience.constructions
            if c.correct
            for uid in [INSTRUCTION_PREFIX + c.pair.uid]
        ]
        return [row for row in rows if row.length <= self.cfg.model.max_length]

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Add to GRPO's counters what became of every query, pair and group."""
        settings = self.cfg.tapo
        zones = Counter(classify_zone(group, settings.n_pos, settings.n_neg) for group in experience.groups)
        by_group = defaultdict(list)
        for row in rows:
            if row.kind is Kind.CONSTRUCTED:
                by_group[row.group].append(row)
        groups = list(by_group.values())
        mixed = sum(not is_uniform([row.reward for row in group]) for group in groups)
        uniform = sum(len(group) > 1 and not any(row.advantage for row in group) for group in groups)
        constructed = sum(map(len, groups))
        counts = count_constructions(experience.constructions)
        return {
            **super().compute_metrics(experience, rows),
            ELIGIBLE: zones[Zone.ELIGIBLE],
            MASTERED: zones[Zone.MASTERED],
            BEYOND: zones[Zone.BEYOND],
            **counts,
            **({WAITING: len(experience.waiting)} if self.cfg.deferred else {}),
            TOKENS_SYNTHESISED: sum(c.decoded_tokens for c in experience.constructions),
            CONSTRUCTED_ROWS: constructed,
            REMOVED_NEGATIVES: counts[PARSED] - constructed,  # by `negatives: false`, or likelihood
            REFLECTION_GROUPS: len(groups),
            MIXED_REFLECTION_GROUPS: mixed,
            SINGLE_REFLECTION_GROUPS: sum(len(group) == 1 for group in groups),
            UNIFORM_REFLECTION_GROUPS: uniform,  # two or more, all with advantage 0: under Eq. 5 those of equal rewards
            INSTRUCTION_ROWS: sum(row.kind is Kind.EXAMPLE for row in rows),
            UNIFORM_REFLECTION_SHARE: uniform / len(groups) if groups else 0.0,
        }
