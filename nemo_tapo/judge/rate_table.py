"""DSR and ERR as Table 2 of the paper has them: Markdown for a file, the same for the terminal."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from nemo_tapo.evaluation.paper_results import TABLE_2, TABLE_2_BENCHMARKS
from nemo_tapo.judge.rates import RATES

NOTHING = "not defined"


def rows_of(result: dict[str, Any]) -> tuple[list[str], list[list[str]]]:
    """Header and rows of a judge.json's table: models, their difference, the paper's where it has a benchmark."""
    columns = [(rate, benchmark) for rate in RATES for benchmark in result["benchmarks"]]
    header = ["Method", *(f"{rate}, {benchmark}" for rate, benchmark in columns)]
    body = [
        [name, *(_rate(result["benchmarks"][benchmark]["models"][name][rate]) for rate, benchmark in columns)]
        for name in result["models"]
    ]
    if len(result["models"]) == 2:
        first, second = result["models"]
        cells = [_difference(result["benchmarks"][benchmark]["difference"][rate]) for rate, benchmark in columns]
        body.append([f"Δ ({second} - {first})", *cells])
    places = {benchmark: place(benchmark) for benchmark in result["benchmarks"]}
    if any(where is not None for where in places.values()):
        body += [
            [f"paper: {name}", *(_paper(rates[rate], places[benchmark], name == "Δ") for rate, benchmark in columns)]
            for name, rates in TABLE_2.items()
        ]
    return header, body


def place(benchmark: str) -> int | None:
    """The paper's column for a benchmark, by the contest and the year in its name ("aime_2024", "AIME24")."""
    plain = "".join(c for c in benchmark.lower() if c.isalnum())
    for i, name in enumerate(TABLE_2_BENCHMARKS):
        contest, year = name.lower().split()
        if plain.startswith(contest) and plain.endswith(year):
            return i
    return None


def markdown(header: Sequence[str], body: Sequence[Sequence[str]]) -> str:
    """A table of GitHub's Markdown."""
    lines = [list(header), ["---"] * len(header), *map(list, body)]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in line) + " |" for line in lines) + "\n"


def _rate(rate: dict[str, Any]) -> str:
    if rate["value"] is None:
        return f"{NOTHING} (0/0)"
    low_high = rate["interval95"]
    interval = f" ({100 * low_high[0]:.1f} to {100 * low_high[1]:.1f})" if low_high else ""
    return f"{100 * rate['value']:.1f}{interval}, {rate['numerator']}/{rate['denominator']}"


def _difference(difference: dict[str, Any]) -> str:
    if difference["value"] is None:
        return NOTHING
    low_high = difference["interval95"]
    interval = f" ({100 * low_high[0]:+.1f} to {100 * low_high[1]:+.1f})" if low_high else ""
    return f"{100 * difference['value']:+.1f}{interval}"


def _paper(values: tuple[float, ...], where: int | None, signed: bool) -> str:
    return "" if where is None else f"{values[where]:+.1f}" if signed else f"{values[where]:.1f}"
