"""Compare what trajectories.jsonl alone allows, for runs without groups.jsonl."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.equations.advantage import AdvantageRules, reflection_advantages
from nemo_tapo.metrics import BEYOND, CORRECT, MASTERED, PAIRS, PARSED
from nemo_tapo.report.step_replay import EXACT, Check, Replay, is_same, show
from nemo_tapo.types import is_correct
from nemo_tapo.utils.jsonl import Record

WITHOUT_GROUPS = "the run has no groups.jsonl (record_groups: true keeps it)"


def replay_trajectories(cfg: RunConfig, step: int, metrics: Mapping[str, Any], records: Sequence[Record]) -> Replay:
    """Compare advantages of whole reflection groups, and counters if no record was over the limit."""
    left_out = sum(record.get("count", 0) for record in records if record.get("kind") == "left_out")
    pairs = [record for record in records if record.get("kind") == "pair"]
    limit = f"{left_out} records of the step were over trajectories_per_step" if left_out else ""
    missing: list[str] = []
    try:
        checks = (
            Check("pairs (Eq. 3)", not_kept=WITHOUT_GROUPS),
            _compare_advantages(cfg, pairs, limit),
            _compare_counters(pairs, records, metrics, limit),
            Check("loss (Eq. 2, 6, 8)", not_kept=WITHOUT_GROUPS),
        )
    except (AttributeError, KeyError, TypeError) as error:
        missing.append(f"a record of step {step} in trajectories.jsonl is damaged ({error!r})")
        checks = ()  # type: ignore[assignment]
    return Replay(step, checks, tuple(missing))


def _compare_advantages(cfg: RunConfig, pairs: Sequence[Record], limit: str) -> Check:
    subject = "advantages (Eq. 5)"
    if limit:
        return Check(subject, not_kept=limit)
    if cfg.algorithm != "tapo" or not cfg.tapo.decoupled or cfg.tapo.reflection_baseline != "constructed":
        return Check(subject, not_kept=f"they depend on the rollouts' rewards, and {WITHOUT_GROUPS}")
    rules = AdvantageRules(cfg.loss.advantage_eps, uniform_group=cfg.tapo.uniform_group)
    by_group: dict[str, list[Record]] = defaultdict(list)
    for record in pairs:
        trained = cfg.tapo.negatives or is_correct(record["reward"], record.get("correct_at"))
        if record["dropped"] is None and trained:
            by_group[record["group"]].append(record)
    differences, compared = [], 0
    for group in by_group.values():
        computed = reflection_advantages([record["reward"] for record in group], [], rules)
        for record, value in zip(group, computed, strict=True):
            compared += 1
            if not is_same(record["advantage"], value, EXACT):
                differences.append(
                    f"advantage of {record['uid']}: recorded {show(record['advantage'])}, computed {show(value)}"
                )
    return Check(subject, compared, tuple(differences), f"those of the rollouts: {WITHOUT_GROUPS}")


def _compare_counters(
    pairs: Sequence[Record], records: Sequence[Record], metrics: Mapping[str, Any], limit: str
) -> Check:
    if limit or not metrics:
        return Check("counters", not_kept=limit or "metrics.jsonl does not have the step")
    computed = dict(_count(pairs, records))
    differences = [
        f"{key}: recorded {show(metrics.get(key))}, computed {value}"
        for key, value in computed.items()
        if not is_same(metrics.get(key), value, EXACT)
    ]
    return Check("counters", len(computed), tuple(differences), f"those of the rollouts: {WITHOUT_GROUPS}")


def _count(pairs: Sequence[Record], records: Sequence[Record]) -> Iterator[tuple[str, int]]:
    parsed = [record for record in pairs if record["dropped"] is None]
    zones = Counter(record.get("zone") for record in records)
    yield PAIRS, len(pairs)
    yield PARSED, len(parsed)
    yield CORRECT, sum(is_correct(record["reward"], record.get("correct_at")) for record in parsed)
    yield MASTERED, zones["mastered"]
    yield BEYOND, zones["beyond"]
