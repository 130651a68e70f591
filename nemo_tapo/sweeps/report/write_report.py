"""Write a sweep's report: its tables as text and as <folder>/report/<table>.{md,csv,png}.

The command is `nemo-tapo report SWEEP_FOLDER`.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.report import plots
from nemo_tapo.sweeps.report.csv_file import format_csv
from nemo_tapo.sweeps.report.read_runs import (
    RowOutcome,
    SweepResults,
    choose_sweeps,
    read_saved_sweeps,
    read_sweep_results,
)
from nemo_tapo.sweeps.report.reflection_rates import ReflectionRates, compute_reflection_rates, make_table2
from nemo_tapo.sweeps.report.table_figure import draw_table_figure
from nemo_tapo.sweeps.report.text_report import (
    ReportTable,
    RowEstimates,
    compute_row_estimates,
    format_markdown,
    format_sentence,
    make_notes,
    make_tables,
)
from nemo_tapo.utils.files import replace_text

REPORT_FOLDER = "report"  # inside the sweep's folder
TABLE2_ROWS = ("grpo", "tapo")  # base names of the rows of Table 2


def write_sweep_report(folder: Path, names: Sequence[str] = ()) -> str:
    """Write the report's files and return its tables as text.

    names: sweeps to report; without any, those that were run into the folder. A sweep without a run that counts has no
    files, and its text says so.

    Raises ValueError for an unknown name and for a folder that holds no sweep.
    """
    _, faults = read_saved_sweeps(folder)
    tables = [write_table(folder, read_sweep_results(folder, sweep)) for sweep in choose_sweeps(folder, names)]
    return "\n\n".join([*tables, *faults])


def write_table(folder: Path, results: SweepResults) -> str:
    """Write the files of one sweep; return its tables and notes as text."""
    name, out = results.sweep.name, folder / REPORT_FOLDER
    numbers = compute_row_estimates(results)
    lines = make_notes(results, numbers)
    if not any(n.outcome.runs for n in numbers):
        return "\n".join([f"{results.sweep.title} ({name}): no run is done.", *lines])
    rated, faults = compute_rates(results)
    lines += faults
    tables = [*make_tables(results, numbers), *map(make_table2, rated)]
    out.mkdir(parents=True, exist_ok=True)
    figures = draw_figures(results, numbers, out)
    replace_text(out / f"{name}.md", format_markdown(results, tables, lines, figures))
    replace_text(out / f"{name}.csv", format_csv(results, numbers, rated))
    return "\n".join([format_tables(results, tables), *lines, f"written: {out / name}.md, .csv; {', '.join(figures)}"])


def compute_rates(results: SweepResults) -> tuple[list[ReflectionRates], list[str]]:
    """Compute DSR and ERR of the rows `grpo` and `tapo`, for every combination of swept values.

    Also return a sentence for each combination whose rates cannot be computed.
    """
    pairs: dict[str, dict[str, RowOutcome]] = {}
    for outcome in results.outcomes:
        if outcome.runs and outcome.row.base_name in TABLE2_ROWS:
            pairs.setdefault(outcome.row.variant, {})[outcome.row.base_name] = outcome
    rated, faults = [], []
    for first, second in (
        (rows[TABLE2_ROWS[0]], rows[TABLE2_ROWS[1]]) for rows in pairs.values() if len(rows) == len(TABLE2_ROWS)
    ):
        try:
            rated.append(compute_reflection_rates(first, second))
        except ValueError as error:
            faults.append(
                f"no DSR and ERR of “{first.row.label}” and “{second.row.label}”: {format_sentence(str(error))}"
            )
    return [rows for rows in rated if rows], faults


def draw_figures(results: SweepResults, numbers: Sequence[RowEstimates], out: Path) -> list[str]:
    """Draw the table and, of trained rows, the panels of Figure 3; return the names of the files."""
    name, panels = results.sweep.name, "figure3.png"
    panels = panels if name == "figure3" else f"{name}-{panels}"
    benchmarks = list(dict.fromkeys(b for n in numbers for b in n.means))
    files = [f"{name}-table.png" if name == "figure3" else f"{name}.png"]
    draw_table_figure(results.sweep.title, numbers, benchmarks[-1], out / files[0])  # the average, if there are several
    curves = {o.row.label: plots.merge_seeds(_list_metrics(o)) for o in results.outcomes if o.row.train and o.runs}
    if any(curves.values()):
        plots.draw_figure3(curves, out / panels)
        files.append(panels)
    return files


def _list_metrics(outcome: RowOutcome) -> list[plots.Metrics]:
    return [run.metrics for run in outcome.runs.values()]


def format_tables(results: SweepResults, tables: Sequence[ReportTable]) -> str:
    """Format the tables as plain text, as wide as they need."""
    from rich.console import Console

    from nemo_tapo.utils.text_table import text_table

    console = Console(file=io.StringIO(), width=220, highlight=False)
    console.print(f"{results.sweep.title} ({results.sweep.name})", markup=False)
    for table in tables:
        console.print(text_table(table.title, table.head, table.rows))
        console.print("".join(f"{line}\n" for line in table.below), markup=False)
    assert isinstance(console.file, io.StringIO)
    return "\n".join(line.rstrip() for line in console.file.getvalue().splitlines())
