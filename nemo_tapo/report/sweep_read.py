"""The runs of a sweep's folder, read for its report: what each came to, what is missing and why."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation.compare import require_comparable
from nemo_tapo.evaluation.results import Evaluated, read_evaluated
from nemo_tapo.evaluation.samples import folder_of
from nemo_tapo.report.jsonl import Record
from nemo_tapo.report.records import read_metrics
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.definition import SWEEPS, Row, Sweep, names, parse, read_sweep


@dataclass(frozen=True)
class Run:
    """A row with a seed. `evaluated` is None exactly if `missing` says why it cannot be counted."""

    row: Row
    seed: int
    folder: Path
    evaluated: Evaluated | None
    missing: str = ""
    metrics: tuple[Record, ...] = ()  # of the steps that were made


@dataclass(frozen=True)
class Outcome:
    """A row with the runs that count."""

    row: Row
    runs: Mapping[int, Run]  # by seed, in order

    @property
    def seeds(self) -> tuple[int, ...]:
        return tuple(self.runs)


@dataclass(frozen=True)
class Found:
    """A sweep and what its folder has of it."""

    sweep: Sweep
    outcomes: tuple[Outcome, ...]  # a row each, in the table's order; rows without a run that counts too
    left_out: tuple[Run, ...]  # runs that failed, are half-way, or were made differently


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's output and not a run's."""
    return not (folder / state.CONFIG).is_file() and any(folder.glob("*/seed-*"))


def sweeps_of(folder: Path, asked: Sequence[str] = ()) -> list[Sweep]:
    """The sweeps to report: those asked for, else those that were run into the folder, else, where their runs were
    started one by one, those of which the folder has two rows.

    Raises ValueError for a name that there is not, and if there is no such sweep.
    """
    import yaml

    kept = {path.stem: path for path in sorted((folder / SWEEPS).glob("*.yaml"))}

    def sweep(name: str) -> Sweep:
        return parse(kept[name], yaml.safe_load(kept[name].read_text())) if name in kept else read_sweep(name)[0]

    found = [sweep(name) for name in asked or kept or names()]
    if not asked and not kept:
        found = [of for of in found if sum((folder / row.name).is_dir() for row in of.rows) > 1]
    if not found:
        raise ValueError(f"{folder} has rows of no sweep; of which is it? --table {' | '.join(names())}.")
    return found


def find(folder: Path, sweep: Sweep) -> Found:
    """Everything that the folder has of a sweep's rows, whatever seeds there are."""
    runs = [
        read_run(place, row, int(place.name.removeprefix("seed-")))
        for row in sweep.rows
        for place in sorted((folder / row.name).glob("seed-*"), key=lambda p: int(p.name.removeprefix("seed-")))
    ]
    runs = alike(runs)
    outcomes = tuple(
        Outcome(row, {run.seed: run for run in runs if run.row.name == row.name and run.evaluated is not None})
        for row in sweep.rows
    )
    return Found(sweep, outcomes, tuple(run for run in runs if run.evaluated is None))


def read_run(folder: Path, row: Row, seed: int) -> Run:
    """A run from its folder; damage is told in `missing`."""
    try:
        metrics = read_metrics(folder).rows
        evaluated = _evaluated(folder, state.evaluation_of(row.train))
    except ValueError as error:
        return Run(row, seed, folder, None, str(error))
    if evaluated is not None:
        return Run(row, seed, folder, evaluated, "", metrics)
    failed = state.failure(folder)
    why = f"failed with exit code {failed.code}: {failed.reason}" if failed else _how_far(folder, row, len(metrics))
    return Run(row, seed, folder, None, why, metrics)


def _evaluated(folder: Path, name: str) -> Evaluated | None:
    samples = folder_of(folder, name)
    if not state.evaluation(folder, name):
        return None
    return _read(samples, max(path.stat().st_mtime_ns for path in samples.glob("*.json*")))


@lru_cache(maxsize=256)  # tables share rows
def _read(samples: Path, written: int) -> Evaluated:
    return read_evaluated(samples)


def _how_far(folder: Path, row: Row, steps: int) -> str:
    cfg = state.stored(folder)
    if cfg is None:
        return "not started"
    if not row.train:
        return "half-way: its evaluation is not at its end"
    return f"half-way: {steps} of {cfg.steps} steps" + (", not evaluated to its end" if steps == cfg.steps else "")


def alike(runs: Sequence[Run]) -> list[Run]:
    """The same runs; those that were trained or evaluated otherwise than the first do not count, and say why."""
    out: list[Run] = []
    for run in runs:
        first = next((other for other in out if other.evaluated is not None), None)
        sibling = next((other for other in out if other.evaluated and other.row.name == run.row.name), None)
        reason = ""
        if run.evaluated is not None and first is not None and first.evaluated is not None:
            reason = _differs(first.evaluated, run.evaluated) or (_trained_otherwise(sibling, run) if sibling else "")
        out.append(Run(run.row, run.seed, run.folder, None, reason, run.metrics) if reason else run)
    return out


def _differs(first: Evaluated, other: Evaluated) -> str:
    try:
        require_comparable(first, other)
    except ValueError as error:
        return f"other than {first.folder}: {error}"
    return ""


def _trained_otherwise(first: Run, other: Run) -> str:
    """Seeds of a row have the same settings but for the seed."""
    a, b = (settings(run) for run in (first, other))
    keys = sorted({*a, *b} - {"seed"})
    changed = [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]
    return f"other settings than {first.folder} ({', '.join(changed[:4])})" if changed else ""


def settings(run: Run) -> dict[str, Any]:
    """What decides the run's numbers, flat."""
    cfg = state.stored(run.folder)
    return state.deciding(cfg, run.row.train) if cfg is not None else {}
