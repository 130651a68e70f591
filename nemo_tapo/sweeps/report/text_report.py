"""A sweep's report as text: the table in the paper's layout, its intervals, what it cost, why, and what is missing."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from nemo_tapo.evaluation import paper_results
from nemo_tapo.judge.rate_table import markdown, place
from nemo_tapo.sweeps.report import training_effort
from nemo_tapo.sweeps.report.estimates import Estimate, Interval, difference, of_row
from nemo_tapo.sweeps.report.read_runs import Found, Outcome

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
class Grid:
    """A table of text; all rows are as long as the head."""

    title: str
    head: list[str]
    rows: list[list[str]]
    below: tuple[str, ...] = ()  # sentences


@dataclass(frozen=True)
class Numbers:
    """Of one row."""

    outcome: Outcome
    means: Estimates
    other: Outcome | None  # the row that its difference is taken from
    gain: Estimates
    common: tuple[int, ...]  # seeds of the difference


def numbers_of(found: Found) -> list[Numbers]:
    """Every row's numbers; a difference is to the nearest row above that has a run, or to the first such row where the
    sweep says so, with the same swept values."""
    out: list[Numbers] = []
    for outcome in found.outcomes:
        before = [n.outcome for n in out if n.outcome.runs and n.outcome.row.variant == outcome.row.variant]
        other = before[0 if found.sweep.against == "first" else -1] if before else None
        gain, common = difference(other, outcome) if other and outcome.runs else ({}, ())
        out.append(Numbers(outcome, of_row(outcome), other, gain, common))
    return out


def grids(found: Found, numbers: Sequence[Numbers]) -> list[Grid]:
    """All tables of the report but DSR and ERR."""
    benchmarks = list(dict.fromkeys(name for n in numbers for name in n.means))
    out = []
    for benchmark in benchmarks:
        out.append(layout(found, numbers, benchmark))
        out.append(intervals(numbers, benchmark))
    if any(n.outcome.row.train and n.outcome.runs for n in numbers):
        out += [effort(numbers), why(numbers)]
    return out


def notes(found: Found, numbers: Sequence[Numbers]) -> list[str]:
    """Sentences on what is not there or not as it should be: nothing is left out silently."""
    lines = []
    for n in numbers:
        if not n.outcome.runs:
            lines.append(f"“{n.outcome.row.label}”: no run that counts.")
        elif n.other and n.other.seeds != n.outcome.seeds:
            over = f"the difference is over {_seeds(n.common)}" if n.common else "there is no difference"
            lines.append(
                f"“{n.outcome.row.label}” has {_seeds(n.outcome.seeds)}, “{n.other.row.label}” has "
                f"{_seeds(n.other.seeds)}: {over}."
            )
    for row, seeds in found.absent:
        are = "were asked for and are" if len(seeds) > 1 else "was asked for and is"
        lines.append(f"{row.name}: {_seeds(seeds)} {are} not there.")
    for run in found.left_out:
        lines.append(f"{run.folder}: does not count: {sentence(run.missing)}")
    return lines


def sentence(text: str) -> str:
    """On one line, with one full stop."""
    return " ".join(text.split()).rstrip(".") + "."


def _seeds(seeds: Sequence[int]) -> str:
    return f"seed{'s' * (len(seeds) != 1)} {', '.join(map(str, seeds))}"


# ---- tables ----------------------------------------------------------------------------------------------------------


def shown_ks(found: Found, numbers: Sequence[Numbers]) -> list[int]:
    """1 .. n for Table 1, 1 and n for the others."""
    names = {measure for row in numbers for of in row.means.values() for measure in of}
    n = max(int(name.removeprefix("pass@")) for name in names if name.startswith("pass@"))
    table1 = (found.sweep.paper or "").startswith("table1")
    return list(range(1, n + 1)) if table1 else sorted({1, n})


def layout(found: Found, numbers: Sequence[Numbers], benchmark: str) -> Grid:
    """Rows and columns as the paper has them, its own figures to the right."""
    ks = shown_ks(found, numbers)
    known = any(theirs_of(found, n.outcome) for n in numbers)
    papers = _papers(benchmark) if known else []
    columns = [(b, k) for b in papers for k in (ks if len(papers) == 1 else (1, 5))]
    head = ["", "seeds", *(f"Pass@{k}" for k in ks), *(f"paper, {b}, Pass@{k}" for b, k in columns)]
    rows = []
    for n in numbers:
        of, theirs = n.means.get(benchmark, {}), theirs_of(found, n.outcome)
        own = [_percent(of.get(f"pass@{k}")) for k in ks]
        beside = [_given(theirs.get(b, {}).get(k)) for b, k in columns]
        rows.append([n.outcome.row.label, str(len(n.outcome.runs)), *own, *beside])
    return Grid(benchmark, head, rows)


def _papers(benchmark: str) -> list[str]:
    """The paper's benchmark that this one is; all of them if it is none."""
    where = place(benchmark)
    return list(paper_results.TABLE_1) if where is None else [list(paper_results.TABLE_1)[where]]


