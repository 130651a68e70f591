"""The figures of a run: the six panels of Figure 3 of arXiv 2606.18844, and the fate of queries and pairs.

A metrics list is what `records.read_metrics` gives: one dict a step, any key may be missing at any step.
Drawn with matplotlib's Agg canvas directly, so nothing global is touched and no display is needed.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from nemo_tapo.metrics import (
    BEYOND,
    CORRECT,
    DROP_PREFIX,
    ELIGIBLE,
    GRAD_NORM,
    KL_REF,
    LOSS,
    MASTERED,
    MIXED_REFLECTION_GROUPS,
    OTS_WEIGHT_MEAN,
    PAIRS,
    PARSED,
    REFLECTION_GROUPS,
    RESPONSE_LENGTH_MEAN,
    REWARD_MEAN,
)

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
Target = Path | str | IO[bytes]

# Okabe and Ito's palette, told apart by people with any colour vision; line styles differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
STYLES = ("-", "--", "-.", ":")
LOW, HIGH = "/low", "/high"  # behind a key: the ends of the band over seeds
ZONES = {ELIGIBLE: "eligible (ZPD)", MASTERED: "mastered", BEYOND: "beyond"}
PAIR_LINES = {PAIRS: "pairs selected", PARSED: "parsed, not dropped", CORRECT: "correct"}
GROUPS = {REFLECTION_GROUPS: "all", MIXED_REFLECTION_GROUPS: "mixed rewards"}


@dataclass(frozen=True)
class Panel:
    """One panel of Figure 3."""

    title: str
    key: str
    unit: str  # the y axis, with its unit
    spread: bool = False  # a band of one rolling standard deviation


FIGURE3 = (
    Panel("(a) OTS weight", OTS_WEIGHT_MEAN, "mean over constructed tokens (no unit)"),
    Panel("(b) Policy gradient loss", LOSS, "loss ± 1 rolling std (no unit)", spread=True),
    Panel("(c) Training accuracy", REWARD_MEAN, "correct rollouts (share)"),
    Panel("(d) Gradient norm", GRAD_NORM, "L2 norm before clipping (no unit)"),
    Panel("(e) Response length", RESPONSE_LENGTH_MEAN, "mean length (tokens)"),
    Panel("(f) KL to the reference", KL_REF, "KL divergence (nats a token)"),
)


def figure3(runs: Mapping[str, Metrics], path: Target, window: int | None = None, dark: bool = False) -> None:
    """Figure 3: six panels, the runs overlaid; a PNG, written to `path` (a file name or an open binary file).

    window: steps of the rolling mean; None takes a tenth of the longest run, between 1 and the paper's 40.
    Metrics of several seeds, from `over_seeds`, have a band about their mean.
    Raises ValueError if there is no run or the window is below 1.
    """
    if not runs:
        raise ValueError("figure 3 needs at least one run.")
    width = _window(window, max(len(metrics) for metrics in runs.values()))
    with drawing(path, dark) as figure:
        grid = figure.subplots(2, 3)
        for axes, panel in zip(grid.flat, FIGURE3, strict=True):
            _draw_panel(axes, panel, runs, width)
        if len(runs) > 1:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
        several = any(LOW in key for metrics in runs.values() for row in metrics for key in row)
        bands = " Bands: lowest to highest seed." if several else ""
        _caption(figure, f"Thick lines: rolling mean over {_steps(width)}; thin lines: each step, unsmoothed.{bands}")


def over_seeds(runs: Sequence[Metrics]) -> list[dict[str, float]]:
    """Several seeds' metrics as one: of Figure 3's keys the mean at every step that all of them have, and the ends of
    the band, `<key>/low` and `<key>/high`. A single seed has no band."""
    rows: dict[int, dict[str, float]] = {}
    for key in (panel.key for panel in FIGURE3):
        found = [dict(zip(*series(metrics, key), strict=True)) for metrics in runs]
        for step in sorted(set.intersection(*map(set, found))) if found else ():
            values = [float(of[step]) for of in found]
            row = rows.setdefault(int(step), {"step": float(step)})
            row[key] = sum(values) / len(values)
            if len(runs) > 1:
                row |= {key + LOW: min(values), key + HIGH: max(values)}
    return [rows[step] for step in sorted(rows)]


def construction_figure(metrics: Metrics, path: Target, window: int | None = None, dark: bool = False) -> None:
    """Queries by zone, the way of the pairs, drop reasons and reflection groups, over steps; a PNG.

    window as in `figure3`; it smooths the lines, stacked areas show each step.
    """
    width = _window(window, len(metrics))
    reasons = sorted({key for row in metrics for key, value in row.items() if key.startswith(DROP_PREFIX) and value})
    with drawing(path, dark) as figure:
        zones, pairs, drops, groups = figure.subplots(2, 2).flat
        _stack(zones, metrics, ZONES)
        _label(zones, "Where the queries lie (Eq. 3)", "queries a step")
        _lines(pairs, metrics, PAIR_LINES, width)
        _label(pairs, "From pair to correct trajectory", "pairs a step")
        _stack(drops, metrics, {key: key.removeprefix(DROP_PREFIX) for key in reasons}, empty="nothing dropped")
        _label(drops, "Dropped pairs, by reason", "pairs a step")
        _lines(groups, metrics, GROUPS, width)
        _label(groups, "Reflection groups", "groups a step")
        _caption(figure, f"Lines: rolling mean over {_steps(width)}. Stacked areas: each step.")


def rolling(values: Floats, window: int) -> tuple[Floats, Floats]:
    """Mean and population standard deviation of the last `window` values at each place, [n] each.

    nan is left out; a place with nothing but nan in its window is nan.
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    centre = filled.sum() / max(known.sum(), 1)  # subtracted first: a cumulative sum of squares cancels badly
    shifted = np.where(known, values - centre, 0.0)
    count, total, squares = (_window_sum(x, window) for x in (known.astype(float), shifted, shifted**2))
    with np.errstate(invalid="ignore", divide="ignore"):
        mean = total / count
        deviation = np.sqrt(np.maximum(squares / count - mean**2, 0.0))
    return mean + centre, deviation


