"""Compute a step of a finished or running run again from what it recorded, and compare.

    groups.jsonl ---> experience ---> algorithm.make_rows --------> advantages       = those of groups.jsonl?
                           |          algorithm.compute_metrics --> counters         = those of metrics.jsonl?
                           |          select_pairs (Eq. 3) -------> pairs            = those of groups.jsonl?
                           +--------> coefficients, weight sums --> loss, its terms  = those of metrics.jsonl?

With one update a batch the ratio is 1 at every token, so the loss (Eq. 2, 6, 8) needs no log-probability: a row adds
-advantage x coefficient x the sum of its token weights. What a run does not keep is named in place of a comparison.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import compute_loss_coefficients
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Algorithm
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import (
    LOSS,
    LOSS_IFT,
    LOSS_ORIGINAL,
    LOSS_REFLECTION,
    OTS_WEIGHT_MEAN,
    PAIRS,
)
from nemo_tapo.tracking.group_records import GROUP, read_experience
from nemo_tapo.types import Experience, Group, Kind, Pair, Row
from nemo_tapo.utils.jsonl import Record

EXACT = 1e-9  # relative: the same formulas of the same numbers
LOSS_TOLERANCE = 1e-5  # relative to the sum of what the rows add, sizes alone: workers add up in fp32
WEIGHT_TOLERANCE = 1e-5  # relative, of fp32 means of token weights


@dataclass(frozen=True)
class Check:
    """How a kind of numbers compares.

    >>> Check("counters", compared=3).verdict
    'agree'
    """

    subject: str
    compared: int = 0  # numbers
    differences: tuple[str, ...] = ()  # one sentence each
    not_kept: str = ""  # why these numbers, or some of them, could not be compared

    @property
    def verdict(self) -> str:
        """Agree, differ, or "not compared"."""
        return "differ" if self.differences else "agree" if self.compared else "not compared"


@dataclass(frozen=True)
class Replay:
    """What the comparison of one step gave."""

    step: int
    checks: tuple[Check, ...]
    missing: tuple[str, ...] = ()  # records that should be there and are not, or are damaged

    @property
    def differs(self) -> bool:
        """True if a number differs from what was recorded."""
        return any(check.differences for check in self.checks)

    @property
    def compared(self) -> int:
        """How many numbers were compared."""
        return sum(check.compared for check in self.checks)


@dataclass(frozen=True)
class RecordedStep:
    """What a run has on disk of a step and, for deferred constructions, of the groups of the one before."""

    step: int  # the first is 1
    metrics: Mapping[str, Any]
    lines: Sequence[Record]  # of groups.jsonl
    lines_before: Sequence[Record] = ()


@dataclass
class _Step:
    """A step that is being compared."""

    cfg: RunConfig
    recorded: RecordedStep
    algorithm: Algorithm
    experience: Experience
    rows: list[Row]
    missing: list[str] = field(default_factory=list)

    @property
    def whole(self) -> bool:
        """True if every record of the step is there: only then can totals be compared."""
        return not self.missing


class _NoTask:
    """Stands in for what only sampling needs."""

    synthesis_prompt = full_prompt = quoting_prompt = error_quote = ""


def replay_step(cfg: RunConfig, recorded: RecordedStep) -> Replay:
    """Compute a step again and compare. Raises ValueError if the algorithm fails on what was recorded."""
    absent: Any = None
    task: Any = _NoTask()
    algorithm = make_algorithm(cfg, Tools(absent, absent, task, cfg.tapo.correct_at))
    missing: list[str] = []
    experience = read_experience(recorded.lines, missing.append)
    step = _Step(cfg, recorded, algorithm, experience, [], missing)
    missing += _find_missing_groups(step)
    selection = _compare_selection(step)
    if cfg.deferred and recorded.step < cfg.steps:
        experience = replace(experience, waiting=tuple(_choose_pairs(algorithm, experience.groups, recorded.step)))
        step.experience = experience
    step.rows = list(algorithm.make_rows(experience))
    checks = (selection, _compare_advantages(step), _compare_counters(step), *_compare_loss(step))
    return Replay(recorded.step, checks, tuple(missing))


def _find_missing_groups(step: _Step) -> Iterator[str]:
    wanted, found = step.cfg.rollout.queries_per_step, len(step.experience.groups)
    if found != wanted:
        yield f"groups.jsonl has {found} of the {wanted} queries of step {step.recorded.step}"


# ---- selection (Eq. 3) -----------------------------------------------------------------------------------------------


def _choose_pairs(algorithm: Algorithm, groups: Sequence[Group], step: int) -> Iterator[Pair]:
    """Yield the pairs that a step (the first is 1) chose from its groups."""
    assert isinstance(algorithm, TAPO)
    for group in groups:
        yield from algorithm.choose_pairs(group, step - 1)


def _compare_selection(step: _Step) -> Check:
    """Draw the pairs again; the draw depends on (seed, step, uid) and the rewards alone."""
    subject = "pairs (Eq. 3)"
    if not isinstance(step.algorithm, TAPO):
        return Check(subject, not_kept=f"algorithm {step.cfg.algorithm} chooses none")
    recorded, number = step.recorded, step.recorded.step
    groups, chosen_at = step.experience.groups, number
    if step.cfg.deferred:
        groups, chosen_at = read_experience(recorded.lines_before, step.missing.append).groups, number - 1
        if number > 1 and len(groups) != step.cfg.rollout.queries_per_step:
            return Check(
                subject, not_kept=f"deferred pairs need the groups of step {number - 1}, which are not all there"
            )
    expected = {pair.uid: pair for pair in _choose_pairs(step.algorithm, groups, chosen_at)}
    found = {each.pair.uid: each for each in step.experience.constructions}
    if step.cfg.deferred and number == step.cfg.steps:
        found = {uid: each for uid, each in found.items() if each.dropped != "run_ended"}
    differences = []
    for uid, construction in found.items():
        now, then = _name_pair(expected.get(uid)), _name_pair(construction.pair)
        if now != then:
            differences.append(f"pair {uid}: recorded {then}, computed {now}")
    absent = [uid for uid in expected if uid not in found]
    if absent and len(step.experience.constructions) == recorded.metrics.get(PAIRS):
        differences += [f"pair {uid}: computed {_name_pair(expected[uid])}, but none was recorded" for uid in absent]
    else:
        step.missing += [f"groups.jsonl has no readable line of pair {uid}" for uid in absent]
    return Check(subject, len(found), tuple(differences))


def _name_pair(pair: Pair | None) -> str:
    return "none" if pair is None else f"wrong {pair.wrong.index}, right {pair.right.index}"


# ---- advantages (Eq. 1, 4, 5) ----------------------------------------------------------------------------------------


def _compare_advantages(step: _Step) -> Check:
    """Compare every row's advantage; and a rollout that is in no row must be in none again."""
    computed = {row.uid: row.advantage for row in step.rows}
    broken = {uid.removeprefix("groups.jsonl has no readable line of pair ").rpartition("/")[0] for uid in step.missing}
    differences, compared = [], 0
    readable = {r.uid for group in step.experience.groups for r in group.rollouts}
    readable |= {each.pair.uid for each in step.experience.constructions}
    for uid, recorded in _list_advantages(step.recorded.lines):
        incomplete = uid.rpartition("/")[0] in broken or (not step.whole and not step.cfg.tapo.decoupled)
        if uid not in readable or incomplete:
            continue
        compared += 1
        if not is_same(recorded, computed.get(uid), EXACT):
            differences.append(f"advantage of {uid}: recorded {show(recorded)}, computed {show(computed.get(uid))}")
    return Check("advantages (Eq. 1, 4, 5)", compared, tuple(differences))