def theirs_of(found: Found, outcome: Outcome) -> dict[str, dict[int, float]]:
    """What the paper has for a row: {benchmark: {k: pass@k in percent}}."""
    return paper_results.passes(found.sweep.paper, outcome.row.paper or outcome.row.label)


def intervals(numbers: Sequence[Numbers], benchmark: str) -> Grid:
    """pass@1 and pass@n with every interval, and the paired difference."""
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
        of, gain = n.means.get(benchmark, {}), n.gain.get(benchmark, {})
        for measure in _first_and_last([name for name in of if name.startswith("pass@")]):
            e, d = of[measure], gain.get(measure)
            rows.append(
                [n.outcome.row.label, measure, f"{100 * e.value:.2f}", _ends(e.over_seeds), _ends(e.over_problems)]
                + ([""] * 5 if d is None or n.other is None else _difference(d, n.other.row.label))
            )
    return Grid(f"{benchmark}: 95% intervals and paired differences", head, rows)


def _difference(d: Estimate, label: str) -> list[str]:
    ends = (d.over_seeds, d.over_problems, d.over_both)
    return [f"{100 * d.value:+.2f}", label, *(_ends(e, signed=True) for e in ends)]


def _first_and_last(names: Sequence[str]) -> list[str]:
    return [names[0], names[-1]] if len(names) > 1 else list(names)


def effort(numbers: Sequence[Numbers]) -> Grid:
    """What was spent, and training accuracy at equal steps and at equal tokens."""
    trained = [n.outcome for n in numbers if n.outcome.row.train and n.outcome.runs]
    steps, budget = training_effort.in_common(trained)
    head = ["", "steps", "tokens sampled", "tokens synthesised", "tokens trained", "rows", "seconds"]
    at = ["accuracy at equal steps", "accuracy at equal tokens"]
    rows = []
    for outcome in trained:
        e = training_effort.effort(outcome)
        spent = [_number(v) for v in (e.steps, e.sampled, e.synthesised, e.trained, e.rows, e.seconds)]
        at_steps = training_effort.accuracy_at_step(outcome, steps)
        at_tokens = None if budget is None else training_effort.accuracy_at(outcome, budget)
        rows.append([outcome.row.label, *spent, _share(at_steps), _share(at_tokens)])
    return Grid("Compute spent", [*head, *at], rows)


def why(numbers: Sequence[Numbers]) -> Grid:
    """The runs' own counters."""
    pairs = ["constructions right", "groups with mixed rewards", "training accuracy"]
    head = ["", *(f"{name}, first → last" for name in pairs), "with reflection", "tokens a response"]
    rows = []
    for n in numbers:
        if n.outcome.runs:
            w = training_effort.why(n.outcome)
            ends = [_first_last(pair) for pair in (w.correct, w.mixed, w.accuracy)]
            rows.append([n.outcome.row.label, *ends, _share(w.reflection), _number(w.tokens)])
    return Grid("Counters", head, rows)


# ---- text ------------------------------------------------------------------------------------------------------------


def as_markdown(found: Found, tables: Sequence[Grid], lines: Sequence[str], figures: Sequence[str]) -> str:
    """The file <name>.md; figures: names of the PNGs beside it."""
    parts = [f"# {found.sweep.title} ({found.sweep.name})\n"]
    parts += [f"\n- {line}" for line in lines] + (["\n"] if lines else [])
    for table in tables:
        parts.append(f"\n## {table.title}\n\n{markdown(table.head, table.rows)}")
        parts += [f"\n{line}\n" for line in table.below]
    parts += [f"\n![{name}]({name})\n" for name in figures]
    parts += [f"\n{line}\n" for line in (*LEGEND, EFFORT_LEGEND, WHY_LEGEND)]
    return "".join(parts)


def _percent(e: Estimate | None) -> str:
    if e is None:
        return "-"
    half = f" ± {100 * (e.over_seeds[1] - e.value):.2f}" if e.over_seeds else ""
    return f"{100 * e.value:.2f}{half}"


def _ends(interval: Interval | None, signed: bool = False) -> str:
    return "-" if interval is None else percent_ends(interval, signed)


def percent_ends(interval: Interval, signed: bool = False, digits: int = 2) -> str:
    """`12.50 to 100.00`: of shares or, signed, of their differences; Student's t knows no ends, percentages do."""
    sign, least = ("+", -1.0) if signed else ("", 0.0)
    low, high = (100 * min(max(end, least), 1.0) for end in interval)
    return f"{low:{sign}.{digits}f} to {high:{sign}.{digits}f}"


def _given(value: float | None) -> str:
    return "-" if value is None else f"{value:.2f}"


def _number(value: float | None) -> str:
    return "-" if value is None else f"{value:,.0f}"


def _share(value: float | None) -> str:
    return "-" if value is None else f"{value:.1%}"


def _first_last(pair: tuple[float | None, float | None]) -> str:
    return "-" if pair == (None, None) else f"{_share(pair[0])} → {_share(pair[1])}"
