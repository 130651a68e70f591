"""The table of a sweep as a picture: a dot a row, its intervals, its seeds, and the paired differences beside it."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.report.plots import COLOURS, drawing
from nemo_tapo.sweeps.report.estimates import Estimate
from nemo_tapo.sweeps.report.read_runs import Outcome
from nemo_tapo.sweeps.report.text_report import Numbers

if TYPE_CHECKING:
    from matplotlib.axes import Axes

CAPTION = "Dots: mean over seeds; thick: 95% over seeds (Student's t); thin: 95% over problems; open: each seed."
NAMED = "minus the row named"
APART = 0.36  # between the measures of a row, in rows


def table_figure(title: str, numbers: Sequence[Numbers], benchmark: str, path: Path) -> None:
    """pass@1 and pass@n of every row with a run, and its differences to the row that it is compared with; a PNG."""
    shown = [n for n in numbers if benchmark in n.means]
    measures = [name for name in shown[0].means[benchmark] if name.startswith("pass@")]
    measures = [measures[0], measures[-1]] if len(measures) > 1 else measures
    with drawing(path, size=(13, 1.9 + 0.75 * len(shown))) as figure:
        left, right = figure.subplots(1, 2, sharey=True, width_ratios=(3, 2))
        for i, measure in enumerate(measures):
            offset = APART * (i - (len(measures) - 1) / 2)
            colour = COLOURS[i]
            left.plot([], [], "o", color=colour, label=measure)
            for y, n in enumerate(shown):
                _draw(left, n.means[benchmark][measure], y + offset, colour)
                if measure in n.gain.get(benchmark, {}):
                    _draw(right, n.gain[benchmark][measure], y + offset, colour)
        left.set_yticks(range(len(shown)), [f"{n.outcome.row.label}\n{_seeds(n)}" for n in shown])
        left.set_ylim(len(shown) - 0.5, -0.5)
        low, high = left.get_xlim()
        left.set_xlim(max(low, -2), min(high, 102))  # few seeds' intervals may leave what a share can be
        left.set_xlabel(f"{benchmark}: pass@k (percent)")
        left.set_title(title, loc="left", fontweight="bold")
        left.legend(frameon=True, framealpha=0.85, fontsize=9)
        right.axvline(0, color="0.4", linewidth=1)
        right.set_xlabel("paired difference (points)")
        heading = compared([n.outcome for n in shown], [n.other if n.gain.get(benchmark) else None for n in shown])
        right.set_title(heading, loc="left", fontweight="bold")
        if heading == NAMED:
            for y, n in enumerate(shown):
                if n.other and n.gain.get(benchmark):
                    _name(right, n.other.row.label, y)
        figure.supxlabel(CAPTION, fontsize=9, alpha=0.75, x=0.01, ha="left")


def _draw(axes: Axes, e: Estimate, y: float, colour: str) -> None:
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


def _seeds(n: Numbers) -> str:
    count = len(n.outcome.runs)
    return f"{count} seed{'s' * (count != 1)}"


def _name(axes: Axes, label: str, y: float) -> None:
    across = axes.get_yaxis_transform()
    axes.text(0.99, y - 0.36, f"minus {label}", transform=across, ha="right", va="center", fontsize=8, alpha=0.75)


def compared(rows: Sequence[Outcome], others: Sequence[Outcome | None]) -> str:
    """What the differences of the rows shown are to, as a heading: the row above each, one and the same, or several."""
    pairs = [(i, other) for i, other in enumerate(others) if other is not None]
    if all(i > 0 and other is rows[i - 1] for i, other in pairs):
        return "minus the row above"
    names = {other.row.name: other.row.label for _, other in pairs}
    return f"minus {next(iter(names.values()))}" if len(names) == 1 else NAMED
