"""Format a sweep's report as text: results, intervals, cost, counters, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_tapo.evaluation import paper_results
from nemo_tapo.judge.rate_table import find_paper_column, format_markdown_table
from nemo_tapo.sweeps.report import training_effort
from nemo_tapo.sweeps.report.estimates import Estimate, Interval, estimate_difference, estimate_row
from nemo_tapo.sweeps.report.read_runs import RowOutcome, SweepResults

Estimates = Mapping[str, Mapping[str, Estimate]]  # {benchmark: {measure: Estimate}}

LEGEND = (
    "Pass@k in percent, unbiased, the mean over seeds; ± is half of the 95% interval over seeds (Student's t), there "
    "from two seeds on; what goes beyond 0 and 100 is cut. Over problems: problems resampled, seeds averaged. Over "
    "both: seeds and problems resampled, too narrow with few seeds. A difference Δ is paired: the same seeds, the same "
    "problems; in points.",
    "The paper's figures are of Qwen3-8B on other problems: a reference for the order of the rows, not their height.",
)
EFFORT_LEGEND = (
    "Per run, the mean over seeds. Tokens sampled are those of rollouts, tokens synthesised those of answers to the "
    "synthesis prompt, tokens trained those with loss; seconds are of the steps alone. Accuracy is of the training "
    "rollouts: at equal steps over the last tenth of as many steps as the shortest run has; at equal tokens over the "
    "tenth of the steps before as many tokens were sampled, synthesis included, as the cheapest run of all samples."
)
WHY_LEGEND = "Shares over the first and the last tenth of the steps; reflection: evaluated responses that say “Wait,”."


@dataclass(frozen=True)
class ReportTable:
    """A table of text; every row is as long as the head.

    >>> table = ReportTable("Counters", head=["", "seeds"], rows=[["+ TAPO", "5"]])
    >>> len(table.head) == len(table.rows[0])
    True
    """

    title: str
    head: list[str]
    rows: list[list[str]]
    below: tuple[str, ...] = ()  # sentences to print below it


@dataclass(frozen=True)
class RowEstimates:
    """The estimates of one row, and of its difference from a baseline row."""

    outcome: RowOutcome
    means: Estimates
    baseline: RowOutcome | None  # the row from which its difference is taken
    gain: Estimates
    common_seeds: tuple[int, ...]  # seeds that the difference is over


def compute_row_estimates(results: SweepResults) -> list[RowEstimates]:
    """Estimate every row, and its difference from a row above it with the same swept values.

    The baseline is the nearest such row that has a run, or the first one if the sweep says so.
    """
    rows: list[RowEstimates] = []
    for outcome in results.outcomes:
        before = [n.outcome for n in rows if n.outcome.runs and n.outcome.row.variant == outcome.row.variant]
        other = before[0 if results.sweep.against == "first" else -1] if before else None
        gain, common = estimate_difference(other, outcome) if other and outcome.runs else ({}, ())
        rows.append(RowEstimates(outcome, estimate_row(outcome), other, gain, common))
    return rows


def make_tables(results: SweepResults, numbers: Sequence[RowEstimates]) -> list[ReportTable]:
    """Make all tables of the report except DSR and ERR."""
    benchmarks = list(dict.fromkeys(name for n in numbers for name in n.means))
    tables = []
    for benchmark in benchmarks:
        tables.append(make_main_table(results, numbers, benchmark))
        tables.append(make_interval_table(numbers, benchmark))
    if any(n.outcome.row.train and n.outcome.runs for n in numbers):
        tables += [make_effort_table(numbers), make_counter_table(numbers)]
    return tables


def make_notes(results: SweepResults, numbers: Sequence[RowEstimates]) -> list[str]:
    """Return sentences on what is missing or not as it should be, so that nothing is left out silently."""
    lines = []
    for n in numbers:
        if not n.outcome.runs:
            lines.append(f"“{n.outcome.row.label}”: no run that counts.")
        elif n.baseline and n.baseline.seeds != n.outcome.seeds:
            over = (
                f"the difference is over {_format_seeds(n.common_seeds)}"
                if n.common_seeds
                else "there is no difference"
            )
            lines.append(
                f"“{n.outcome.row.label}” has {_format_seeds(n.outcome.seeds)}, “{n.baseline.row.label}” has "
                f"{_format_seeds(n.baseline.seeds)}: {over}."
            )
    for row, seeds in results.missing_seeds:
        are = "were asked for and are" if len(seeds) > 1 else "was asked for and is"
        lines.append(f"{row.name}: {_format_seeds(seeds)} {are} not there.")
    for run in results.excluded:
        lines.append(f"{run.folder}: does not count: {format_sentence(run.missing)}")
    return lines


def format_sentence(text: str) -> str:
    """Return the text on one line, with exactly one full stop.

    >>> format_sentence("the disk" + chr(10) + "is full")
    'the disk is full.'
    """
    return " ".join(text.split()).rstrip(".") + "."


def _format_seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


# ---- tables ----------------------------------------------------------------------------------------------------------


def select_ks(results: SweepResults, numbers: Sequence[RowEstimates]) -> list[int]:
    """Return the k of pass@k to show: 1 .. n for Table 1, 1 and n for other tables."""
    names = {measure for row in numbers for of in row.means.values() for measure in of}
    n = max(int(name.removeprefix("pass@")) for name in names if name.startswith("pass@"))
    table1 = (results.sweep.paper or "").startswith("table1")
    return list(range(1, n + 1)) if table1 else sorted({1, n})


def make_main_table(results: SweepResults, numbers: Sequence[RowEstimates], benchmark: str) -> ReportTable:
    """Make the table with rows and columns as in the paper, and the paper's own numbers to the right."""
    ks = select_ks(results, numbers)
    has_paper_values = any(get_paper_values(results, n.outcome) for n in numbers)
    papers = _get_paper_benchmarks(benchmark) if has_paper_values else []
    columns = [(b, k) for b in papers for k in (ks if len(papers) == 1 else (1, 5))]
    head = ["", "seeds", *(f"Pass@{k}" for k in ks), *(f"paper, {b}, Pass@{k}" for b, k in columns)]
    rows = []
    for n in numbers:
        means, paper_values = n.means.get(benchmark, {}), get_paper_values(results, n.outcome)
        percents = [_format_estimate(means.get(f"pass@{k}")) for k in ks]
        beside = [_format_paper_value(paper_values.get(b, {}).get(k)) for b, k in columns]
        rows.append([n.outcome.row.label, str(len(n.outcome.runs)), *percents, *beside])
    return ReportTable(benchmark, head, rows)


