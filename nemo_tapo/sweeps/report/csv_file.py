"""Format a sweep's report for programs: <name>.csv, one line per row, benchmark and measure. Shares, not percent."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from nemo_tapo.evaluation import paper_results
from nemo_tapo.sweeps.report import training_effort
from nemo_tapo.sweeps.report.estimates import Estimate, Interval, compute_seed_interval
from nemo_tapo.sweeps.report.read_runs import RowOutcome, SweepResults
from nemo_tapo.sweeps.report.reflection_rates import ReflectionRates
from nemo_tapo.sweeps.report.text_report import RowEstimates, get_paper_values

MEAN_COLUMNS = ("mean", "seeds_low", "seeds_high", "problems_low", "problems_high", "both_low", "both_high")
DIFFERENCE_COLUMNS = tuple("difference" if name == "mean" else f"difference_{name}" for name in MEAN_COLUMNS)
PAPER_COLUMNS = {name: f"paper_{name.replace(' ', '')}_percent" for name in paper_results.TABLE_1}
COLUMNS = (
    "table", "row", "label", "benchmark", "measure", "seeds", *MEAN_COLUMNS, "from", "difference_seeds",
    *DIFFERENCE_COLUMNS, *PAPER_COLUMNS.values(),
)  # fmt: skip
ENDS = ("first", "last")  # the first and the last tenth of the steps
FORMULA_STARTS = tuple("=+-@")
Line = Mapping[str, object]


def format_csv(results: SweepResults, numbers: Sequence[RowEstimates], rated: Sequence[ReflectionRates]) -> str:
    """Return the CSV text. It has every row; one without a run has empty numbers.

    First come pass@k and the other measures of each benchmark. Then, with an empty benchmark, come what was spent, the
    counters, and DSR and ERR.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, COLUMNS, restval="", lineterminator="\n")
    writer.writeheader()
    trained = [n.outcome for n in numbers if n.outcome.row.train and n.outcome.runs]
    in_common = training_effort.find_common_budget(trained)
    measured = {b: list(of) for b, of in next((n.means for n in numbers if n.means), {}).items()}
    for n in numbers:
        row_columns = {"table": results.sweep.name, "row": n.outcome.row.name, "label": n.outcome.row.label}
        for line in [
            *_make_result_lines(results, n, measured),
            *_make_counter_lines(n.outcome, *in_common),
            *_make_rate_lines(n.outcome, rated),
        ]:
            cells = {**row_columns, "seeds": _join_seeds(n.outcome.seeds), **line}
            writer.writerow({name: defuse(cell) for name, cell in cells.items()})
    return text.getvalue()


def defuse(cell: object) -> object:
    """Return a cell that no spreadsheet takes for a formula: text that begins like one gets an apostrophe before it.

    >>> defuse("=HYPERLINK(A1)"), defuse(-0.5), defuse("tapo")
    ("'=HYPERLINK(A1)", -0.5, 'tapo')
    """
    return f"'{cell}" if isinstance(cell, str) and cell.lstrip()[:1] in FORMULA_STARTS else cell


def _make_result_lines(results: SweepResults, n: RowEstimates, measured: Mapping[str, Sequence[str]]) -> Iterator[Line]:
    paper_values = get_paper_values(results, n.outcome)
    for benchmark, measures in measured.items():
        for measure in measures:
            k = int(measure.removeprefix("pass@")) if measure.startswith("pass@") else 0
            line: dict[str, object] = {"benchmark": benchmark, "measure": measure}
            line |= {PAPER_COLUMNS[b]: of[k] for b, of in paper_values.items() if k in of}
            if e := n.means.get(benchmark, {}).get(measure):
                line |= _format_estimate(MEAN_COLUMNS, e)
            if (d := n.gain.get(benchmark, {}).get(measure)) and n.baseline:
                line |= {
                    "from": n.baseline.row.name,
                    "difference_seeds": _join_seeds(n.common_seeds),
                    **_format_estimate(DIFFERENCE_COLUMNS, d),
                }
            yield line


def _make_counter_lines(outcome: RowOutcome, steps: int, tokens: float | None) -> Iterator[Line]:
    """Yield what the tables "Compute spent" and "Counters" show. steps, tokens: those that all runs have."""
    values: dict[str, float | None] = {}
    if outcome.row.train:
        values |= vars(training_effort.compute_effort(outcome))
        values["accuracy_at_equal_steps"] = training_effort.compute_accuracy_at_step(outcome, steps)
        values["accuracy_at_equal_tokens"] = (
            None if tokens is None else training_effort.compute_accuracy_at_tokens(outcome, tokens)
        )
    w = training_effort.compute_counters(outcome)
    ends = {"constructions_right": w.correct, "mixed_groups": w.mixed, "training_accuracy": w.accuracy}
    if outcome.row.train:
        values |= {f"{name}_{end}": value for name, of in ends.items() for end, value in zip(ENDS, of, strict=True)}
    values |= {"with_reflection": w.reflection, "response_tokens": w.tokens}
    for measure, value in values.items():
        yield {"measure": measure, "mean": value}


def _make_rate_lines(outcome: RowOutcome, rated: Sequence[ReflectionRates]) -> Iterator[Line]:
    """Yield DSR and ERR if the row is one of the two in Table 2; the second row also has the difference."""
    for rates in rated:
        for rate in rates.rates:
            if outcome is rates.first:
                yield _make_rate_line(rate.name, rate.first, rates.seeds)
            if outcome is rates.second:
                difference = _summarise_seeds("difference", "difference_seeds", rate.gain, rates.seeds)
                yield {
                    **_make_rate_line(rate.name, rate.second, rates.seeds),
                    "from": rates.first.row.name,
                    **difference,
                }


def _make_rate_line(name: str, values: Sequence[float | None], seeds: Sequence[int]) -> Line:
    return {"measure": name, **_summarise_seeds("mean", "seeds", values, seeds)}


def _summarise_seeds(mean: str, over: str, values: Sequence[float | None], seeds: Sequence[int]) -> Line:
    """Return mean and interval in columns of these names, over the seeds for which the rate is defined."""
    known = {seed: value for seed, value in zip(seeds, values, strict=True) if value is not None}
    low, high = _get_ends(compute_seed_interval([*known.values()]))
    return {
        over: _join_seeds([*known]),
        mean: training_effort.mean_of_known(values),
        f"{over}_low": low,
        f"{over}_high": high,
    }


def _format_estimate(names: Sequence[str], e: Estimate) -> Line:
    ends = [end for interval in (e.over_seeds, e.over_problems, e.over_both) for end in _get_ends(interval)]
    return dict(zip(names, [e.value, *ends], strict=True))


def _get_ends(interval: Interval | None) -> tuple[object, object]:
    return interval or ("", "")


def _join_seeds(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))
