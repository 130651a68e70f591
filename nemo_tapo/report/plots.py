"""Draw the figures of a run: the six panels of Figure 3 of arXiv 2606.18844, and what became of queries and pairs.

Metrics are as `records.read_metrics` returns them: one dict per step; any key may be missing at any step. Figures are
drawn with matplotlib's Agg canvas directly, so no global state changes and no display is needed.
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
from nemo_tapo.utils.files import refuse_foreign_link

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Metrics = Sequence[Mapping[str, Any]]
Floats = NDArray[np.float64]
Target = Path | str | IO[bytes]

# Okabe and Ito's palette, distinguishable with any colour vision; line styles differ too.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9")
LINE_STYLES = ("-", "--", "-.", ":")
LOW_SUFFIX, HIGH_SUFFIX = "/low", "/high"  # suffixes of a key: the ends of the band over seeds
ZONES = {ELIGIBLE: "eligible (ZPD)", MASTERED: "mastered", BEYOND: "beyond"}
PAIR_LINES = {PAIRS: "pairs selected", PARSED: "parsed, not dropped", CORRECT: "correct"}
GROUP_LINES = {REFLECTION_GROUPS: "all", MIXED_REFLECTION_GROUPS: "mixed rewards"}


@dataclass(frozen=True)
class Panel:
    """One panel of Figure 3.

    >>> Panel("(b) Policy gradient loss", key="loss", unit="loss").spread
    False
    """

    title: str
    key: str
    unit: str  # label of the y axis, with its unit
    spread: bool = False  # draw a band of one rolling standard deviation


FIGURE3_PANELS = (
    Panel("(a) OTS weight", OTS_WEIGHT_MEAN, "mean over constructed tokens (no unit)"),
    Panel("(b) Policy gradient loss", LOSS, "loss ± 1 rolling std (no unit)", spread=True),
    Panel("(c) Training accuracy", REWARD_MEAN, "correct rollouts (share)"),
    Panel("(d) Gradient norm", GRAD_NORM, "L2 norm before clipping (no unit)"),
    Panel("(e) Response length", RESPONSE_LENGTH_MEAN, "mean length (tokens)"),
    Panel("(f) KL to the reference", KL_REF, "KL divergence (nats a token)"),
)


def draw_figure3(runs: Mapping[str, Metrics], path: Target, window: int | None = None, dark: bool = False) -> None:
    """Draw Figure 3: six panels with the runs overlaid, as a PNG in `path` (a file name or an open binary file).

    window: steps of the rolling mean; None takes a tenth of the longest run, between 1 and the paper's 40.
    Metrics of several seeds, from `merge_seeds`, have a band around their mean.
    Raises ValueError if there is no run or the window is below 1.
    """
    if not runs:
        raise ValueError("figure 3 needs at least one run.")
    width = _choose_window(window, max(len(metrics) for metrics in runs.values()))
    with open_figure(path, dark) as figure:
        grid = figure.subplots(2, 3)
        for axes, panel in zip(grid.flat, FIGURE3_PANELS, strict=True):
            _draw_panel(axes, panel, runs, width)
        if len(runs) > 1:
            handles, labels = grid.flat[0].get_legend_handles_labels()
            figure.legend(handles, labels, loc="outside upper center", ncols=min(len(runs), 4), frameon=False)
        several = any(LOW_SUFFIX in key for metrics in runs.values() for row in metrics for key in row)
        bands = " Bands: lowest to highest seed." if several else ""
        _draw_caption(
            figure, f"Thick lines: rolling mean over {_format_steps(width)}; thin lines: each step, unsmoothed.{bands}"
        )


def merge_seeds(runs: Sequence[Metrics]) -> list[dict[str, float]]:
    """Merge the metrics of several seeds, for the keys of Figure 3.

    Each key has its mean at every step that all seeds have, and the ends of the band, `<key>/low` and `<key>/high`. A
    single seed has no band.

    >>> merge_seeds([[{"step": 1, "loss": 0.25}], [{"step": 1, "loss": 0.75}]])
    [{'step': 1.0, 'loss': 0.5, 'loss/low': 0.25, 'loss/high': 0.75}]
    """
    rows: dict[int, dict[str, float]] = {}
    for key in (panel.key for panel in FIGURE3_PANELS):
        by_step = [dict(zip(*extract_series(metrics, key), strict=True)) for metrics in runs]
        for step in sorted(set.intersection(*map(set, by_step))) if by_step else ():
            values = [float(values_by_step[step]) for values_by_step in by_step]
            row = rows.setdefault(int(step), {"step": float(step)})
            row[key] = sum(values) / len(values)
            if len(runs) > 1:
                row |= {key + LOW_SUFFIX: min(values), key + HIGH_SUFFIX: max(values)}
    return [rows[step] for step in sorted(rows)]


def draw_construction_figure(metrics: Metrics, path: Target, window: int | None = None, dark: bool = False) -> None:
    """Draw queries by zone, the course of the pairs, drop reasons and reflection groups over steps, as a PNG.

    window: as in `draw_figure3`; it smooths the lines. Stacked areas show each step.
    """
    width = _choose_window(window, len(metrics))
    reasons = sorted({key for row in metrics for key, value in row.items() if key.startswith(DROP_PREFIX) and value})
    with open_figure(path, dark) as figure:
        zones, pairs, drops, groups = figure.subplots(2, 2).flat
        _draw_stack(zones, metrics, ZONES)
        _label_axes(zones, "Where the queries lie (Eq. 3)", "queries a step")
        _draw_lines(pairs, metrics, PAIR_LINES, width)
        _label_axes(pairs, "From pair to correct trajectory", "pairs a step")
        _draw_stack(drops, metrics, {key: key.removeprefix(DROP_PREFIX) for key in reasons}, empty="nothing dropped")
        _label_axes(drops, "Dropped pairs, by reason", "pairs a step")
        _draw_lines(groups, metrics, GROUP_LINES, width)
        _label_axes(groups, "Reflection groups", "groups a step")
        _draw_caption(figure, f"Lines: rolling mean over {_format_steps(width)}. Stacked areas: each step.")


def compute_rolling_stats(values: Floats, window: int) -> tuple[Floats, Floats]:
    """Return mean and population standard deviation of the last `window` values at each position, [n] each.

    nan is left out; a position with only nan in its window is nan.

    >>> mean, deviation = compute_rolling_stats(np.array([1.0, 3.0, 5.0]), window=2)
    >>> mean.tolist(), deviation.tolist()
    ([1.0, 2.0, 4.0], [0.0, 1.0, 1.0])
    """
    known = np.isfinite(values)
    filled = np.where(known, values, 0.0)
    centre = filled.sum() / max(known.sum(), 1)  # subtracted first, because a cumulative sum of squares loses precision
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


def extract_series(metrics: Metrics, key: str) -> tuple[Floats, Floats]:
    """Return steps and values of one key; steps that lack it, or hold no finite number, are left out.

    >>> steps, values = extract_series([{"step": 1, "loss": 0.5}, {"step": 2}], "loss")
    >>> steps.tolist(), values.tolist()
    ([1.0], [0.5])
    """
    pairs = [(row.get("step", index), row.get(key)) for index, row in enumerate(metrics)]
    known = [(step, value) for step, value in pairs if isinstance(value, (int, float)) and np.isfinite(value)]
    return np.array([s for s, _ in known], float), np.array([v for _, v in known], float)


def _choose_window(window: int | None, steps: int) -> int:
    if window is None:
        return min(max(round(steps / 10), 1), 40)
    if window < 1:
        raise ValueError(f"the rolling window is {window} steps; it must be 1 or more.")
    return window


def _draw_panel(axes: Axes, panel: Panel, runs: Mapping[str, Metrics], window: int) -> None:
    drawn = banded = False
    for index, (name, metrics) in enumerate(runs.items()):
        steps, values = extract_series(metrics, panel.key)
        colour, style = COLOURS[index % len(COLOURS)], LINE_STYLES[index % len(LINE_STYLES)]
        axes.plot([], [], color=colour, linestyle=style, label=name)  # in the legend even if it has no data
        if not len(steps):
            continue
        drawn = True
        mean, deviation = compute_rolling_stats(values, window)
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=0.8)
        alone = "o" if len(steps) == 1 else ""
        axes.plot(steps, mean, color=colour, linestyle=style, linewidth=2, marker=alone)
        (_, low), (_, high) = (extract_series(metrics, panel.key + end) for end in (LOW_SUFFIX, HIGH_SUFFIX))
        if len(low) == len(steps):
            ends = compute_rolling_stats(low, window)[0], compute_rolling_stats(high, window)[0]
            axes.fill_between(steps, *ends, color=colour, alpha=0.18, linewidth=0)
            banded = True
        elif panel.spread:
            axes.fill_between(steps, mean - deviation, mean + deviation, color=colour, alpha=0.18, linewidth=0)
    if not drawn:
        _draw_message(axes, f"{panel.key} was not recorded")
    _label_axes(axes, panel.title, panel.unit.replace(" ± 1 rolling std", "") if banded else panel.unit, legend=False)


def _draw_lines(axes: Axes, metrics: Metrics, keys: Mapping[str, str], window: int) -> None:
    """Draw one smoothed line per key, with the unsmoothed line thin behind it."""
    for index, (key, name) in enumerate(keys.items()):
        steps, values = extract_series(metrics, key)
        if not len(steps):
            continue
        colour, style = COLOURS[index], LINE_STYLES[index]
        if window > 1:
            axes.plot(steps, values, color=colour, alpha=0.4, linewidth=0.8)
        alone = "o" if len(steps) == 1 else ""
        axes.plot(
            steps,
            compute_rolling_stats(values, window)[0],
            color=colour,
            linestyle=style,
            linewidth=2,
            label=name,
            marker=alone,
        )
    if axes.lines:
        axes.set_ylim(bottom=0)
    else:
        _draw_message(axes, "not recorded")


def _draw_stack(axes: Axes, metrics: Metrics, keys: Mapping[str, str], empty: str = "not recorded") -> None:
    """Draw stacked counts; a step that lacks a key counts 0. Areas differ by hatching, not by colour alone."""
    by_step = {key: dict(zip(*extract_series(metrics, key), strict=True)) for key in keys}
    steps = sorted({step for values in by_step.values() for step in values})
    if not steps:
        _draw_message(axes, empty)
        return
    edges = np.array([*steps, steps[-1] + 1], float) - 0.5  # one bar per step, as wide as the step
    base = np.zeros(len(steps))
    for index, (key, name) in enumerate(keys.items()):
        top = base + np.array([by_step[key].get(step, 0.0) for step in steps])
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


def _label_axes(axes: Axes, title: str, unit: str, legend: bool = True) -> None:
    from matplotlib.ticker import MaxNLocator

    axes.set_title(title, loc="left", fontweight="bold")
    axes.set_xlabel("training step")
    axes.set_ylabel(unit)
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, steps=[1, 2, 5, 10]))
    if legend and axes.get_legend_handles_labels()[0]:
        axes.legend(frameon=True, framealpha=0.85, fontsize=9)


def _draw_message(axes: Axes, text: str) -> None:
    axes.text(0.5, 0.5, text, ha="center", va="center", transform=axes.transAxes, alpha=0.6)
    axes.tick_params(labelbottom=False, labelleft=False, length=0)
    axes.grid(False)


def _format_steps(count: int) -> str:
    return f"{count} step{'s' * (count != 1)}"


def _make_theme(dark: bool) -> dict[str, Any]:
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
def open_figure(target: Target, dark: bool = False, size: tuple[float, float] = (13, 7.4)) -> Iterator[Figure]:
    """Yield an empty figure in the light or the dark theme, on its own canvas; write it to `target` at the end."""
    import matplotlib
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    if isinstance(target, (str, Path)):
        Path(target).parent.mkdir(parents=True, exist_ok=True)
    with matplotlib.rc_context(_make_theme(dark)):
        figure = Figure(figsize=size, layout="constrained")
        FigureCanvasAgg(figure)
        yield figure
        if isinstance(target, (str, Path)):
            with open(target, "wb", opener=refuse_foreign_link) as file:
                figure.savefig(file, format="png", dpi=110)
        else:
            figure.savefig(target, format="png", dpi=110)


def _draw_caption(figure: Figure, text: str) -> None:
    figure.supxlabel(text, fontsize=9, alpha=0.75, x=0.01, ha="left")