def _get_paper_benchmarks(benchmark: str) -> list[str]:
    """Return the paper's benchmark that this one is; all of them if it is none of the paper's."""
    where = find_paper_column(benchmark)
    return list(paper_results.TABLE_1) if where is None else [list(paper_results.TABLE_1)[where]]


def get_paper_values(results: SweepResults, outcome: RowOutcome) -> dict[str, dict[int, float]]:
    """Return the paper's numbers for a row: {benchmark: {k: pass@k in percent}}."""
    return paper_results.get_pass_rates(results.sweep.paper, outcome.row.paper or outcome.row.label)


def make_interval_table(numbers: Sequence[RowEstimates], benchmark: str) -> ReportTable:
    """Make the table of pass@1 and pass@n with every interval and the paired difference."""
    head = [
        "",
        "measure",
        "mean",
        "over seeds",
        "over problems",
        "Δ",
        "from",
        "over seeds",
        "over problems",
        "over both",
    ]
    rows = []
    for n in numbers:
        means, gain = n.means.get(benchmark, {}), n.gain.get(benchmark, {})
        for measure in _pick_first_and_last([name for name in means if name.startswith("pass@")]):
            e, d = means[measure], gain.get(measure)
            rows.append(
                [
                    n.outcome.row.label,
                    measure,
                    f"{100 * e.value:.2f}",
                    _format_interval(e.over_seeds),
                    _format_interval(e.over_problems),
                ]
                + ([""] * 5 if d is None or n.baseline is None else _format_difference(d, n.baseline.row.label))
            )
    return ReportTable(f"{benchmark}: 95% intervals and paired differences", head, rows)


