"""Draw a sweep's table: for each row a dot, its intervals and its seeds, and beside them the paired differences."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.report.plots import COLOURS, open_figure
from nemo_tapo.sweeps.report.estimates import Estimate
from nemo_tapo.sweeps.report.read_runs import RowOutcome
from nemo_tapo.sweeps.report.text_report import RowEstimates

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPTION = "Dots: mean over seeds; thick: 95% over seeds (Student's t); thin: 95% over problems; open: each seed."
NAMED_HEADING = "minus the row named"
MEASURE_SPACING = 0.36  # distance between the measures of a row; rows are 1 apart


def draw_table_figure(title: str, numbers: Sequence[RowEstimates], benchmark: str, path: Path) -> None:
    """Draw pass@1 and pass@n of every row with a run, and its difference from the row it is compared with, as a PNG."""
    shown = [n for n in numbers if benchmark in n.means]
    measures = [name for name in shown[0].means[benchmark] if name.startswith("pass@")]
    measures = [measures[0], measures[-1]] if len(measures) > 1 else measures
    with open_figure(path, size=(13, 1.9 + 0.75 * len(shown))) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for i, measure in enumerate(measures):
            offset = MEASURE_SPACING * (i - (len(measures) - 1) / 2)
            colour = COLOURS[i]
            left.plot([], [], "o", color=colour, label=measure)
            for y, n in enumerate(shown):
                _draw_estimate(left, n.means[benchmark][measure], y + offset, colour)
                if measure in n.gain.get(benchmark, {}):
                    _draw_estimate(right, n.gain[benchmark][measure], y + offset, colour)
        left.set_yticks(range(len(shown)), [f"{n.outcome.row.label}\n{_format_seed_count(n)}" for n in shown])
        left.set_ylim(len(shown) - 0.5, -0.5)
        low, high = left.get_xlim()
        left.set_xlim(max(low, -2), min(high, 102))  # with few seeds, intervals may reach beyond 0 and 100 percent
        left.set_xlabel(f"{benchmark}: pass@k (percent)")
        left.set_title(title, loc="left", fontweight="bold")
        left.legend(frameon=True, framealpha=0.85, fontsize=9)
        right.axvline(0, color="0.4", linewidth=1)
        right.set_xlabel("paired difference (points)")
        heading = make_difference_heading(
            [n.outcome for n in shown], [n.baseline if n.gain.get(benchmark) else None for n in shown]
        )
        right.set_title(heading, loc="left", fontweight="bold")
        if heading == NAMED_HEADING:
            for y, n in enumerate(shown):
                if n.baseline and n.gain.get(benchmark):
                    _draw_baseline_label(right, n.baseline.row.label, y)
        figure.supxlabel(CAPTION, fontsize=9, alpha=0.75, x=0.01, ha="left")


def _draw_estimate(axes: Axes, e: Estimate, y: float, colour: str) -> None:
    low, high = e.over_problems
    value = 100 * e.value
    axes.errorbar(
        value, y, xerr=[[max(0.0, value - 100 * low)], [max(0.0, 100 * high - value)]], fmt="o", color=colour,
        markersize=6, linewidth=1.1, capsize=3,
    )  # fmt: skip
    if e.over_seeds:
        axes.plot([100 * end for end in e.over_seeds], [y, y], color=colour, linewidth=4, alpha=0.45)
    if len(e.by_seed) > 1:
        axes.plot(
            [100 * v for v in e.by_seed], [y + 0.12] * len(e.by_seed), "o", mfc="none", color=colour, markersize=3.5
        )


def _format_seed_count(n: RowEstimates) -> str:
    count = len(n.outcome.runs)
    return f"{count} seed{'s' * (count != 1)}"


def _draw_baseline_label(axes: Axes, label: str, y: float) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0.99, y - 0.36, f"minus {label}", transform=across, ha="right", va="center", fontsize=8, alpha=0.75)


def make_difference_heading(rows: Sequence[RowOutcome], others: Sequence[RowOutcome | None]) -> str:
    """Return the heading of the differences: from the row above each, from one row for all, or from several rows."""
    pairs = [(i, other) for i, other in enumerate(others) if other is not None]
    if all(i > 0 and other is rows[i - 1] for i, other in pairs):
        return "minus the row above"
    names = {other.row.name: other.row.label for _, other in pairs}
    return f"minus {next(iter(names.values()))}" if len(names) == 1 else NAMED_HEADING
