"""Compute what a sweep's runs spent, and the counters that explain their results, from metrics.jsonl."""

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
from nemo_tapo.sweeps.report.read_runs import RowOutcome, SweepRun

Metrics = Sequence[Mapping[str, Any]]
SAMPLED = (TOKENS_GENERATED, TOKENS_SYNTHESISED)


@dataclass(frozen=True)
class TrainingEffort:
    """The training effort of a row's runs, as means over its seeds. None: not recorded.

    The field names are measures in the CSV file.
    """

    steps: float | None
    sampled: float | None  # tokens of rollouts
    synthesised: float | None  # tokens of synthesis answers
    trained: float | None  # tokens with loss
    rows: float | None
    seconds: float | None  # in the steps; without startup, evaluation, and steps that a stop discarded


@dataclass(frozen=True)
class TrainingCounters:
    """Counters of a row's runs, as means over its seeds. None: nothing to take a share of.

    Pairs are (first tenth of the steps, last tenth).
    """

    correct: tuple[float | None, float | None]  # right constructions / all pairs
    mixed: tuple[float | None, float | None]  # reflection groups of unequal rewards / all of them
    accuracy: tuple[float | None, float | None]  # right rollouts / all of them
    reflection: float | None  # share of evaluated responses that say "Wait,"
    tokens: float | None  # mean length of an evaluated response


def compute_effort(outcome: RowOutcome) -> TrainingEffort:
    """Return what the row's runs spent."""
    runs = [run.metrics for run in outcome.runs.values()]
    return TrainingEffort(
        steps=mean_of_known(float(len(m)) for m in runs) if outcome.row.train else None,
        sampled=mean_of_known(sum_metric(m, TOKENS_GENERATED) for m in runs),
        synthesised=mean_of_known(_count_synthesised_tokens(m) for m in runs),
        trained=mean_of_known(sum_metric(m, TOKENS_TRAINED) for m in runs),
        rows=mean_of_known(sum_metric(m, ROWS) for m in runs),
        seconds=mean_of_known(sum_metric(m, TIME_STEP) for m in runs),
    )


def _count_synthesised_tokens(metrics: Metrics) -> float | None:
    """Return the synthesised tokens; 0 for a run that makes no constructions."""
    known = sum_metric(metrics, TOKENS_SYNTHESISED)
    return known if known is not None or sum_metric(metrics, PAIRS) is not None else 0.0 if metrics else None


def compute_counters(outcome: RowOutcome) -> TrainingCounters:
    """Return the counters of the row's runs."""
    runs = list(outcome.runs.values())
    return TrainingCounters(
        correct=_compute_ends(runs, CORRECT, PAIRS),
        mixed=_compute_ends(runs, MIXED_REFLECTION_GROUPS, REFLECTION_GROUPS),
        accuracy=_compute_ends(runs, grade_count("right"), "rollouts"),
        reflection=mean_of_known(_compute_reflection_share(run) for run in runs),
        tokens=mean_of_known(_compute_mean_tokens(run) for run in runs),
    )


def compute_accuracy_at_tokens(outcome: RowOutcome, tokens: float) -> float | None:
    """Return the training accuracy over the tenth of the steps before `tokens` were sampled (synthesis included)."""
    return mean_of_known(_compute_accuracy(run.metrics, tokens) for run in outcome.runs.values())


def compute_accuracy_at_step(outcome: RowOutcome, steps: int) -> float | None:
    """Return the training accuracy over the last tenth of the first `steps` steps."""
    runs = [run.metrics[:steps] for run in outcome.runs.values()]
    return mean_of_known(compute_share(m[-count_tenth(m) :], grade_count("right"), "rollouts") for m in runs)


def count_common_tokens(outcome: RowOutcome) -> float | None:
    """Return the tokens that every run of the row sampled: the minimum over its seeds."""
    return min(
        (spent for run in outcome.runs.values() if (spent := sum(_list_sampled_tokens(run.metrics))) > 0), default=None
    )


def find_common_budget(outcomes: Sequence[RowOutcome]) -> tuple[int, float | None]:
    """Return the steps and the sampled tokens that every run of these rows reached, for a fair comparison."""
    steps = min((len(run.metrics) for o in outcomes for run in o.runs.values() if run.metrics), default=0)
    return steps, min((spent for o in outcomes if (spent := count_common_tokens(o)) is not None), default=None)


def _compute_accuracy(metrics: Metrics, tokens: float) -> float | None:
    if not metrics:
        return None
    reached = int(np.searchsorted(np.cumsum(_list_sampled_tokens(metrics)), tokens * (1 + 1e-9), side="right"))
    width = count_tenth(metrics)
    return compute_share(metrics[max(0, reached - width) : reached], grade_count("right"), "rollouts")


def _list_sampled_tokens(metrics: Metrics) -> list[float]:
    return [sum(row.get(key) or 0.0 for key in SAMPLED) for row in metrics]


def count_tenth(metrics: Metrics) -> int:
    """Return a tenth of the number of steps, at least 1.

    >>> count_tenth([{}] * 80), count_tenth([{}])
    (8, 1)
    """
    return max(1, round(len(metrics) / 10))


def _compute_ends(runs: Sequence[SweepRun], part: str, whole: str) -> tuple[float | None, float | None]:
    first = mean_of_known(compute_share(run.metrics[: count_tenth(run.metrics)], part, whole) for run in runs)
    return first, mean_of_known(compute_share(run.metrics[-count_tenth(run.metrics) :], part, whole) for run in runs)


def compute_share(metrics: Metrics, part: str, whole: str) -> float | None:
    """Return the sum of counter `part` over that of `whole`; None if the latter is 0. "rollouts" counts all graded.

    >>> compute_share([{"tapo/correct": 1, "tapo/pairs": 4}], "tapo/correct", "tapo/pairs")
    0.25
    """
    denominator = sum(_get_count(row, whole) for row in metrics)
    return sum(row.get(part) or 0.0 for row in metrics) / denominator if denominator else None


def _get_count(row: Mapping[str, Any], key: str) -> float:
    if key != "rollouts":
        return float(row.get(key) or 0.0)
    return float(sum(value for name, value in row.items() if name.startswith(GRADE_PREFIX)))


def sum_metric(metrics: Metrics, key: str) -> float | None:
    """Return the sum of a metric over the steps that have it; None if no step has it.

    >>> sum_metric([{"rows": 4}, {}, {"rows": 2}], "rows")
    6.0
    """
    known = [row[key] for row in metrics if row.get(key) is not None]
    return float(sum(known)) if known else None


def mean_of_known(values: Iterable[float | None]) -> float | None:
    """Return the mean of the values that are known; None if there are none.

    >>> mean_of_known([1.0, None, 2.0])
    1.5
    """
    known = [value for value in values if value is not None]
    return sum(known) / len(known) if known else None


def _compute_reflection_share(run: SweepRun) -> float | None:
    graded = run.evaluation.graded if run.evaluation else ()
    return mean_of_known(g.with_reflection / g.classes.size for g in graded)


def _compute_mean_tokens(run: SweepRun) -> float | None:
    graded = run.evaluation.graded if run.evaluation else ()
    return mean_of_known(float(g.tokens[g.tokens > 0].mean()) if (g.tokens > 0).any() else None for g in graded)