def _format_difference(d: Estimate, label: str) -> list[str]:
    ends = (d.over_seeds, d.over_problems, d.over_both)
    return [f"{100 * d.value:+.2f}", label, *(_format_interval(e, signed=True) for e in ends)]


def _pick_first_and_last(names: Sequence[str]) -> list[str]:
    return [names[0], names[-1]] if len(names) > 1 else list(names)


def make_effort_table(numbers: Sequence[RowEstimates]) -> ReportTable:
    """Make the table of what was spent, with training accuracy at equal steps and at equal tokens."""
    trained = [n.outcome for n in numbers if n.outcome.row.train and n.outcome.runs]
    steps, budget = training_effort.find_common_budget(trained)
    head = ["", "steps", "tokens sampled", "tokens synthesised", "tokens trained", "rows", "seconds"]
    at = ["accuracy at equal steps", "accuracy at equal tokens"]
    rows = []
    for outcome in trained:
        e = training_effort.compute_effort(outcome)
        spent = [_format_number(v) for v in (e.steps, e.sampled, e.synthesised, e.trained, e.rows, e.seconds)]
        at_steps = training_effort.compute_accuracy_at_step(outcome, steps)
        at_tokens = None if budget is None else training_effort.compute_accuracy_at_tokens(outcome, budget)
        rows.append([outcome.row.label, *spent, _format_share(at_steps), _format_share(at_tokens)])
    return ReportTable("Compute spent", [*head, *at], rows)


def make_counter_table(numbers: Sequence[RowEstimates]) -> ReportTable:
    """Make the table of the runs' own counters."""
    pairs = ["constructions right", "groups with mixed rewards", "training accuracy"]
    head = ["", *(f"{name}, first → last" for name in pairs), "with reflection", "tokens a response"]
    rows = []
    for n in numbers:
        if n.outcome.runs:
            w = training_effort.compute_counters(n.outcome)
            ends = [_format_change(pair) for pair in (w.correct, w.mixed, w.accuracy)]
            rows.append([n.outcome.row.label, *ends, _format_share(w.reflection), _format_number(w.tokens)])
    return ReportTable("Counters", head, rows)


# ---- text ------------------------------------------------------------------------------------------------------------


def format_markdown(
    results: SweepResults, tables: Sequence[ReportTable], lines: Sequence[str], figures: Sequence[str]
) -> str:
    """Return the text of the file <name>.md. figures: names of the PNG files beside it."""
    parts = [f"# {results.sweep.title} ({results.sweep.name})\n"]
    parts += [f"\n- {line}" for line in lines] + (["\n"] if lines else [])
    for table in tables:
        parts.append(f"\n## {table.title}\n\n{format_markdown_table(table.head, table.rows)}")
        parts += [f"\n{line}\n" for line in table.below]
    parts += [f"\n![{name}]({name})\n" for name in figures]
    parts += [f"\n{line}\n" for line in (*LEGEND, EFFORT_LEGEND, WHY_LEGEND)]
    return "".join(parts)


def _format_estimate(e: Estimate | None) -> str:
    if e is None:
        return "-"
    half = f" ± {100 * (e.over_seeds[1] - e.value):.2f}" if e.over_seeds else ""
    return f"{100 * e.value:.2f}{half}"


def _format_interval(interval: Interval | None, signed: bool = False) -> str:
    return "-" if interval is None else format_percent_interval(interval, signed)


def format_percent_interval(interval: Interval, signed: bool = False, digits: int = 2) -> str:
    """Format an interval of shares in percent; `signed` for an interval of differences.

    The ends are cut to what a share, or a difference of shares, can be: Student's t may go beyond it.

    >>> format_percent_interval((0.125, 1.2)), format_percent_interval((-0.05, 0.1), signed=True, digits=1)
    ('12.50 to 100.00', '-5.0 to +10.0')
    """
    sign, least = ("+", -1.0) if signed else ("", 0.0)
    low, high = (100 * min(max(end, least), 1.0) for end in interval)
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def _format_paper_value(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _format_number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _format_share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _format_change(pair: tuple[float | None, float | None]) -> str:
    return "-" if pair == (None, None) else f"{_format_share(pair[0])} → {_format_share(pair[1])}"
