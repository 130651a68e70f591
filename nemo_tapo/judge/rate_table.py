"""Make the table of DSR and ERR in the form of the paper's Table 2, for a Markdown file and for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_tapo.evaluation.paper_results import TABLE_2, TABLE_2_BENCHMARKS
from nemo_tapo.judge.rates import RATES

NOT_DEFINED = "not defined"


def make_rows(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Return the header and the rows of a judge.json's table.

    The rows are the models, their difference if there are two, and the paper's if it has one of the benchmarks.
    """
    columns = [(rate, benchmark) for rate in RATES for benchmark in result["benchmarks"]]
    header = ["Method", *(f"{rate}, {benchmark}" for rate, benchmark in columns)]
    body = [
        [name, *(_format_rate(result["benchmarks"][benchmark]["models"][name][rate]) for rate, benchmark in columns)]
        for name in result["models"]
    ]
    if len(result["models"]) == 2:
        first, second = result["models"]
        cells = [_format_difference(result["benchmarks"][benchmark]["difference"][rate]) for rate, benchmark in columns]
        body.append([f"Δ ({second} - {first})", *cells])
    paper_columns = {benchmark: find_paper_column(benchmark) for benchmark in result["benchmarks"]}
    if any(column is not None for column in paper_columns.values()):
        body += [
            [
                f"paper: {name}",
                *(
                    _format_paper_value(rates[rate], paper_columns[benchmark], name == "Δ")
                    for rate, benchmark in columns
                ),
            ]
            for name, rates in TABLE_2.items()
        ]
    return header, body


def find_paper_column(benchmark: str) -> int | None:
    """Return the index of the paper's column for a benchmark, by the contest and the year in its name; None if none.

    >>> find_paper_column("aime_2024"), find_paper_column("AIME25"), find_paper_column("arithmetic")
    (0, 1, None)
    """
    plain = "".join(c for c in benchmark.lower() if c.isalnum())
    for i, name in enumerate(TABLE_2_BENCHMARKS):
        contest, year = name.lower().split()
        if plain.startswith(contest) and plain.endswith(year):
            return i
    return None


def format_markdown_table(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """Format a table in GitHub's Markdown.

    >>> format_markdown_table(["Method", "DSR"], [["GRPO", "34.0"]])
    '| Method | DSR |\\n| --- | --- |\\n| GRPO | 34.0 |\\n'
    """
    lines = [list(header), ["---"] * len(header), *map(list, body)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _format_rate(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return f"{NOT_DEFINED} (0/0)"
    low_high = rate["interval95"]
    interval = f" ({100 * low_high[0]:.1f} to {100 * low_high[1]:.1f})" if low_high else ""
    return f"{100 * rate['value']:.1f}{interval}, {rate['numerator']}/{rate['denominator']}"


def _format_difference(difference: dict[str, Any]) -> str:
    if difference["value"] is None:
        return NOT_DEFINED
    low_high = difference["interval95"]
    interval = f" ({100 * low_high[0]:+.1f} to {100 * low_high[1]:+.1f})" if low_high else ""
    return f"{100 * difference['value']:+.1f}{interval}"


def _format_paper_value(values: tuple[float, ...], column: int | None, signed: bool) -> str:
    return "" if column is None else f"{values[column]:+.1f}" if signed else f"{values[column]:.1f}"
