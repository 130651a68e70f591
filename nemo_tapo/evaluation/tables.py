"""Make the tables of evaluations, from the content of evaluation.json, for the report and the terminal."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from nemo_tapo.evaluation.results import format_settings, get_measures, list_titles
from nemo_tapo.metrics import RESPONSE_LENGTH_MEAN

Measures = Mapping[str, Any]
Evaluations = Mapping[str, Mapping[str, Any]]  # evaluation.json: {name: result}

LEGEND = (
    "pass@k is the unbiased estimate, first@k the paper's: whether any of the first k is right, averaged over runs. "
    "In brackets 95% intervals from resampled problems. A change is paired, problem by problem, in percentage points; "
    "up / down counts the problems by their pass@1. Responses are cut off at the length limit; where the verifier "
    "was late or failed they count as wrong."
)
CHANGE, HEAD = "change", "change, points"

SHARES = {
    "with_reflection": "say “Wait,”",
    "no_answer": "no answer",
    "truncated": "cut off",
}
OUTCOMES = {"timeout": "verifier late", "error": "verifier failed"}  # shown only if there are any
SYNTHESIS = {
    "parsed of pairs": ("parsed", "pairs"),
    "correct of pairs": ("correct", "pairs"),
    "groups with mixed rewards": ("mixed_groups", "groups"),
}


@dataclass(frozen=True)
class EvaluationTable:
    """A table of text cells. `head` has no cell for the first column; its head is empty.

    >>> EvaluationTable("aime24", ["before RL", "after RL"], [["pass@1", "31.7%", "62.5%"]]).head
    ['before RL', 'after RL']
    """

    title: str
    head: list[str]
    rows: list[list[str]]


def make_tables(evaluations: Evaluations) -> list[EvaluationTable]:
    """Make one table per benchmark: one row per measure, one column per evaluation, "-" where it was not measured.

    If "before" or "after" is among the evaluations, these two come first, followed by their change. The
    last table shows how well synthesis worked, if it was measured. The benchmarks of a single evaluation share one
    table, as its columns.
    """
    titles = list_titles(evaluations)
    tables = []
    if len(evaluations) == 1 and len(titles) > 1:
        [(name, result)] = evaluations.items()
        tables.append(EvaluationTable(name, titles, list(_make_rows([get_measures(result, t) for t in titles]))))
    else:
        for title in titles:
            head, sides = _make_columns(evaluations, title)
            tables.append(EvaluationTable(title, head, list(_make_rows(sides))))
    synthesis = _make_synthesis_table(evaluations)
    return [*tables, *([synthesis] if synthesis.rows else [])]


def format_settings_lines(evaluations: Evaluations) -> list[str]:
    """Return one line per evaluation: its model and its settings."""
    return [
        f"{name}: {result.get('model', 'unknown model')}; {format_settings(result.get('settings', {}))}"
        for name, result in evaluations.items()
    ]


def _make_columns(evaluations: Evaluations, title: str) -> tuple[list[str], list[Measures]]:
    """Return the heads of a benchmark's columns, and the measures of each; those of a change are under CHANGE."""
    paired = [name for name in ("before", "after") if name in evaluations]
    others = [name for name in evaluations if name not in paired]
    head, sides = [], []
    if paired:
        head = ["before RL", "after RL", HEAD]
        before, after = (evaluations.get(name, {}) for name in ("before", "after"))
        gain = get_measures(after.get("change") or {}, title)
        sides = [get_measures(before, title), get_measures(after, title), {CHANGE: gain}]
    return [*head, *others], [*sides, *(get_measures(evaluations[name], title) for name in others)]


def _make_rows(sides: Sequence[Measures]) -> Iterator[list[str]]:
    """Yield rows of a measure and its value in each column; measures that no column has are left out."""

    def row(label: str, key: str, text: Any) -> Iterator[list[str]]:
        if any(key in side for side in sides):
            yield [label, *(_format_change(side, key) if CHANGE in side else text(side, key) for side in sides)]

    for key in _sort_measure_names(sides):
        yield from row(key, key, format_share)
    for key, label in SHARES.items():
        yield from row(label, key, format_share)
    for outcome, label in OUTCOMES.items():
        if any(side.get("outcomes", {}).get(outcome) for side in sides):
            yield [
                label,
                *("" if CHANGE in s else _format_number(s.get("outcomes", {}).get(outcome, 0)) for s in sides),
            ]
    yield from row("mean tokens", RESPONSE_LENGTH_MEAN, lambda side, key: _format_number(side.get(key)))
    yield from row("problems", "problems", lambda side, key: _format_number(side.get(key)))
    yield from row("responses", "responses", lambda side, key: _format_number(side.get(key)))
    directions = [side[CHANGE].get("problems") for side in sides if CHANGE in side]
    if any(directions):
        yield [
            "up / down",
            *(_format_directions(side[CHANGE].get("problems")) if CHANGE in side else "" for side in sides),
        ]


