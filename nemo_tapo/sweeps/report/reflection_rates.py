"""Make Table 2 for a sweep of the generated task: DSR and ERR of two rows, seed by seed, by the task's own oracle."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.evaluation import paper_results
from nemo_tapo.evaluation.sample_store import read_selected
from nemo_tapo.judge import oracle
from nemo_tapo.judge.rates import RATES, JudgedResponse, count_by_problem, estimate_rate
from nemo_tapo.judge.responses import ModelResponses, find_boundary, get_problem, load_questions
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.report.estimates import compute_seed_interval
from nemo_tapo.sweeps.report.read_runs import RowOutcome, SweepRun
from nemo_tapo.sweeps.report.text_report import ReportTable, format_percent_interval
from nemo_tapo.tasks.generated import GENERATED_TASKS

NOTE = (
    "DSR: right responses without reflection, of the right ones. ERR: responses that located the error, diagnosed it "
    "and are right, of those with a correction. By the generated task's oracle, on the problems that both rows' runs "
    "of a seed solve at times; percent, mean over seeds, 95% intervals over seeds. Rates over no response are left out."
)


@dataclass(frozen=True)
class RatePair:
    """One rate of both rows, by seed; None where no response counts.

    >>> RatePair("DSR", first=(0.5, None), second=(0.75, 0.5)).gain
    (0.25, None)
    """

    name: str
    first: tuple[float | None, ...]
    second: tuple[float | None, ...]

    @property
    def gain(self) -> tuple[float | None, ...]:
        """Second minus first, by seed; None where one of them is None."""
        pairs = zip(self.first, self.second, strict=True)
        return tuple(None if a is None or b is None else b - a for a, b in pairs)


@dataclass(frozen=True)
class ReflectionRates:
    """DSR and ERR of two rows."""

    first: RowOutcome
    second: RowOutcome
    seeds: tuple[int, ...]  # those that both rows have
    rates: tuple[RatePair, ...]
    problem_notes: tuple[str, ...]  # one sentence per seed: how many problems count, and why others do not


def compute_reflection_rates(first: RowOutcome, second: RowOutcome) -> ReflectionRates | None:
    """Compute DSR and ERR of two rows over the seeds that both have.

    Return None if there is no common seed, or if only a judge can classify the task's responses.
    """
    common_seeds = tuple(seed for seed in second.seeds if seed in first.runs)
    if not common_seeds or not all(_is_generated_task(o.runs[seed]) for o in (first, second) for seed in common_seeds):
        return None
    by_seed: list[dict[str, tuple[float | None, float | None]]] = []
    problem_notes = []
    for seed in common_seeds:
        rates, note = _compute_seed_rates(first.runs[seed], second.runs[seed])
        by_seed.append(rates)
        problem_notes.append(f"seed {seed}: {note}")
    collected = [
        RatePair(name, tuple(r[name][0] for r in by_seed), tuple(r[name][1] for r in by_seed)) for name in RATES
    ]
    return ReflectionRates(first, second, common_seeds, tuple(collected), tuple(problem_notes))


def _is_generated_task(run: SweepRun) -> bool:
    cfg = state.read_stored_config(run.folder)
    return cfg is not None and cfg.task.name in GENERATED_TASKS


def _compute_seed_rates(one: SweepRun, two: SweepRun) -> tuple[dict[str, tuple[float | None, float | None]], str]:
    """Return {rate: (first's, second's)} on the common boundary subset, and a note on how many problems are in it."""
    models = [_read_responses(run) for run in (one, two)]
    kept, fates = find_boundary(models)
    cfg = state.read_stored_config(one.folder)
    assert cfg is not None, "looked at before"
    known = load_questions(cfg, models[0])
    marked = [
        [
            JudgedResponse(s.uid, s.correct, oracle.judge_response(known[get_problem(s)][0], s.text))
            for s in model.samples
            if get_problem(s) in kept
        ]
        for model in models
    ]
    rates = {name: tuple(estimate_rate(count_by_problem(of, name), name).value for of in marked) for name in RATES}
    note = "; ".join(f"{name}: {', '.join(f'{n} {why}' for why, n in of.items())}" for name, of in fates.items())
    return {name: (a, b) for name, (a, b) in rates.items()}, note


def _read_responses(run: SweepRun) -> ModelResponses:
    """Read the run's samples, as many as the report's other tables count."""
    assert run.evaluation is not None, "only runs that count are in an outcome"
    folder, settings = run.evaluation.folder, run.evaluation.settings
    data = {benchmark: str(of["data"]) for benchmark, of in settings["benchmarks"].items()}
    return ModelResponses(run.row.label, folder, data, tuple(read_selected(folder, settings)))


def make_table2(rated: ReflectionRates) -> ReportTable:
    """Make Table 2: both rows and their difference, with the paper's numbers to the right."""
    columns = [_get_paper_rates(rate.name) for rate in rated.rates]
    head = ["Method", *(rate.name for rate in rated.rates)]
    head += [f"paper, {rate.name}, {b}" for rate in rated.rates for b in paper_results.TABLE_2_BENCHMARKS]
    rows = [
        [rated.first.row.label, *(_format_cell(r.first) for r in rated.rates)],
        [rated.second.row.label, *(_format_cell(r.second) for r in rated.rates)],
        ["Δ", *(_format_cell(r.gain, signed=True) for r in rated.rates)],
    ]
    variant = rated.first.row.variant
    title = "DSR and ERR (Table 2)" + (f", {variant}" if variant else "")
    return ReportTable(
        title,
        head,
        [[*row, *_format_paper_cells(columns, i)] for i, row in enumerate(rows)],
        (NOTE, *rated.problem_notes),
    )


def _get_paper_rates(rate: str) -> list[tuple[float, ...]]:
    return [of[rate] for of in paper_results.TABLE_2.values()]


def _format_paper_cells(columns: list[list[tuple[float, ...]]], row: int) -> list[str]:
    return [f"{value:.1f}" for column in columns for value in column[row]]


def _format_cell(values: tuple[float | None, ...], signed: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not defined"
    sign = "+" if signed else ""
    ends = compute_seed_interval(known)
    interval = f" ({format_percent_interval(ends, signed, 1)})" if ends else ""
    return f"{100 * sum(known) / len(known):{sign}.1f}{interval}, {len(known)} seed{'s' * (len(known) != 1)}"
