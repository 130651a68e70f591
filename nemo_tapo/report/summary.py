"""Summarise a run folder for people who have not read the code: for the page and the terminal.

A run folder holds, each optional: `config.json` or `config.yaml`, `metrics.jsonl`, `trajectories.jsonl` and
`evaluation.json` (see evaluation/results.py; its tables are made in evaluation/tables.py).
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.metrics import (
    BEYOND,
    CORRECT,
    DROP_PREFIX,
    ELIGIBLE,
    ENGINE_GAP,
    MASTERED,
    MEMORY_PREFIX,
    MIXED_REFLECTION_GROUPS,
    OTS_WEIGHT_MEAN,
    PAIRS,
    PARSED,
    REFLECTION_GROUPS,
    RESPONSE_LENGTH_MEAN,
    REWARD_MEAN,
    VALIDATION_ACCURACY,
    VALIDATION_BEST_STEP,
    VALIDATION_PREFIX,
)
from nemo_tapo.tracking.records import get_outcome, read_metrics, read_trajectories
from nemo_tapo.utils.errors import get_first_line
from nemo_tapo.utils.jsonl import Record

# The meaning of each outcome that records.get_outcome returns.
OUTCOME_MEANINGS = {
    "corrected": "constructed, and its answer is right",
    "still_wrong": "constructed, but its answer is wrong",
    "dropped:prompt_too_long": "the synthesis prompt and its answer did not fit the context",
    "dropped:truncated": "the policy's answer was cut off by the length limit",
    "dropped:no_analysis": "no well-formed <analysis> in the policy's answer",
    "dropped:no_quote": "the analysis names no wrong step, or several (tapo.prefix: prefilled)",
    "dropped:quote_not_found": "the step that the analysis names is not in the wrong response exactly once",
    "dropped:no_reconstruction": "no well-formed <reconstruction> in the policy's answer",
    "dropped:several_reconstructions": "more than one <reconstruction> in the policy's answer",
    "dropped:wrong_order": "the reconstruction stands before the analysis",
    "dropped:empty": "the reconstruction is empty",
    "dropped:leak": "the reconstruction gives away that a correct solution was shown, or holds the tags",
    "dropped:error_unknown": "the task does not tell where the wrong response goes wrong",
    "dropped:error_not_kept": "the wrong response was changed before the end of its first wrong step",
    "dropped:too_little_kept": "less of the wrong response was preserved than tapo.min_kept_share asks for",
    "dropped:ungraded": "a reward function gave the construction no reward (ungraded.jsonl says why)",
    "dropped:row_too_long": "question and reconstruction together are longer than model.max_length",
    "dropped:run_ended": "chosen in the last step; its construction would have been made in the next one",
    "skipped:mastered": "too few wrong rollouts: the policy can do this already (fewer than n_neg)",
    "skipped:beyond": "too few right rollouts: out of the policy's reach for now (fewer than n_pos)",
}

HIGHLIGHTS = (
    ("algorithm", "algorithm"),
    ("model", "model.path"),
    ("task", "task.name"),
    ("updates", "steps"),
    ("queries a step (P)", "rollout.queries_per_step"),
    ("rollouts a query (K)", "rollout.samples_per_query"),
    ("n_pos", "tapo.n_pos"),
    ("n_neg", "tapo.n_neg"),
    ("m_max", "tapo.m_max"),
    ("lambda", "tapo.lambda"),
    ("w_min", "tapo.w_min"),
    ("w_max", "tapo.w_max"),
    ("learning rate", "optimizer.lr"),
    ("seed", "seed"),
    ("runtime", "runtime"),
)

LATEST = (
    ("training accuracy", REWARD_MEAN, "share of rollouts"),
    ("validation accuracy", VALIDATION_ACCURACY, "mean over the sets"),
    ("loss", "loss", ""),
    ("gradient norm", "grad_norm", ""),
    ("OTS weight", OTS_WEIGHT_MEAN, "mean"),
    ("response length", RESPONSE_LENGTH_MEAN, "tokens"),
    ("KL to the reference", "kl_ref", "nats a token"),
    ("engine and actor", ENGINE_GAP, "nats a token apart"),
    *((f"memory: {part}", MEMORY_PREFIX + part, "MiB") for part in ("driver", "engine", "ranks", "graders")),
)


@dataclass(frozen=True)
class RunSummary:
    """Everything that a report shows of one run folder."""

    name: str
    config: Mapping[str, Any]
    metrics: tuple[Record, ...]
    trajectories: tuple[Record, ...]
    evaluation: Mapping[str, Any]
    notes: tuple[str, ...]  # sentences about what is missing or could not be read


def load_run(folder: Path) -> RunSummary:
    """Read a run folder; what is absent stays empty and is named in `notes`.

    Raises ValueError if the folder does not exist, or holds neither metrics nor trajectories nor an evaluation.
    """
    if not folder.is_dir():
        raise ValueError(f"{folder} is not a folder; give the `output` folder of a run.")
    metrics, trajectories = read_metrics(folder), read_trajectories(folder)
    evaluation = read_evaluation(folder)
    if not metrics.rows and not trajectories.rows and not evaluation:
        raise ValueError(
            f"{folder} holds no metrics.jsonl, trajectories.jsonl or evaluation.json: nothing was trained there yet."
        )
    notes = [*metrics.notes, *trajectories.notes]
    if not evaluation:
        notes.append("evaluation.json is not there (yet), so there is no table of pass@k.")
    if not metrics.rows:
        notes.append("metrics.jsonl has no step (yet), so the figures are empty.")
    config = _read_json(folder / "config.json") or _read_yaml(folder / "config.yaml")
    name = folder.resolve().name
    return RunSummary(name, config, metrics.rows, trajectories.rows, evaluation, tuple(notes))


def read_evaluation(folder: Path) -> Mapping[str, Any]:
    """Read a run's evaluation.json; {} if there is none. Raises ValueError if it is damaged."""
    return _read_json(folder / "evaluation.json")


