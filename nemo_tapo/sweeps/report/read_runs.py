"""The runs of a sweep's folder, read for its report: what each came to, what is missing and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation.accuracy import collect
from nemo_tapo.evaluation.compare import require_comparable
from nemo_tapo.evaluation.results import Evaluated
from nemo_tapo.evaluation.sample_store import SETTINGS, differences, file_name, folder_of, read
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.definition import SWEEPS, Row, Sweep, names, read_kept, read_sweep
from nemo_tapo.tracking.records import read_metrics
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.utils.run_folder import CONFIG

SEED = re.compile(r"seed-(0|[1-9][0-9]*)")  # a run's folder; seed-0.bak and the like are somebody's own


@dataclass(frozen=True)
class Run:
    """A row with a seed. `evaluated` is None exactly if `missing` says why it cannot be counted."""

    row: Row
    seed: int
    folder: Path
    evaluated: Evaluated | None
    missing: str = ""
    metrics: tuple[Record, ...] = ()  # of the steps that were made
    settings: Mapping[str, Any] = field(default_factory=dict)  # that decide its numbers, flat


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
    absent: tuple[tuple[Row, tuple[int, ...]], ...] = ()  # seeds that were asked for and have no folder


def is_sweep(folder: Path) -> bool:
    """Whether a folder is a sweep's output and not a run's."""
    return not (folder / CONFIG).is_file() and any(folder.glob("*/seed-*"))


def sweeps_of(folder: Path, asked: Sequence[str] = ()) -> list[Sweep]:
    """The sweeps to report: those asked for, else those that were run into the folder, else, where their runs were
    started one by one, those of which the folder has two rows.

    Raises ValueError for a name that there is not, and if there is no such sweep.
    """
    kept, _ = kept_sweeps(folder)
    found = [kept[name] if name in kept else read_sweep(name)[0] for name in asked or kept or names()]
    if not asked and not kept:
        found = [of for of in found if sum((folder / row.name).is_dir() for row in of.rows) > 1]
    if not found:
        raise ValueError(f"{folder} has rows of no sweep; of which is it? --table {' | '.join(names())}.")
    return found


def kept_sweeps(folder: Path) -> tuple[dict[str, Sweep], list[str]]:
    """The sweeps that were run into the folder, by name; and a sentence for each of whose file is damaged."""
    kept: dict[str, Sweep] = {}
    faults = []
    for path in sorted((folder / SWEEPS).glob("*.yaml")):
        try:
            kept[path.stem] = read_kept(path)
        except ValueError as error:
            faults.append(str(error))
    return kept, faults


def find(folder: Path, sweep: Sweep) -> Found:
    """Everything that the folder has of a sweep's rows, whatever seeds there are."""
    places = {row.name: seeds_of(folder / row.name) for row in sweep.rows}
    runs = alike([read_run(place, row, seed) for row in sweep.rows for seed, place in places[row.name].items()])
    outcomes = tuple(
        Outcome(row, {run.seed: run for run in runs if run.row.name == row.name and run.evaluated is not None})
        for row in sweep.rows
    )
    asked = ((row, tuple(seed for seed in row.seeds if seed not in places[row.name])) for row in sweep.rows)
    absent = tuple((row, seeds) for row, seeds in asked if seeds)
    return Found(sweep, outcomes, tuple(run for run in runs if run.evaluated is None), absent)


def seeds_of(row: Path) -> dict[int, Path]:
    """{seed: folder} of a row's folder, in order."""
    found = {int(at[1]): place for place in row.glob("seed-*") if (at := SEED.fullmatch(place.name)) and place.is_dir()}
    return dict(sorted(found.items()))


def read_run(folder: Path, row: Row, seed: int) -> Run:
    """A run from its folder; damage is told in `missing`."""
    try:
        metrics = read_metrics(folder).rows
        evaluated = _evaluated(folder, state.evaluation_of(row.train))
        if evaluated is not None:
            return Run(row, seed, folder, evaluated, "", metrics, settings_of(folder, row.train))
        failed = state.failure(folder)
        why = f"failed with exit code {failed.code}: {failed.reason}" if failed else _how_far(folder, row, len(metrics))
    except (ValueError, OSError) as error:
        return Run(row, seed, folder, None, str(error))
    return Run(row, seed, folder, None, why, metrics)


def _evaluated(folder: Path, name: str) -> Evaluated | None:
    """The evaluation in which a run ends, as large as evaluation.json says that it is: more may have been asked for
    since, and not be there yet.
    """
    entry = state.evaluation(folder, name)
    if not entry:
        return None
    samples = folder_of(folder, name)
    if not (samples / SETTINGS).is_file():
        raise ValueError(f"{samples} has no {SETTINGS}: its samples are gone")
    size = {key: value for key in ("runs", "samples") if isinstance(value := entry.get("settings", {}).get(key), int)}
    return _read(samples, tuple(size.items()), max(path.stat().st_mtime_ns for path in samples.glob("*.json*")))


@lru_cache(maxsize=256)  # tables share rows
def _read(samples: Path, size: tuple[tuple[str, int], ...], written: int) -> Evaluated:
    path = samples / SETTINGS
    settings = state.read_mapping(path, "nothing says how its samples were made") | dict(size)
    if not _complete(settings):
        raise ValueError(f"{path} is damaged: nothing says how its samples were made")
    runs, n = settings["runs"], settings["samples"]
    graded = tuple(
        collect(name, read(samples / f"{file_name(name)}.jsonl"), runs, n, of["problems"])
        for name, of in settings["benchmarks"].items()
    )
    return Evaluated(samples, settings, graded)


def _complete(settings: Mapping[str, Any]) -> bool:
    """Whether a settings.json has what a report reads of it."""
    return (
        all(isinstance(settings.get(key), dict) for key in ("model", "evaluation", "benchmarks"))
        and all(isinstance(settings.get(key), int) for key in ("runs", "samples"))
        and all(isinstance(of, dict) and {"problems", "data"} <= of.keys() for of in settings["benchmarks"].values())
    )


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
        reason = _differs(first, run) or (_made_otherwise(sibling, run) if sibling else "") if first else ""
        out.append(replace(run, evaluated=None, missing=reason) if reason and run.evaluated else run)
    return out


def _differs(first: Run, other: Run) -> str:
    """In what two runs were evaluated."""
    if first.evaluated is None or other.evaluated is None:
        return ""
    try:
        require_comparable(first.evaluated, other.evaluated)
    except ValueError as error:
        return f"other than {first.evaluated.folder}: {error}"
    return ""


def _made_otherwise(first: Run, other: Run) -> str:
    """Seeds of a row have the same settings but for the seed, and those that are not trained the same weights."""
    keys = sorted({*first.settings, *other.settings} - {"seed"})
    a, b = first.settings, other.settings
    changed = [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]
    if changed:
        return f"other settings than {first.folder} ({', '.join(changed[:4])})"
    if other.row.train or first.evaluated is None or other.evaluated is None:
        return ""
    weights = differences(first.evaluated.settings, other.evaluated.settings, ["model"])
    return f"another model than {first.folder} ({', '.join(weights)})" if weights else ""


def settings_of(folder: Path, train: bool) -> dict[str, Any]:
    """What decides the numbers of a finished run, flat. Raises ValueError if its config.yaml is gone or damaged."""
    cfg = state.stored(folder)
    if cfg is None:
        raise ValueError(f"{folder / CONFIG} is gone: nothing says with which settings it was made")
    return state.deciding(cfg, train)