def _window_sum(values: Floats, window: int) -> Floats:
    sums = np.cumsum(values)
    sums[window:] -= sums[:-window].copy()
    return sums


def series(metrics: Metrics, key: str) -> tuple[Floats, Floats]:
    """Steps and values of one key; steps that lack it, or hold no finite number, are left out."""
    pairs = [(row.get("step", index), row.get(key)) for index, row in enumerate(metrics)]
    known = [(step, value) for step, value in pairs if isinstance(value, (int, float)) and np.isfinite(value)]
    return np.array([s for s, _ in known], float), np.array([v for _, v in known], float)


def _window(window: int | None, steps: int) -> int:
    if window is None:
        return min(max(round(steps / 10), 1), 40)
    if window < 1:
        raise ValueError(f"the rolling window is {window} steps; it must be 1 or more.")
    return window


def _draw_panel(axes: Axes, panel: Panel, runs: Mapping[str, Metrics], window: int) -> None:
    drawn = banded = False
    for index, (name, metrics) in enumerate(runs.items()):
        steps, values = series(metrics, panel.key)
        colour, style = COLOURS[index % len(COLOURS)], STYLES[index % len(STYLES)]
        axes.plot([], [], color=colour, linestyle=style, label=name)  # in the legend even where it has no data
        if not len(steps):
            continue
        drawn = True
        mean, deviation = rolling(values, window)
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=0.8)
        alone = "o" if len(steps) == 1 else ""
        axes.plot(steps, mean, color=colour, linestyle=style, linewidth=2, marker=alone)
        (_, low), (_, high) = (series(metrics, panel.key + end) for end in (LOW, HIGH))
        if len(low) == len(steps):
            ends = rolling(low, window)[0], rolling(high, window)[0]
            axes.fill_between(steps, *ends, color=colour, alpha=0.18, linewidth=0)
            banded = True
        elif panel.spread:
            axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    if not drawn:
        _nothing(axes, f"{panel.key} was not recorded")
    _label(axes, panel.title, panel.unit.replace(" ± 1 rolling std", "") if banded else panel.unit, legend=False)