def list_highlights(config: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (label, value) of the settings that distinguish runs; settings that the config lacks are left out.

    >>> list_highlights({"algorithm": "tapo", "rollout": {"samples_per_query": 8}})
    [('algorithm', 'tapo'), ('rollouts a query (K)', '8')]
    """
    values = [(label, _find_value(config, path)) for label, path in HIGHLIGHTS]
    return [(label, str(value)) for label, value in values if value is not None]


def compute_totals(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str]]:
    """Return (label, number over all steps, share of the whole) of queries, pairs, drop reasons and groups."""

    def total(key: str) -> float:
        return float(sum(row[key] for row in metrics if isinstance(row.get(key), (int, float))))

    queries = total(ELIGIBLE) + total(MASTERED) + total(BEYOND)
    pairs, groups = total(PAIRS), total(REFLECTION_GROUPS)
    reasons = sorted({key for row in metrics for key in row if key.startswith(DROP_PREFIX)})
    rows = [
        ("queries eligible (zone of proximal development)", total(ELIGIBLE), queries, "queries"),
        ("queries mastered, not constructed", total(MASTERED), queries, "queries"),
        ("queries beyond reach, not constructed", total(BEYOND), queries, "queries"),
        ("pairs of a wrong and a right response", pairs, 0, ""),
        ("pairs that gave a trajectory", total(PARSED), pairs, "pairs"),
        ("... with a right answer", total(CORRECT), pairs, "pairs"),
        *((f"pairs dropped: {key.removeprefix(DROP_PREFIX)}", total(key), pairs, "pairs") for key in reasons),
        ("reflection groups", groups, 0, ""),
        ("... with mixed rewards", total(MIXED_REFLECTION_GROUPS), groups, "groups"),
    ]
    known = queries or pairs or groups
    return [
        (label, f"{value:,.0f}", f"{value / whole:.1%} of {noun}" if whole else "")
        for label, value, whole, noun in rows
        if known and (value or not label.startswith("pairs dropped"))
    ]


def list_first_and_last(metrics: Sequence[Mapping[str, Any]]) -> list[tuple[str, str, str, str]]:
    """Return (name, first value, last value, unit) of the numbers of Figure 3.

    >>> list_first_and_last([{"loss": 0.5}, {"loss": 0.25}])
    [('loss', '0.5', '0.25', '')]
    """
    rows = []
    for name, key, unit in LATEST:
        values = [row[key] for row in metrics if isinstance(row.get(key), (int, float))]
        if values:
            first, last = (f"{v:,.0f}" if abs(v) >= 1000 else f"{v:.3g}" for v in (values[0], values[-1]))
            rows.append((name, first, last, unit))
    return rows


def tabulate_validation(metrics: Sequence[Mapping[str, Any]]) -> tuple[list[str], list[list[str]]]:
    """Return head and rows of the validations, one row a step that has one; the best one is marked.

    >>> tabulate_validation([{"step": 5, "validation/accuracy": 0.5, "validation/sums/accuracy": 0.5}])
    (['step', 'sums', 'mean'], [['5', '50.0%', '50.0%']])
    """
    measured = [row for row in metrics if VALIDATION_ACCURACY in row]
    ends = "/accuracy"
    keys = sorted({k for row in measured for k in row if k.startswith(VALIDATION_PREFIX) and k.endswith(ends)})
    sets = [key for key in keys if key != VALIDATION_ACCURACY]
    best = measured[-1].get(VALIDATION_BEST_STEP) if measured else None
    rows = [
        [f"{row['step']}{' (best)' * (row['step'] == best)}"]
        + [f"{row[key]:.1%}" if key in row else "" for key in (*sets, VALIDATION_ACCURACY)]
        for row in measured
    ]
    return ["step", *(key.removeprefix(VALIDATION_PREFIX).removesuffix(ends) for key in sets), "mean"], rows


def count_outcomes(records: Iterable[Record]) -> dict[str, int]:
    """Count the records of each outcome, in the order of `OUTCOME_MEANINGS`, unknown ones last.

    >>> count_outcomes([{"kind": "skipped", "zone": "beyond"}, {"kind": "pair", "dropped": None, "reward": 1.0}])
    {'corrected': 1, 'skipped:beyond': 1}
    """
    counts: dict[str, int] = {}
    for record in records:
        counts[get_outcome(record)] = counts.get(get_outcome(record), 0) + 1
    order = [*OUTCOME_MEANINGS, *sorted(set(counts) - set(OUTCOME_MEANINGS))]
    return {name: counts[name] for name in order if name in counts}


def _find_value(config: Mapping[str, Any], path: str) -> Any:
    """Return the value at a dotted path in nested or flat mappings; `lambda` may also be called `weight`, its field."""
    if path in config:
        return config[path]
    value: Any = config
    for name in path.split("."):
        if not isinstance(value, Mapping):
            return None
        value = value.get(name, value.get("weight") if name == "lambda" else None)
    return value


def _read_json(path: Path) -> Mapping[str, Any]:
    """Read an object from a JSON file; {} if there is no file. Raises ValueError if it is damaged."""
    if not path.exists():
        return {}
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is not valid JSON: {error}.") from None
    if not isinstance(value, dict):
        raise ValueError(f"{path} must hold a JSON object.")
    return value


def _read_yaml(path: Path) -> Mapping[str, Any]:
    if not path.exists():
        return {}
    import yaml

    try:
        value = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError) as error:
        raise ValueError(f"{path} is damaged: {get_first_line(error)}.") from None
    return value if isinstance(value, dict) else {}
