"""A sweep's report for programs: <name>.csv, a line a row, benchmark and measure; shares, not percent."""

from __future__ import annotations

import csv
import io
from collections.abc import Iterator, Mapping, Sequence

from nemo_tapo.evaluation import paper_results
from nemo_tapo.sweeps.report import training_effort
from nemo_tapo.sweeps.report.estimates import Estimate, Interval, over_seeds
from nemo_tapo.sweeps.report.read_runs import Found, Outcome
from nemo_tapo.sweeps.report.reflection_rates import Rated
from nemo_tapo.sweeps.report.text_report import Numbers, theirs_of

OF_MEAN = ("mean", "seeds_low", "seeds_high", "problems_low", "problems_high", "both_low", "both_high")
OF_DIFFERENCE = tuple("difference" if name == "mean" else f"difference_{name}" for name in OF_MEAN)
PAPERS = {name: f"paper_{name.replace(' ', '')}_percent" for name in paper_results.TABLE_1}
HEAD = (
    "table", "row", "label", "benchmark", "measure", "seeds", *OF_MEAN, "from", "difference_seeds", *OF_DIFFERENCE,
    *PAPERS.values(),
)  # fmt: skip
ENDS = ("first", "last")  # tenth of the steps
Line = Mapping[str, object]


def as_csv(found: Found, numbers: Sequence[Numbers], rated: Sequence[Rated]) -> str:
    """Of every row, also of one without a run, whose numbers are empty: pass@k and the like by benchmark; then, with
    an empty benchmark, what was spent, the counters, and DSR and ERR.
    """
    text = io.StringIO()
    writer = csv.DictWriter(text, HEAD, restval="", lineterminator="\n")
    writer.writeheader()
    trained = [n.outcome for n in numbers if n.outcome.row.train and n.outcome.runs]
    in_common = training_effort.in_common(trained)
    measured = {b: list(of) for b, of in next((n.means for n in numbers if n.means), {}).items()}
    for n in numbers:
        named = {"table": found.sweep.name, "row": n.outcome.row.name, "label": n.outcome.row.label}
        for line in [
            *_results(found, n, measured),
            *_counters(n.outcome, *in_common),
            *_rates(n.outcome, rated),
        ]:
            writer.writerow({**named, "seeds": _list(n.outcome.seeds), **line})
    return text.getvalue()


def _results(found: Found, n: Numbers, measured: Mapping[str, Sequence[str]]) -> Iterator[Line]:
    theirs = theirs_of(found, n.outcome)
    for benchmark, measures in measured.items():
        for measure in measures:
            k = int(measure.removeprefix("pass@")) if measure.startswith("pass@") else 0
            line: dict[str, object] = {"benchmark": benchmark, "measure": measure}
            line |= {PAPERS[b]: of[k] for b, of in theirs.items() if k in of}
            if e := n.means.get(benchmark, {}).get(measure):
                line |= _numbers(OF_MEAN, e)
            if (d := n.gain.get(benchmark, {}).get(measure)) and n.other:
                line |= {"from": n.other.row.name, "difference_seeds": _list(n.common), **_numbers(OF_DIFFERENCE, d)}
            yield line


def _counters(outcome: Outcome, steps: int, tokens: float | None) -> Iterator[Line]:
    """What the tables "Compute spent" and "Counters" show. steps, tokens: those that all runs have."""
    told: dict[str, float | None] = {}
    if outcome.row.train:
        told |= vars(training_effort.effort(outcome))
        told["accuracy_at_equal_steps"] = training_effort.accuracy_at_step(outcome, steps)
        told["accuracy_at_equal_tokens"] = None if tokens is None else training_effort.accuracy_at(outcome, tokens)
    w = training_effort.why(outcome)
    ends = {"constructions_right": w.correct, "mixed_groups": w.mixed, "training_accuracy": w.accuracy}
    if outcome.row.train:
        told |= {f"{name}_{end}": value for name, of in ends.items() for end, value in zip(ENDS, of, strict=True)}
    told |= {"with_reflection": w.reflection, "response_tokens": w.tokens}
    for measure, value in told.items():
        yield {"measure": measure, "mean": value}


def _rates(outcome: Outcome, rated: Sequence[Rated]) -> Iterator[Line]:
    """DSR and ERR of one of the two rows of Table 2, the difference at the second."""
    for of in rated:
        for rate in of.rates:
            if outcome is of.first:
                yield _rate(rate.name, rate.first, of.seeds)
            if outcome is of.second:
                gained = _over_seeds("difference", "difference_seeds", rate.gain, of.seeds)
                yield {**_rate(rate.name, rate.second, of.seeds), "from": of.first.row.name, **gained}


def _rate(name: str, values: Sequence[float | None], seeds: Sequence[int]) -> Line:
    return {"measure": name, **_over_seeds("mean", "seeds", values, seeds)}


def _over_seeds(mean: str, over: str, values: Sequence[float | None], seeds: Sequence[int]) -> Line:
    """Mean and interval, in the columns of these names, over the seeds whose rate is over some response."""
    known = {seed: value for seed, value in zip(seeds, values, strict=True) if value is not None}
    low, high = _pair(over_seeds([*known.values()]))
    return {over: _list([*known]), mean: training_effort.mean(values), f"{over}_low": low, f"{over}_high": high}


def _numbers(names: Sequence[str], e: Estimate) -> Line:
    ends = [end for interval in (e.over_seeds, e.over_problems, e.over_both) for end in _pair(interval)]
    return dict(zip(names, [e.value, *ends], strict=True))


def _pair(interval: Interval | None) -> tuple[object, object]:
    return interval or ("", "")


def _list(seeds: Sequence[int]) -> str:
    return " ".join(map(str, seeds))