def _lines(axes: Axes, metrics: Metrics, keys: Mapping[str, str], window: int) -> None:
    """One smoothed line a key, the plain one thin behind it."""
    for index, (key, name) in enumerate(keys.items()):
        steps, values = series(metrics, key)
        if not len(steps):
            continue
        colour, style = COLOURS[index], STYLES[index]
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=0.8)
        alone = "o" if len(steps) == 1 else ""
        axes.plot(
            steps,
            rolling(values, window)[0],
            color=colour,
            linestyle=style,
            linewidth=2,
            label=name,
            marker=alone,
        )
    if axes.lines:
        axes.set_ylim(bottom=0)
    else:
        _nothing(axes, "not recorded")


def _stack(axes: Axes, metrics: Metrics, keys: Mapping[str, str], empty: str = "not recorded") -> None:
    """Counts stacked on one another; a step that lacks a key counts 0. Hatched, not coloured alone."""
    found = {key: dict(zip(*series(metrics, key), strict=True)) for key in keys}
    steps = sorted({step for values in found.values() for step in values})
    if not steps:
        _nothing(axes, empty)
        return
    edges = np.array([*steps, steps[-1] + 1], float) - 0.5  # one bar a step, as wide as the step
    base = np.zeros(len(steps))
    for index, (key, name) in enumerate(keys.items()):
        top = base + np.array([found[key].get(step, 0.0) for step in steps])
        axes.fill_between(
            edges,
            np.append(base, base[-1]),
            np.append(top, top[-1]),
            step="post",
            label=name,
            facecolor=COLOURS[index % len(COLOURS)],
            hatch=("", "//", "..", "xx", "--", "++")[index % 6],
            edgecolor=(1, 1, 1, 0.45),
            linewidth=0,
        )
        base = top
    axes.set_ylim(0, max(float(base.max()) * 1.02, 1.0))
    axes.set_xlim(edges[0], edges[-1])


def _label(axes: Axes, title: str, unit: str, legend: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, framealpha=0.85, fontsize=9)


def _nothing(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, alpha=0.6)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    axes.grid(False)


def _steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _theme(dark: bool) -> dict[str, Any]:
    ink, paper, line = ("#d7dce2", "#171b21", "#39424e") if dark else ("#20262d", "#ffffff", "#dde1e6")
    return {
        "figure.facecolor": paper,
        "axes.facecolor": paper,
        "savefig.facecolor": paper,
        "legend.facecolor": paper,
        "legend.edgecolor": line,
        "text.color": ink,
        "axes.labelcolor": ink,
        "axes.edgecolor": line,
        "xtick.color": ink,
        "ytick.color": ink,
        "grid.color": line,
        "axes.grid": True,
        "axes.axisbelow": True,
        "grid.linewidth": 0.7,
        "axes.spines.top": False,
        "axes.spines.right": False,
        "font.size": 10.5,
        "axes.titlesize": 11.5,
        "hatch.linewidth": 0.7,
    }


@contextmanager
def drawing(target: Target, dark: bool = False, size: tuple[float, float] = (13, 7.4)) -> Iterator[Figure]:
    """An empty figure in the light or the dark theme, on its own canvas; written to `target` at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if isinstance(target, (str, Path)):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_theme(dark)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        figure.savefig(target, format="png", dpi=110)


def _caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, alpha=0.75, x=0.01, ha="left")