def _list_advantages(lines: Sequence[Record]) -> Iterator[tuple[str, Any]]:
    """Yield (uid of a rollout or a pair, the recorded advantage; None without a training row)."""
    for line in lines:
        uid, values = line.get("uid"), line.get("advantages")
        if line.get("kind") != GROUP:
            yield str(uid), line.get("advantage")
        elif isinstance(values, list):
            yield from ((f"{uid}/{index}", value) for index, value in enumerate(values))


# ---- counters --------------------------------------------------------------------------------------------------------


def _compare_counters(step: _Step) -> Check:
    """Count again what metrics.jsonl has of queries, pairs, rows and tokens."""
    recorded = step.recorded.metrics
    if not step.whole:
        return Check("counters", not_kept="totals need every line of the step")
    if step.cfg.rollout.dynamic_sampling is not None:
        return Check("counters", not_kept="they count queries that dynamic sampling replaced, which no run keeps")
    if not recorded:
        return Check("counters", not_kept=f"metrics.jsonl has no step {step.recorded.step}")
    computed = step.algorithm.compute_metrics(step.experience, step.rows)
    differences = [
        f"{key}: recorded {show(recorded.get(key))}, computed {show(value)}"
        for key, value in computed.items()
        if not is_same(recorded.get(key), value, EXACT)
    ]
    return Check("counters", len(computed), tuple(differences))


# ---- token weights and loss (Eq. 2, 6, 7, 8) -------------------------------------------------------------------------


def _compare_loss(step: _Step) -> tuple[Check, Check]:
    """Compare the mean token weight, and the loss with its terms."""
    names = "token weights (Eq. 7)", "loss (Eq. 2, 6, 8)"
    reason = _explain_missing_loss(step)
    if reason:
        return Check(names[0], not_kept=reason), Check(names[1], not_kept=reason)
    sums = {line["uid"]: line["weight_sum"] for line in step.recorded.lines if line.get("kind") != GROUP}
    constructed = [row for row in step.rows if row.kind is Kind.CONSTRUCTED]
    return _compare_weights(step, constructed, sums, names[0]), _compare_terms(step, sums, names[1])


