"""Read and write the results of evaluations: `evaluation.json` and `evaluation.md` of a run folder.

Both files can be made again from the samples. evaluation.json has this form:

{"after": {"model": "runs/demo/hf",
           "settings": {"samples": 5, "runs": 16, "temperature": 0.6, ...},
           "benchmarks": {"aime24": {"pass@1": 0.31, "pass@1/interval95": [0.2, 0.4], ..., "first@1": ...}},
           "average": {...},                          if there are several benchmarks
           "synthesis": {...},                        if it was measured
           "change": {"from": "before", "benchmarks": {...}, "average": {...}}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation.accuracy import (
    GradedSamples,
    average_with_intervals,
    collect_samples,
    measure_per_problem,
    summarise,
)
from nemo_tapo.evaluation.sample_store import SETTINGS, escape_file_name, read_samples, read_settings
from nemo_tapo.utils.files import replace_text

RESULTS, MARKDOWN = "evaluation.json", "evaluation.md"


@dataclass(frozen=True)
class EvaluationResult:
    """A finished evaluation, as read from the folder of its samples."""

    folder: Path
    settings: Mapping[str, Any]  # as in its settings.json
    graded: tuple[GradedSamples, ...]  # one per benchmark, in the config's order

    @property
    def summary(self) -> dict[str, Any]:
        """The entries "benchmarks" and, if there are several, "average" of evaluation.json."""
        result: dict[str, Any] = {"benchmarks": {g.benchmark: summarise(g) for g in self.graded}}
        if len(self.graded) > 1:
            result["average"] = average_with_intervals(
                [measure_per_problem(g) for g in self.graded], self.settings["samples"]
            )
        return result


def read_evaluation(folder: Path) -> EvaluationResult:
    """Read the evaluation whose samples are in `folder`. Raises ValueError if there is none or samples are missing."""
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of an evaluation: it has no {SETTINGS}.")
    settings = read_settings(path)
    graded = tuple(
        collect_samples(
            name,
            read_samples(folder / f"{escape_file_name(name)}.jsonl"),
            settings["runs"],
            settings["samples"],
            entry["problems"],
        )
        for name, entry in settings["benchmarks"].items()
    )
    return EvaluationResult(folder, settings, graded)


def read_results(output: Path) -> dict[str, Any]:
    """Return the content of the evaluation.json in a run folder; {} if there is none.

    Raises ValueError if it is damaged.
    """
    path = output / RESULTS
    if not path.is_file():
        return {}
    try:
        return dict(json.loads(path.read_text(encoding="utf-8")))
    except (ValueError, TypeError):
        raise ValueError(
            f"{path} is damaged; remove it: the evaluations of this run are made anew from their samples."
        ) from None


def store_result(output: Path, name: str, result: Mapping[str, Any]) -> None:
    """Add or replace one evaluation in both files."""
    evaluations = {**read_results(output), name: result}
    replace_text(output / RESULTS, json.dumps(evaluations, indent=1) + "\n")
    replace_text(output / MARKDOWN, format_markdown(evaluations))


def format_markdown(evaluations: Mapping[str, Mapping[str, Any]]) -> str:
    """Format evaluations as the paper's Table 1: one block per benchmark, pass@1 .. pass@5 in percent.

    Each value is followed by its 95% interval.
    """
    columns = max((len(format_pass_values(m, "pass")) for m in _list_measures(evaluations)), default=0)
    lines = [
        "| " + " | ".join(["Method", *(f"Pass@{k}" for k in range(1, columns + 1))]) + " |",
        "| --- |" + " ---: |" * columns,
    ]
    for title in list_titles(evaluations):
        lines.append(f"| **{_cell(title)}** |" + " |" * columns)
        for name, result in evaluations.items():
            measures = get_measures(result, title)
            for estimator, label in (("first", name), ("pass", f"{name}, unbiased")):
                cells = format_pass_values(measures, estimator)
                if cells:
                    lines.append(f"| {' | '.join([_cell(label), *cells, *[''] * (columns - len(cells))])} |")
    notes = [
        "",
        "Percent, with 95% intervals from a bootstrap that resamples problems. Rows as in Table 1 of arXiv 2606.18844:",
        "any of the first k samples of a problem is right, averaged over runs; unbiased: 1 - C(n-c, k) / C(n, k).",
        "",
    ]
    notes += [f"- {_cell(name)}: {format_settings(result.get('settings', {}))}" for name, result in evaluations.items()]
    return "\n".join([*lines, *notes]) + "\n"


AVERAGE = "average"


def list_titles(evaluations: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """List the benchmarks of all evaluations, followed by "average" if an evaluation has one.

    >>> list_titles({"before": {"benchmarks": {"aime24": {}}}, "after": {"benchmarks": {"aime25": {}}, "average": {}}})
    ['aime24', 'aime25', 'average']
    """
    benchmarks = list(dict.fromkeys(name for result in evaluations.values() for name in result.get("benchmarks", {})))
    return [*benchmarks, AVERAGE] if any("average" in result for result in evaluations.values()) else benchmarks


def get_measures(result: Mapping[str, Any], title: str) -> Mapping[str, Any]:
    """Return the measures of a benchmark or of the average; {} if there are none."""
    measures = result.get("benchmarks", {}).get(title)
    return measures or (title == AVERAGE and result.get("average")) or {}


def format_pass_values(measures: Mapping[str, Any], estimator: str) -> list[str]:
    """Format the values for k = 1, 2, ... in percent, with their intervals.

    >>> format_pass_values({"pass@1": 0.31, "pass@1/interval95": [0.2, 0.442]}, "pass")
    ['31.00 (20.00 to 44.20)']
    """
    cells: list[str] = []
    while (key := f"{estimator}@{len(cells) + 1}") in measures:
        low, high = measures[f"{key}/interval95"]
        cells.append(f"{100 * measures[key]:.2f} ({100 * low:.2f} to {100 * high:.2f})")
    return cells


def format_settings(settings: Mapping[str, Any]) -> str:
    """Format the entry "settings" of an evaluation.

    >>> settings = {"runs": 16, "samples": 5, "temperature": 0.6, "top_p": 0.9, "max_tokens": 96, "seed": 0}
    >>> format_settings(settings)
    '16 runs x 5 samples, temperature 0.6, top-p 0.9, at most 96 tokens, seed 0'
    """
    if not settings:
        return "settings unknown"
    s = settings
    return (
        f"{s['runs']} run{'s' * (s['runs'] != 1)} x {s['samples']} samples, temperature {s['temperature']:g}, "
        f"top-p {s['top_p']:g}, at most {s['max_tokens']:,} tokens, seed {s['seed']}"
    )


def _list_measures(evaluations: Mapping[str, Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return [m for result in evaluations.values() for m in result.get("benchmarks", {}).values()]


def _cell(text: str) -> str:
    """Escape what would end a Markdown cell."""
    return text.replace("|", "\\|").replace("\n", " ")
