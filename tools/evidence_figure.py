"""Draw the first figure of docs/evidence.md: TAPO minus GRPO under each condition, from the reports' own numbers.

    python tools/evidence_figure.py        from docs/evidence/*.csv to docs/evidence/summary.png, and its rows as text

Each point is the paired difference of pass@1, in points, its line the 95% interval over seeds (Student's t), or, with a
single seed, over problems.
"""

from __future__ import annotations

import csv
import sys
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.report.plots import COLOURS, open_figure

if TYPE_CHECKING:
    from matplotlib.axes import Axes

FOLDER = Path(__file__).parents[1] / "docs" / "evidence"
CONDITIONS = (  # report, row, what is said beside it; the order of the figure
    ("table1-defaults", "tapo", "arithmetic, the defaults"),
    ("two-rounds-four", "tapo", "arithmetic, a cold start that taught checking, twice"),
    ("checking", "tapo", "arithmetic, a cold start that taught checking"),
    ("four", "tapo", "arithmetic, chains of four (each term its own mean)"),
    ("table1", "tapo", "arithmetic, each term a mean over its own rows, error not kept"),
    ("weighting", "term-weights", "arithmetic, each term a mean over its own rows"),
    ("countdown", "tapo", "Countdown, a cold start that taught turning"),
    ("countdown-rare", "tapo", "Countdown, a cold start that hardly showed it"),
)
OURS, BASELINE = COLOURS[0], "#555555"


@dataclass(frozen=True)
class Difference:
    """TAPO minus GRPO, in points of pass@1, with an interval of 95%."""

    label: str
    mean: float
    low: float
    high: float
    over: str  # "3 seeds", or "problems (1 seed)"


def read_difference(report: str, row: str, label: str) -> Difference:
    """Return a row's difference. Raises ValueError if it is not one to GRPO."""
    with (FOLDER / f"{report}.csv").open(encoding="utf-8") as file:
        [line] = [line for line in csv.DictReader(file) if line["row"] == row and line["measure"] == "pass@1"]
    if line["from"] != "grpo":
        raise ValueError(f"{report}.csv: the difference of {row} is to {line['from']!r}, not to GRPO.")
    seeds = len(line["difference_seeds"].split())
    over = "seeds" if seeds > 1 else "problems"
    values = (float(line[name]) for name in ("difference", f"difference_{over}_low", f"difference_{over}_high"))
    mean, low, high = (100 * value for value in values)
    return Difference(label, mean, low, high, f"{seeds} seeds" if seeds > 1 else "problems (1 seed)")


def draw(rows: list[Difference], target: Path) -> None:
    """Draw the rows from top to bottom."""
    with open_figure(target, size=(9, 0.55 * len(rows) + 1.2)) as figure:
        _draw_rows(figure.subplots(), rows)


def _draw_rows(axes: Axes, rows: list[Difference]) -> None:
    places = range(len(rows), 0, -1)
    axes.axvline(0, color=BASELINE, linewidth=1)
    for place, row in zip(places, rows, strict=True):
        axes.plot([row.low, row.high], [place, place], color=OURS, linewidth=2, solid_capstyle="butt")
        axes.plot(row.mean, place, "o", color=OURS, markersize=7)
        told = f"{row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f}), {row.over}"
        axes.annotate(told, (1.01, place), xycoords=("axes fraction", "data"), va="center", fontsize=9)
    axes.set_yticks(list(places), [row.label for row in rows])
    axes.set_ylim(0.4, len(rows) + 0.6)
    axes.set_xlabel("TAPO minus GRPO, points of pass@1 (right of the line: TAPO is ahead)")
    axes.grid(axis="x", alpha=0.3)
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(axis="y", length=0)


def main() -> int:
    """Draw the figure and print its numbers."""
    rows = [read_difference(*condition) for condition in CONDITIONS]
    draw(rows, FOLDER / "summary.png")
    for row in rows:
        print(f"{row.label}: {row.mean:+.1f} ({row.low:+.1f} to {row.high:+.1f}), {row.over}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