def _explain_missing_loss(step: _Step) -> str:
    """Say why the loss cannot be computed from what is on disk; '' if it can."""
    cfg, metrics = step.cfg, step.recorded.metrics
    if not step.whole:
        return "sums need every line of the step"
    if LOSS not in metrics:
        return f"metrics.jsonl has no loss of step {step.recorded.step}"
    if not isinstance(step.algorithm.loss, PolicyLoss):
        return f"the loss of {cfg.algorithm} needs log-probabilities, which no run keeps"
    if cfg.loss.updates_per_batch > 1:
        return "with several updates a batch the ratios decide it, and no run keeps log-probabilities"
    if cfg.rollout.lag:
        return "with rollout.lag importance weights decide it, and no run keeps the actor's log-probabilities"
    if cfg.runtime == "nemo_rl":
        return "NeMo-RL's workers do not return the weights of single tokens"
    if cfg.loss.surrogate == "cispo":
        return "CISPO's loss is a multiple of log p, which no run keeps"
    if cfg.loss.kl_coef > 0:
        return "the penalty on the KL needs log-probabilities, which no run keeps"
    trained = {row.uid for row in step.rows if row.kind is Kind.CONSTRUCTED}
    unknown = [line for line in step.recorded.lines if line["uid"] in trained and line.get("weight_sum") is None]
    return "groups.jsonl has no token weights: the actor did not return them" if unknown else ""


def _compare_weights(step: _Step, rows: Sequence[Row], sums: Mapping[str, float], subject: str) -> Check:
    """Compare the mean with metrics.jsonl, and each row's sum with the bounds; log p and H themselves are not kept."""
    t = step.cfg.tapo
    low, high = (t.w_min, t.w_max) if t.suppression else (1.0, 1.0)
    differences = []
    for row in rows:
        tokens = row.loss_tokens
        slack = WEIGHT_TOLERANCE * tokens
        if not low * tokens - slack <= sums[row.uid] <= high * tokens + slack:
            differences.append(f"{row.uid}: weights of {tokens} tokens add up to {sums[row.uid]:g}, outside the bounds")
    tokens = sum(row.loss_tokens for row in rows)
    if tokens:
        mean, recorded = sum(sums[row.uid] for row in rows) / tokens, step.recorded.metrics.get(OTS_WEIGHT_MEAN)
        if not is_same(recorded, mean, WEIGHT_TOLERANCE):
            differences.append(f"{OTS_WEIGHT_MEAN}: recorded {show(recorded)}, computed {mean:.6g}")
    kept = "the log-probabilities and entropies that Eq. 7 makes them of"
    return Check(subject, len(rows) + bool(tokens), tuple(differences), not_kept=kept if rows else "")


def _compare_terms(step: _Step, sums: Mapping[str, float], subject: str) -> Check:
    cfg = step.cfg
    coefficients = compute_loss_coefficients(
        step.rows, step.algorithm.term_weights, cfg.loss.token_mean, cfg.loss.weighting
    )
    terms = {Kind.ORIGINAL: LOSS_ORIGINAL, Kind.CONSTRUCTED: LOSS_REFLECTION, Kind.EXAMPLE: LOSS_IFT}
    computed: dict[str, float] = dict.fromkeys((LOSS, LOSS_ORIGINAL, LOSS_REFLECTION), 0.0)
    size = 0.0
    for row, coefficient in zip(step.rows, coefficients, strict=True):
        weight = sums[row.uid] if row.kind is Kind.CONSTRUCTED else row.loss_tokens
        added = -row.advantage * coefficient * weight
        size += abs(added)
        for key in (LOSS, terms[row.kind]):
            computed[key] = computed.get(key, 0.0) + added
    differences = []
    for key, value in computed.items():
        recorded = step.recorded.metrics.get(key)
        if not isinstance(recorded, (int, float)) or not abs(recorded - value) <= LOSS_TOLERANCE * max(size, 1e-3):
            differences.append(f"{key}: recorded {show(recorded)}, computed {show(value)}")
    return Check(subject, len(computed), tuple(differences))


def is_same(recorded: Any, computed: float | None, tolerance: float) -> bool:
    """Return whether a recorded value is the computed number, to a relative tolerance; None is only itself."""
    if recorded is None or computed is None:
        return recorded is None and computed is None
    if not isinstance(recorded, (int, float)):
        return False
    return math.isclose(recorded, computed, rel_tol=tolerance, abs_tol=1e-12)


def show(value: Any) -> str:
    """Return a recorded or computed value as text."""
    return "nothing" if value is None else f"{value:.9g}" if isinstance(value, (int, float)) else repr(value)
