"""What a sweep's runs spent, and their counters that tell why they came out as they did; from metrics.jsonl."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from nemo_tapo.metrics import (
    CORRECT,
    GRADE_PREFIX,
    MIXED_REFLECTION_GROUPS,
    PAIRS,
    REFLECTION_GROUPS,
    ROWS,
    TIME_STEP,
    TOKENS_GENERATED,
    TOKENS_SYNTHESISED,
    TOKENS_TRAINED,
    grade_count,
)
from nemo_tapo.sweeps.report.read_runs import Outcome, Run

Metrics = Sequence[Mapping[str, Any]]
SAMPLED = (TOKENS_GENERATED, TOKENS_SYNTHESISED)


@dataclass(frozen=True)
class Effort:
    """Of a row, the mean over its seeds. None: not recorded, or nothing to take a share of."""

    steps: float | None
    sampled: float | None  # tokens of rollouts
    synthesised: float | None  # tokens of synthesis answers
    trained: float | None  # tokens with loss
    rows: float | None
    seconds: float | None  # of the steps; without starts, evaluation and what a stop threw away


@dataclass(frozen=True)
class Why:
    """Of a row, the mean over its seeds, first and last tenth of the steps."""

    correct: tuple[float | None, float | None]  # right constructions, of all pairs
    mixed: tuple[float | None, float | None]  # reflection groups of unequal rewards, of all
    accuracy: tuple[float | None, float | None]  # right rollouts, of all
    reflection: float | None  # evaluated responses that say "Wait,"
    tokens: float | None  # of an evaluated response


def effort(outcome: Outcome) -> Effort:
    runs = [run.metrics for run in outcome.runs.values()]
    return Effort(
        steps=mean(float(len(m)) for m in runs) if outcome.row.train else None,
        sampled=mean(total(m, TOKENS_GENERATED) for m in runs),
        synthesised=mean(_synthesised(m) for m in runs),
        trained=mean(total(m, TOKENS_TRAINED) for m in runs),
        rows=mean(total(m, ROWS) for m in runs),
        seconds=mean(total(m, TIME_STEP) for m in runs),
    )


def _synthesised(metrics: Metrics) -> float | None:
    """0 for a run that makes no constructions."""
    known = total(metrics, TOKENS_SYNTHESISED)
    return known if known is not None or total(metrics, PAIRS) is not None else 0.0 if metrics else None


def why(outcome: Outcome) -> Why:
    runs = list(outcome.runs.values())
    return Why(
        correct=_ends(runs, CORRECT, PAIRS),
        mixed=_ends(runs, MIXED_REFLECTION_GROUPS, REFLECTION_GROUPS),
        accuracy=_ends(runs, grade_count("right"), "rollouts"),
        reflection=mean(_share_with_reflection(run) for run in runs),
        tokens=mean(_length(run) for run in runs),
    )


def accuracy_at(outcome: Outcome, tokens: float) -> float | None:
    """Training accuracy, over the tenth of the steps before `tokens` were sampled (synthesis included)."""
    return mean(_accuracy_at(run.metrics, tokens) for run in outcome.runs.values())


def accuracy_at_step(outcome: Outcome, steps: int) -> float | None:
    """Training accuracy over the last tenth of the first `steps` steps."""
    runs = [run.metrics[:steps] for run in outcome.runs.values()]
    return mean(share(m[-tenth(m) :], grade_count("right"), "rollouts") for m in runs)


def sampled_in_all(outcome: Outcome) -> float | None:
    """Tokens that every run of the row samples: the least over its seeds."""
    return min((spent for run in outcome.runs.values() if (spent := sum(_spent(run.metrics))) > 0), default=None)


def in_common(outcomes: Sequence[Outcome]) -> tuple[int, float | None]:
    """Steps, and sampled tokens, that every run of these rows has: where they can be compared."""
    steps = min((len(run.metrics) for o in outcomes for run in o.runs.values() if run.metrics), default=0)
    return steps, min((spent for o in outcomes if (spent := sampled_in_all(o)) is not None), default=None)


def _accuracy_at(metrics: Metrics, tokens: float) -> float | None:
    if not metrics:
        return None
    reached = int(np.searchsorted(np.cumsum(_spent(metrics)), tokens * (1 + 1e-9), side="right"))
    width = tenth(metrics)
    return share(metrics[max(0, reached - width) : reached], grade_count("right"), "rollouts")


def _spent(metrics: Metrics) -> list[float]:
    return [sum(row.get(key) or 0.0 for key in SAMPLED) for row in metrics]


def tenth(metrics: Metrics) -> int:
    return max(1, round(len(metrics) / 10))


def _ends(runs: Sequence[Run], part: str, whole: str) -> tuple[float | None, float | None]:
    first = mean(share(run.metrics[: tenth(run.metrics)], part, whole) for run in runs)
    return first, mean(share(run.metrics[-tenth(run.metrics) :], part, whole) for run in runs)


def share(metrics: Metrics, part: str, whole: str) -> float | None:
    """Sum of a counter over the sum of another; "rollouts" are all graded ones."""
    among = sum(_count(row, whole) for row in metrics)
    return sum(row.get(part) or 0.0 for row in metrics) / among if among else None


def _count(row: Mapping[str, Any], key: str) -> float:
    if key != "rollouts":
        return float(row.get(key) or 0.0)
    return float(sum(value for name, value in row.items() if name.startswith(GRADE_PREFIX)))


def total(metrics: Metrics, key: str) -> float | None:
    known = [row[key] for row in metrics if row.get(key) is not None]
    return float(sum(known)) if known else None


def mean(found: Iterable[float | None]) -> float | None:
    """Of the values that are known; None if there is none."""
    known = [value for value in found if value is not None]
    return sum(known) / len(known) if known else None


def _share_with_reflection(run: Run) -> float | None:
    graded = run.evaluated.graded if run.evaluated else ()
    return mean(g.turns / g.classes.size for g in graded)


def _length(run: Run) -> float | None:
    graded = run.evaluated.graded if run.evaluated else ()
    return mean(float(g.tokens[g.tokens > 0].mean()) if (g.tokens > 0).any() else None for g in graded)
