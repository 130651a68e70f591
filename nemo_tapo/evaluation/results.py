"""What evaluations leave: `evaluation.json` and `evaluation.md` of a run folder, both made anew from the samples.

{"after": {"model": "runs/demo/hf",
           "settings": {"samples": 5, "runs": 16, "temperature": 0.6, ...},
           "benchmarks": {"aime24": {"pass@1": 0.31, "pass@1/interval95": [0.2, 0.4], ..., "first@1": ...}},
           "average": {...},                          of several benchmarks
           "synthesis": {...},                        where it was measured
           "change": {"from": "before", "benchmarks": {...}, "average": {...}}}}
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation.accuracy import Graded, collect, summarise, values, with_intervals
from nemo_tapo.evaluation.sample_store import SETTINGS, file_name, read
from nemo_tapo.utils.files import replace_text

RESULTS, MARKDOWN = "evaluation.json", "evaluation.md"


@dataclass(frozen=True)
class Evaluated:
    """A finished evaluation, read from its folder."""

    folder: Path
    settings: Mapping[str, Any]  # as in its settings.json
    graded: tuple[Graded, ...]  # by benchmark, in the config's order

    @property
    def summary(self) -> dict[str, Any]:
        """The entries "benchmarks" and, of several, "average"."""
        result: dict[str, Any] = {"benchmarks": {g.benchmark: summarise(g) for g in self.graded}}
        if len(self.graded) > 1:
            result["average"] = with_intervals([values(g) for g in self.graded], self.settings["samples"])
        return result


def read_evaluated(folder: Path) -> Evaluated:
    """The evaluation in `folder`, that of the samples. Raises ValueError if there is none or it is not at its end."""
    path = folder / SETTINGS
    if not path.is_file():
        raise ValueError(f"{folder} is no folder of an evaluation: it has no {SETTINGS}.")
    settings = json.loads(path.read_text())
    graded = tuple(
        collect(name, read(folder / f"{file_name(name)}.jsonl"), settings["runs"], settings["samples"], of["problems"])
        for name, of in settings["benchmarks"].items()
    )
    return Evaluated(folder, settings, graded)


def stored(output: Path) -> dict[str, Any]:
    """What a run folder's evaluation.json holds."""
    path = output / RESULTS
    return dict(json.loads(path.read_text())) if path.is_file() else {}


def store(output: Path, name: str, result: Mapping[str, Any]) -> None:
    """Adds or replaces one evaluation in both files."""
    everything = {**stored(output), name: result}
    replace_text(output / RESULTS, json.dumps(everything, indent=1) + "\n")
    replace_text(output / MARKDOWN, markdown(everything))


def markdown(everything: Mapping[str, Mapping[str, Any]]) -> str:
    """Rows of the paper's Table 1: a block a benchmark, pass@1 .. pass@5 in percent, 95% intervals behind them."""
    columns = max((len(pass_values(m, "pass")) for m in _measures(everything)), default=0)
    lines = [
        "| " + " | ".join(["Method", *(f"Pass@{k}" for k in range(1, columns + 1))]) + " |",
        "| --- |" + " ---: |" * columns,
    ]
    for title in titles(everything):
        lines.append(f"| **{_cell(title)}** |" + " |" * columns)
        for name, result in everything.items():
            measures = of_title(result, title)
            for estimator, label in (("first", name), ("pass", f"{name}, unbiased")):
                cells = pass_values(measures, estimator)
                if cells:
                    lines.append(f"| {' | '.join([_cell(label), *cells, *[''] * (columns - len(cells))])} |")
    notes = [
        "",
        "Percent, with 95% intervals from a bootstrap that resamples problems. Rows as in Table 1 of arXiv 2606.18844:",
        "any of the first k samples of a problem is right, averaged over runs; unbiased: 1 - C(n-c, k) / C(n, k).",
        "",
    ]
    notes += [f"- {_cell(name)}: {settings_text(result.get('settings', {}))}" for name, result in everything.items()]
    return "\n".join([*lines, *notes]) + "\n"


AVERAGE = "average"


def titles(everything: Mapping[str, Mapping[str, Any]]) -> list[str]:
    """The benchmarks of all evaluations, then their average if one has it."""
    found = list(dict.fromkeys(name for result in everything.values() for name in result.get("benchmarks", {})))
    return [*found, AVERAGE] if any("average" in result for result in everything.values()) else found


def of_title(result: Mapping[str, Any], title: str) -> Mapping[str, Any]:
    """The measures of a benchmark or of the average; {} where there are none."""
    found = result.get("benchmarks", {}).get(title)
    return found or (title == AVERAGE and result.get("average")) or {}


def pass_values(measures: Mapping[str, Any], estimator: str) -> list[str]:
    """ "31.67 (20.10 to 44.20)" for k = 1, 2, ..."""
    cells: list[str] = []
    while (key := f"{estimator}@{len(cells) + 1}") in measures:
        low, high = measures[f"{key}/interval95"]
        cells.append(f"{100 * measures[key]:.2f} ({100 * low:.2f} to {100 * high:.2f})")
    return cells


def settings_text(settings: Mapping[str, Any]) -> str:
    """ "16 runs x 5 samples, temperature 0.6, top-p 0.9, at most 96 tokens"."""
    if not settings:
        return "settings unknown"
    s = settings
    return (
        f"{s['runs']} run{'s' * (s['runs'] != 1)} x {s['samples']} samples, temperature {s['temperature']:g}, "
        f"top-p {s['top_p']:g}, at most {s['max_tokens']:,} tokens, seed {s['seed']}"
    )


def _measures(everything: Mapping[str, Mapping[str, Any]]) -> Sequence[Mapping[str, Any]]:
    return [m for result in everything.values() for m in result.get("benchmarks", {}).values()]


def _cell(text: str) -> str:
    """Text that does not end a Markdown cell."""
    return text.replace("|", "\\|").replace("\n", " ")
