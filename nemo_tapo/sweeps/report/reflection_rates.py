"""Table 2 of a sweep of the generated task: DSR and ERR of two rows by the task's own oracle, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.evaluation import paper_results
from nemo_tapo.evaluation.sample_store import Sample, file_name, read
from nemo_tapo.judge import oracle
from nemo_tapo.judge.rates import RATES, Marked, counts, rate_of
from nemo_tapo.judge.responses import Answered, boundary, problem_of, questions
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.report.estimates import over_seeds
from nemo_tapo.sweeps.report.read_runs import Outcome, Run
from nemo_tapo.sweeps.report.text_report import Grid, percent_ends

NOTE = (
    "DSR: right responses without reflection, of the right ones. ERR: responses that located the error, diagnosed it "
    "and are right, of those with a correction. By the generated task's oracle, on the problems that both rows' runs "
    "of a seed solve at times; percent, mean over seeds, 95% intervals over seeds. Rates over no response are left out."
)


@dataclass(frozen=True)
class Rates:
    """One rate of the two rows, by seed; None where no response counts."""

    name: str
    first: tuple[float | None, ...]
    second: tuple[float | None, ...]

    @property
    def gain(self) -> tuple[float | None, ...]:
        pairs = zip(self.first, self.second, strict=True)
        return tuple(None if a is None or b is None else b - a for a, b in pairs)


@dataclass(frozen=True)
class Rated:
    """DSR and ERR of two rows."""

    first: Outcome
    second: Outcome
    seeds: tuple[int, ...]  # that both have
    rates: tuple[Rates, ...]
    fates: tuple[str, ...]  # of the problems, a sentence a seed


def rate(first: Outcome, second: Outcome) -> Rated | None:
    """DSR and ERR of two rows over the seeds that both have; None where there is nothing to say: no common seed, or a
    task whose responses only a judge can classify.
    """
    common = tuple(seed for seed in second.seeds if seed in first.runs)
    if not common or not all(_generated(o.runs[seed]) for o in (first, second) for seed in common):
        return None
    by_seed: list[dict[str, tuple[float | None, float | None]]] = []
    fates = []
    for seed in common:
        rates, fate = _of_seed(first.runs[seed], second.runs[seed])
        by_seed.append(rates)
        fates.append(f"seed {seed}: {fate}")
    collected = [Rates(name, tuple(r[name][0] for r in by_seed), tuple(r[name][1] for r in by_seed)) for name in RATES]
    return Rated(first, second, common, tuple(collected), tuple(fates))


def _generated(run: Run) -> bool:
    cfg = state.stored(run.folder)
    return cfg is not None and cfg.task.name == "arithmetic"


def _of_seed(one: Run, two: Run) -> tuple[dict[str, tuple[float | None, float | None]], str]:
    """{rate: (first's, second's)} on the common boundary subset, and the fate of the problems."""
    models = [_answered(run) for run in (one, two)]
    kept, fates = boundary(models)
    cfg = state.stored(one.folder)
    assert cfg is not None, "looked at before"
    known = questions(cfg, models[0])
    marked = [
        [
            Marked(s.uid, s.reward > 0, oracle.verdict(known[problem_of(s)][0], s.text))
            for s in model.samples
            if problem_of(s) in kept
        ]
        for model in models
    ]
    rates = {name: tuple(rate_of(counts(of, name), name).value for of in marked) for name in RATES}
    told = "; ".join(f"{name}: {', '.join(f'{n} {why}' for why, n in of.items())}" for name, of in fates.items())
    return {name: (a, b) for name, (a, b) in rates.items()}, told


def _answered(run: Run) -> Answered:
    """Its samples, as many as are counted in the report's other tables."""
    assert run.evaluated is not None, "only runs that count are in an outcome"
    folder, settings = run.evaluated.folder, run.evaluated.settings
    kept: dict[tuple[str, str, int, int], Sample] = {}
    for benchmark in settings["benchmarks"]:
        for s in read(folder / f"{file_name(benchmark)}.jsonl"):
            if s.run < settings["runs"] and s.index < settings["samples"]:
                kept.setdefault((benchmark, *s.key), s)
    data = {benchmark: str(of["data"]) for benchmark, of in settings["benchmarks"].items()}
    return Answered(run.row.label, folder, data, tuple(kept.values()))


def table2(rated: Rated) -> Grid:
    """Table 2: both rows and their difference, the paper's figures to the right."""
    columns = [_papers(rate.name) for rate in rated.rates]
    head = ["Method", *(rate.name for rate in rated.rates)]
    head += [f"paper, {rate.name}, {b}" for rate in rated.rates for b in paper_results.TABLE_2_BENCHMARKS]
    rows = [
        [rated.first.row.label, *(_cell(r.first) for r in rated.rates)],
        [rated.second.row.label, *(_cell(r.second) for r in rated.rates)],
        ["Δ", *(_cell(r.gain, signed=True) for r in rated.rates)],
    ]
    variant = rated.first.row.variant
    title = "DSR and ERR (Table 2)" + (f", {variant}" if variant else "")
    return Grid(title, head, [[*row, *_flat(columns, i)] for i, row in enumerate(rows)], (NOTE, *rated.fates))


def _papers(rate: str) -> list[tuple[float, ...]]:
    return [of[rate] for of in paper_results.TABLE_2.values()]


def _flat(columns: list[list[tuple[float, ...]]], row: int) -> list[str]:
    return [f"{value:.1f}" for column in columns for value in column[row]]


def _cell(values: tuple[float | None, ...], signed: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not defined"
    sign = "+" if signed else ""
    ends = over_seeds(known)
    interval = f" ({percent_ends(ends, signed, 1)})" if ends else ""
    return f"{100 * sum(known) / len(known):{sign}.1f}{interval}, {len(known)} seed{'s' * (len(known) != 1)}"
