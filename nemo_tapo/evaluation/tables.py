"""The tables of evaluations, as text for the page and the terminal, from what evaluation.json holds."""

from __future__ import annotations

import shutil
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import StringIO
from typing import Any

from nemo_tapo.evaluation.results import of_title, settings_text, titles
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
OUTCOMES = {"timeout": "verifier late", "error": "verifier failed"}  # shown where there are some
SYNTHESIS = {
    "parsed of pairs": ("parsed", "pairs"),
    "correct of pairs": ("correct", "pairs"),
    "groups with mixed rewards": ("mixed_groups", "groups"),
}


@dataclass(frozen=True)
class Table:
    """Cells of text; the head has one more for the first column, which is empty."""

    title: str
    head: list[str]
    rows: list[list[str]]


def tables(evaluations: Evaluations) -> list[Table]:
    """A table a benchmark: a measure a row, an evaluation a column, "-" where it was not measured.

    "before" and "after" come first, followed by their change, where one of them is there. Of a single evaluation of
    several benchmarks there is one table, with these as columns.
    """
    found = titles(evaluations)
    if len(evaluations) == 1 and len(found) > 1:
        [(name, result)] = evaluations.items()
        return [Table(name, found, list(_rows([of_title(result, title) for title in found])))]
    out = []
    for title in found:
        head, sides = _columns(evaluations, title)
        out.append(Table(title, head, list(_rows(sides))))
    synthesis = _synthesis(evaluations)
    return [*out, *([synthesis] if synthesis.rows else [])]


def settings_lines(evaluations: Evaluations) -> list[str]:
    """One line an evaluation: what was evaluated, and how."""
    return [
        f"{name}: {result.get('model', 'unknown model')}; {settings_text(result.get('settings', {}))}"
        for name, result in evaluations.items()
    ]


def _columns(evaluations: Evaluations, title: str) -> tuple[list[str], list[Measures]]:
    """Heads, and what stands in each column; a change is the measures' differences."""
    paired = [name for name in ("before", "after") if name in evaluations]
    others = [name for name in evaluations if name not in paired]
    head, sides = [], []
    if paired:
        head = ["before RL", "after RL", HEAD]
        before, after = (evaluations.get(name, {}) for name in ("before", "after"))
        gain = of_title(after.get("change") or {}, title)
        sides = [of_title(before, title), of_title(after, title), {CHANGE: gain}]
    return [*head, *others], [*sides, *(of_title(evaluations[name], title) for name in others)]


def _rows(sides: Sequence[Measures]) -> Iterator[list[str]]:
    """(measure, its value in each column); measures that none has are left out."""

    def row(label: str, key: str, text: Any) -> Iterator[list[str]]:
        if any(key in side for side in sides):
            yield [label, *(_changed(side, key) if CHANGE in side else text(side, key) for side in sides)]

    for key in _ordered(sides):
        yield from row(key, key, share)
    for key, label in SHARES.items():
        yield from row(label, key, share)
    for outcome, label in OUTCOMES.items():
        if any(side.get("outcomes", {}).get(outcome) for side in sides):
            yield [label, *("" if CHANGE in s else _number(s.get("outcomes", {}).get(outcome, 0)) for s in sides)]
    yield from row("mean tokens", RESPONSE_LENGTH_MEAN, lambda side, key: _number(side.get(key)))
    yield from row("problems", "problems", lambda side, key: _number(side.get(key)))
    yield from row("responses", "responses", lambda side, key: _number(side.get(key)))
    directions = [side[CHANGE].get("problems") for side in sides if CHANGE in side]
    if any(directions):
        yield [
            "up / down",
            *(_directions(side[CHANGE].get("problems")) if CHANGE in side else "" for side in sides),
        ]


def _ordered(sides: Sequence[Measures]) -> list[str]:
    """pass@1 .. pass@n, first@1 .., maj@n, avg@n, as far as they are there."""
    keys = {key for side in sides for key in side if "@" in key and "/" not in key}
    order = {"pass": 0, "first": 1, "maj": 2, "avg": 3}
    return sorted(keys, key=lambda key: (order[key.partition("@")[0]], int(key.partition("@")[2])))


def share(side: Measures, key: str) -> str:
    """ "31.7% (24.1 to 39.5)", the interval where there is one."""
    if side.get(key) is None:
        return "-"
    ends = side.get(f"{key}/interval95")
    return f"{side[key]:.1%}" + (f" ({100 * ends[0]:.1f} to {100 * ends[1]:.1f})" if ends else "")


def points(side: Measures, key: str) -> str:
    """ "+4.2 (-1.0 to +9.4)": signed, and so coloured in the page."""
    if side.get(key) is None:
        return ""
    ends = side.get(f"{key}/interval95")
    return f"{100 * side[key]:+.1f}" + (f" ({100 * ends[0]:+.1f} to {100 * ends[1]:+.1f})" if ends else "")


def _changed(side: Measures, key: str) -> str:
    """The cell of the change column."""
    return points(side[CHANGE], key) if "@" in key else ""


def _directions(counts: Mapping[str, int] | None) -> str:
    return f"{counts['better']} / {counts['worse']}" if counts else ""


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}" if float(value).is_integer() else f"{value:,.1f}"


def _synthesis(evaluations: Evaluations) -> Table:
    """How well synthesis worked, where it was measured."""
    names = [name for name in evaluations if evaluations[name].get("synthesis")]
    counts = [evaluations[name]["synthesis"] for name in names]
    labels = {"before": "before RL", "after": "after RL"}
    rows = [[label, *(_fraction(c, part, whole) for c in counts)] for label, (part, whole) in SYNTHESIS.items()]
    return Table("synthesis on held-out queries", [labels.get(n, n) for n in names], rows if names else [])


def _fraction(counts: Measures, part: str, whole: str) -> str:
    if not counts.get(whole) or part not in counts:
        return "-"
    return f"{counts[part] / counts[whole]:.1%} ({counts[part]:,.0f}/{counts[whole]:,.0f})"


def compared(sides: Sequence[Measures], gain: Measures) -> list[list[str]]:
    """Rows of two evaluations of the same problems, with their paired difference and whether it excludes 0."""
    rows = []
    for row in _rows([*sides, {CHANGE: gain}]):
        ends = gain.get(f"{row[0]}/interval95")
        rows.append([*row, "" if ends is None else "yes" if ends[0] > 0 or ends[1] < 0 else "no"])
    return rows


def as_text(evaluations: Evaluations, width: int | None = None) -> str:
    """The tables for a terminal, without colour."""
    return print_tables(tables(evaluations), [*settings_lines(evaluations), LEGEND], width)


def print_tables(found: Sequence[Table], lines: Sequence[str], width: int | None = None) -> str:
    """Tables and lines below them as text of at most `width` columns, by default the terminal's."""
    from rich.console import Console

    from nemo_tapo.utils.text_table import text_table

    out = StringIO()
    console = Console(file=out, width=width or shutil.get_terminal_size((100, 24)).columns, highlight=False)
    for one in found:
        console.print(text_table(one.title, ("", *one.head), one.rows))
        console.print()
    for line in lines:
        console.print(line, markup=False)
    return out.getvalue().rstrip()
