"""Table 2 of a sweep of the generated task: DSR and ERR of two rows by the task's own oracle, seed by seed."""

from __future__ import annotations

from dataclasses import dataclass, replace

from nemo_tapo.evaluation.samples import folder_of
from nemo_tapo.judge import oracle
from nemo_tapo.judge.rates import RATES, Marked, counts, rate_of
from nemo_tapo.judge.responses import Answered, boundary, problem_of, questions, read_answered
from nemo_tapo.report import paper
from nemo_tapo.report.sweep_read import Outcome, Run
from nemo_tapo.report.sweep_stats import over_seeds
from nemo_tapo.report.sweep_text import Grid, percent_ends
from nemo_tapo.sweeps import state

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


def table2(first: Outcome, second: Outcome) -> Grid | None:
    """DSR and ERR of two rows and their difference, over the seeds that both have; None where there is nothing to say:
    no common seed, or a task whose responses only a judge can classify.
    """
    common = [seed for seed in second.seeds if seed in first.runs]
    if not common or not all(_generated(o.runs[seed]) for o in (first, second) for seed in common):
        return None
    by_seed: list[dict[str, tuple[float | None, float | None]]] = []
    lines = [NOTE]
    for seed in common:
        rates, fate = _of_seed(first.runs[seed], second.runs[seed])
        by_seed.append(rates)
        lines.append(f"seed {seed}: {fate}")
    collected = [Rates(name, tuple(r[name][0] for r in by_seed), tuple(r[name][1] for r in by_seed)) for name in RATES]
    return replace(_grid(first, second, collected), below=tuple(lines))


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
    folder = folder_of(run.folder, state.evaluation_of(run.row.train))
    return replace(read_answered(folder), name=run.row.label)


def _grid(first: Outcome, second: Outcome, rates: list[Rates]) -> Grid:
    columns = [_papers(rate.name) for rate in rates]
    head = ["Method", *(rate.name for rate in rates)]
    head += [f"paper, {rate.name}, {b}" for rate in rates for b in paper.TABLE_2_BENCHMARKS]
    gains = [[_minus(b, a) for a, b in zip(rate.first, rate.second, strict=True)] for rate in rates]
    rows = [
        [first.row.label, *(_cell(r.first) for r in rates)],
        [second.row.label, *(_cell(r.second) for r in rates)],
        ["Δ", *(_cell(gain, signed=True) for gain in gains)],
    ]
    return Grid("DSR and ERR (Table 2)", head, [[*row, *_flat(columns, i)] for i, row in enumerate(rows)])


def _minus(b: float | None, a: float | None) -> float | None:
    return None if a is None or b is None else b - a


def _papers(rate: str) -> list[tuple[float, ...]]:
    return [of[rate] for of in paper.TABLE_2.values()]


def _flat(columns: list[list[tuple[float, ...]]], row: int) -> list[str]:
    return [f"{value:.1f}" for column in columns for value in column[row]]


def _cell(values: list[float | None] | tuple[float | None, ...], signed: bool = False) -> str:
    known = [value for value in values if value is not None]
    if not known:
        return "not defined"
    sign = "+" if signed else ""
    ends = over_seeds(known)
    interval = f" ({percent_ends(ends, signed, 1)})" if ends else ""
    return f"{100 * sum(known) / len(known):{sign}.1f}{interval}, {len(known)} seed{'s' * (len(known) != 1)}"
