"""`nemo-tapo report SWEEP_FOLDER`: a sweep's tables, in the terminal and as <folder>/report/<table>.{md,csv,png}."""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.report import plots
from nemo_tapo.sweeps.report.csv_file import as_csv
from nemo_tapo.sweeps.report.read_runs import Found, Outcome, find, kept_sweeps, sweeps_of
from nemo_tapo.sweeps.report.reflection_rates import Rated, rate, table2
from nemo_tapo.sweeps.report.table_figure import table_figure
from nemo_tapo.sweeps.report.text_report import Grid, Numbers, as_markdown, grids, notes, numbers_of, sentence
from nemo_tapo.utils.files import replace_text

REPORT = "report"  # folder of the sweep's
RATED = ("grpo", "tapo")  # rows of Table 2


def report_sweep(folder: Path, asked: Sequence[str] = ()) -> str:
    """Writes the files; returns the tables as text. asked: names of sweeps, else those that were run into the folder.

    Raises ValueError for a name that there is not, a folder that holds no sweep, or a table of which no run counts.
    """
    _, faults = kept_sweeps(folder)
    tables = [report_table(folder, find(folder, sweep)) for sweep in sweeps_of(folder, asked)]
    return "\n\n".join([*tables, *faults])


def report_table(folder: Path, found: Found) -> str:
    name, out = found.sweep.name, folder / REPORT
    numbers = numbers_of(found)
    lines = notes(found, numbers)
    if not any(n.outcome.runs for n in numbers):
        return "\n".join([f"{found.sweep.title} ({name}): no run is done.", *lines])
    rated, faults = rates_of(found)
    lines += faults
    tables = [*grids(found, numbers), *map(table2, rated)]
    out.mkdir(parents=True, exist_ok=True)
    figures = draw(found, numbers, out)
    replace_text(out / f"{name}.md", as_markdown(found, tables, lines, figures))
    replace_text(out / f"{name}.csv", as_csv(found, numbers, rated))
    return "\n".join([in_terminal(found, tables), *lines, f"written: {out / name}.md, .csv; {', '.join(figures)}"])


def rates_of(found: Found) -> tuple[list[Rated], list[str]]:
    """DSR and ERR of the rows `grpo` and `tapo` with the same swept values; a sentence where they cannot be told."""
    pairs: dict[str, dict[str, Outcome]] = {}
    for outcome in found.outcomes:
        if outcome.runs and outcome.row.base in RATED:
            pairs.setdefault(outcome.row.variant, {})[outcome.row.base] = outcome
    rated, faults = [], []
    for first, second in ((of[RATED[0]], of[RATED[1]]) for of in pairs.values() if len(of) == len(RATED)):
        try:
            rated.append(rate(first, second))
        except ValueError as error:
            faults.append(f"no DSR and ERR of “{first.row.label}” and “{second.row.label}”: {sentence(str(error))}")
    return [of for of in rated if of], faults


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

    from nemo_tapo.utils.text_table import text_table

    console = Console(file=io.StringIO(), width=220, highlight=False)
    console.print(f"{found.sweep.title} ({found.sweep.name})", markup=False)
    for table in tables:
        console.print(text_table(table.title, table.head, table.rows))
        console.print("".join(f"{line}\n" for line in table.below), markup=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