def _sort_measure_names(sides: Sequence[Measures]) -> list[str]:
    """Return the names that exist, in the order pass@1 .. pass@n, first@1 .. first@n, maj@n, avg@n.

    >>> _sort_measure_names([{"maj@2": 0.5, "first@1": 0.4}, {"pass@2": 0.6, "pass@1": 0.5}])
    ['pass@1', 'pass@2', 'first@1', 'maj@2']
    """
    keys = {key for side in sides for key in side if "@" in key and "/" not in key}
    order = {"pass": 0, "first": 1, "maj": 2, "avg": 3}
    return sorted(keys, key=lambda key: (order[key.partition("@")[0]], int(key.partition("@")[2])))


def format_share(side: Measures, key: str) -> str:
    """Format a share in percent, with its interval if it has one; "-" if it was not measured.

    >>> format_share({"pass@1": 0.317, "pass@1/interval95": [0.241, 0.395]}, "pass@1")
    '31.7% (24.1 to 39.5)'
    """
    if side.get(key) is None:
        return "-"
    ends = side.get(f"{key}/interval95")
    return f"{side[key]:.1%}" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def format_points(side: Measures, key: str) -> str:
    """Format a difference in percentage points. It is signed, and the report colours it by its sign.

    >>> format_points({"pass@1": 0.042, "pass@1/interval95": [-0.01, 0.094]}, "pass@1")
    '+4.2 (-1.0 to +9.4)'
    """
    if side.get(key) is None:
        return ""
    ends = side.get(f"{key}/interval95")
    return f"{100 * side[key]:+.1f}" + (f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else "")


def _format_change(side: Measures, key: str) -> str:
    """Format a cell of the change column; "" for a measure that has no paired difference."""
    return format_points(side[CHANGE], key) if "@" in key else ""


def _format_directions(counts: Mapping[str, int] | None) -> str:
    return f"{counts['better']} / {counts['worse']}" if counts else ""


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _make_synthesis_table(evaluations: Evaluations) -> EvaluationTable:
    """Make the table of how well synthesis worked, with one column per evaluation in which it was measured."""
    names = [name for name in evaluations if evaluations[name].get("synthesis")]
    counts = [evaluations[name]["synthesis"] for name in names]
    labels = {"before": "before RL", "after": "after RL"}
    rows = [[label, *(_format_fraction(c, part, whole) for c in counts)] for label, (part, whole) in SYNTHESIS.items()]
    return EvaluationTable("synthesis on held-out queries", [labels.get(n, n) for n in names], rows if names else [])


def _format_fraction(counts: Measures, part: str, whole: str) -> str:
    if not counts.get(whole) or part not in counts:
        return "-"
    return f"{counts[part] / counts[whole]:.1%} ({counts[part]:,.0f}/{counts[whole]:,.0f})"


def make_comparison_rows(sides: Sequence[Measures], gain: Measures) -> list[list[str]]:
    """Return the rows of two evaluations of the same problems, their paired difference, and whether it excludes 0."""
    rows = []
    for row in _make_rows([*sides, {CHANGE: gain}]):
        ends = gain.get(f"{row[0]}/interval95")
        rows.append([*row, "" if ends is None else "yes" if ends[0] > 0 or ends[1] < 0 else "no"])
    return rows


def format_tables(evaluations: Evaluations, width: int | None = None) -> str:
    """Format the tables for a terminal, without colour."""
    return render_tables(make_tables(evaluations), [*format_settings_lines(evaluations), LEGEND], width)


def render_tables(tables: Sequence[EvaluationTable], lines: Sequence[str], width: int | None = None) -> str:
    """Return the tables, and `lines` below them, as text of at most `width` columns (default: the terminal's width)."""
    from rich.console import Console

    from nemo_tapo.utils.text_table import text_table

    out = StringIO()
    console = Console(file=out, width=width or shutil.get_terminal_size((100, 24)).columns, highlight=False)
    for table in tables:
        console.print(text_table(table.title, ("", *table.head), table.rows))
        console.print()
    for line in lines:
        console.print(line, markup=False)
    return out.getvalue().rstrip()
