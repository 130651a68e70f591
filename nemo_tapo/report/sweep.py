"""`nemo-tapo report SWEEP_FOLDER`: a sweep's tables, in the terminal and as <folder>/report/<table>.{md,csv,png}."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.checkpoint import replace_text
from nemo_tapo.report import plots
from nemo_tapo.report.sweep_plots import table_figure
from nemo_tapo.report.sweep_rates import table2
from nemo_tapo.report.sweep_read import Found, Outcome, find, sweeps_of
from nemo_tapo.report.sweep_text import Grid, Numbers, as_markdown, csv_rows, grids, notes, numbers_of

REPORT = "report"  # folder of the sweep's
RATED = ("grpo", "tapo")  # rows of Table 2


def report_sweep(folder: Path, asked: Sequence[str] = ()) -> str:
    """Writes the files; returns the tables as text. asked: names of sweeps, else those that were run into the folder.

    Raises ValueError for a name that there is not, a folder that holds no sweep, or a table of which no run counts.
    """
    return "\n\n".join(report_table(folder, find(folder, sweep)) for sweep in sweeps_of(folder, asked))


def report_table(folder: Path, found: Found) -> str:
    name, out = found.sweep.name, folder / REPORT
    numbers = numbers_of(found)
    lines = notes(found, numbers)
    if not any(n.outcome.runs for n in numbers):
        return "\n".join([f"{found.sweep.title} ({name}): no run is done.", *lines])
    tables = grids(found, numbers)
    if rated := _rated(found):
        tables.append(rated)
    out.mkdir(parents=True, exist_ok=True)
    figures = draw(found, numbers, out)
    replace_text(out / f"{name}.md", as_markdown(found, tables, lines, figures))
    text = io.StringIO()
    csv.writer(text, lineterminator="\n").writerows(csv_rows(found, numbers))
    replace_text(out / f"{name}.csv", text.getvalue())
    return "\n".join([in_terminal(found, tables), *lines, f"written: {out / name}.md, .csv; {', '.join(figures)}"])


def _rated(found: Found) -> Grid | None:
    rows = {outcome.row.name: outcome for outcome in found.outcomes if outcome.runs}
    return table2(rows[RATED[0]], rows[RATED[1]]) if rows.keys() >= set(RATED) else None


def draw(found: Found, numbers: Sequence[Numbers], out: Path) -> list[str]:
    """The table and, of rows that were trained, the panels of Figure 3; returns the files' names."""
    name, panels = found.sweep.name, "figure3.png"
    panels = panels if name == "figure3" else f"{name}-{panels}"
    benchmarks = list(dict.fromkeys(b for n in numbers for b in n.means))
    files = [f"{name}-table.png" if name == "figure3" else f"{name}.png"]
    table_figure(found.sweep.title, numbers, benchmarks[-1], out / files[0])  # the average, of several
    curves = {o.row.label: plots.over_seeds(_metrics(o)) for o in found.outcomes if o.row.train and o.runs}
    if any(curves.values()):
        plots.figure3(curves, out / panels)
        files.append(panels)
    return files


def _metrics(outcome: Outcome) -> list[plots.Metrics]:
    return [run.metrics for run in outcome.runs.values()]


def in_terminal(found: Found, tables: Sequence[Grid]) -> str:
    """The tables as plain text, as wide as they need."""
    from rich.console import Console

    from nemo_tapo.report.terminal import text_table

    console = Console(file=io.StringIO(), width=220, highlight=False)
    console.print(f"{found.sweep.title} ({found.sweep.name})", markup=False)
    for table in tables:
        console.print(text_table(table.title, table.head, table.rows))
        console.print("".join(f"{line}\n" for line in table.below), markup=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
