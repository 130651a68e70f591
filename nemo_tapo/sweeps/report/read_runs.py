"""Read the runs of a sweep's folder for its report: the result of each, what is missing and why."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

from nemo_tapo.evaluation.accuracy import collect_samples
from nemo_tapo.evaluation.compare import require_comparable
from nemo_tapo.evaluation.results import EvaluationResult
from nemo_tapo.evaluation.sample_store import (
    SETTINGS,
    escape_file_name,
    get_evaluation_folder,
    list_differences,
    read_samples,
)
from nemo_tapo.sweeps import state
from nemo_tapo.sweeps.definition import SWEEPS_FOLDER, Sweep, SweepRow, list_sweep_names, read_saved_sweep, read_sweep
from nemo_tapo.tracking.records import read_metrics
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.utils.run_folder import CONFIG

SEED_FOLDER = re.compile(r"seed-(0|[1-9][0-9]*)")  # a run's folder; others, such as seed-0.bak, are the user's


@dataclass(frozen=True)
class SweepRun:
    """A row with a seed. `evaluation` is None exactly if `missing` says why the run does not count."""

    row: SweepRow
    seed: int
    folder: Path
    evaluation: EvaluationResult | None
    missing: str = ""
    metrics: tuple[Record, ...] = ()  # one record per step that was made
    settings: Mapping[str, Any] = field(default_factory=dict)  # those that decide its numbers, as {dotted key: value}


@dataclass(frozen=True)
class RowOutcome:
    """A row with those of its runs that count."""

    row: SweepRow
    runs: Mapping[int, SweepRun]  # {seed: run}, in order of the seeds

    @property
    def seeds(self) -> tuple[int, ...]:
        """The seeds of these runs, in order."""
        return tuple(self.runs)


@dataclass(frozen=True)
class SweepResults:
    """A sweep and what its folder has of it."""

    sweep: Sweep
    outcomes: tuple[RowOutcome, ...]  # one per row, in the table's order, also without a run that counts
    excluded: tuple[SweepRun, ...]  # runs that failed, are unfinished, or were made differently
    missing_seeds: tuple[tuple[SweepRow, tuple[int, ...]], ...] = ()  # seeds that were asked for but have no folder


def is_sweep_folder(folder: Path) -> bool:
    """Return whether a folder is the output of a sweep and not of a single run."""
    return not (folder / CONFIG).is_file() and any(folder.glob("*/seed-*"))


def choose_sweeps(folder: Path, names_asked: Sequence[str] = ()) -> list[Sweep]:
    """Return the sweeps to report: those asked for, or else those that were run into the folder.

    A folder whose runs were started one by one names no sweep. Then these are the sweeps of which it has several rows.

    Raises ValueError for an unknown name, and if there is no such sweep.
    """
    kept, _ = read_saved_sweeps(folder)
    sweeps = [kept[name] if name in kept else read_sweep(name)[0] for name in names_asked or kept or list_sweep_names()]
    if not names_asked and not kept:
        sweeps = [sweep for sweep in sweeps if sum((folder / row.name).is_dir() for row in sweep.rows) > 1]
    if not sweeps:
        raise ValueError(f"{folder} has rows of no sweep; of which is it? --table {' | '.join(list_sweep_names())}.")
    return sweeps


def read_saved_sweeps(folder: Path) -> tuple[dict[str, Sweep], list[str]]:
    """Return the sweeps that were run into the folder, by name, and one sentence for each damaged sweep file."""
    kept: dict[str, Sweep] = {}
    faults = []
    for path in sorted((folder / SWEEPS_FOLDER).glob("*.yaml")):
        try:
            kept[path.stem] = read_saved_sweep(path)
        except ValueError as error:
            faults.append(str(error))
    return kept, faults


def read_sweep_results(folder: Path, sweep: Sweep) -> SweepResults:
    """Read all runs of a sweep's rows in the folder, with whatever seeds there are."""
    folders = {row.name: find_seed_folders(folder / row.name) for row in sweep.rows}
    runs = exclude_different_runs(
        [read_run(path, row, seed) for row in sweep.rows for seed, path in folders[row.name].items()]
    )
    outcomes = tuple(
        RowOutcome(row, {run.seed: run for run in runs if run.row.name == row.name and run.evaluation is not None})
        for row in sweep.rows
    )
    missing = ((row, tuple(seed for seed in row.seeds if seed not in folders[row.name])) for row in sweep.rows)
    absent = tuple((row, seeds) for row, seeds in missing if seeds)
    return SweepResults(sweep, outcomes, tuple(run for run in runs if run.evaluation is None), absent)


def find_seed_folders(row: Path) -> dict[int, Path]:
    """Return {seed: folder} of a row's folder, in order of the seeds."""
    folders = {
        int(match[1]): path
        for path in row.glob("seed-*")
        if (match := SEED_FOLDER.fullmatch(path.name)) and path.is_dir()
    }
    return dict(sorted(folders.items()))


def read_run(folder: Path, row: SweepRow, seed: int) -> SweepRun:
    """Read a run from its folder. Damaged files are reported in `missing`."""
    try:
        metrics = read_metrics(folder).rows
        evaluated = _read_evaluation(folder, state.get_final_evaluation(row.train))
        if evaluated is not None:
            return SweepRun(row, seed, folder, evaluated, "", metrics, read_run_settings(folder, row.train))
        failure = state.read_failure(folder)
        missing = (
            f"failed with exit code {failure.code}: {failure.reason}"
            if failure
            else _describe_progress(folder, row, len(metrics))
        )
    except (ValueError, OSError) as error:
        return SweepRun(row, seed, folder, None, str(error))
    return SweepRun(row, seed, folder, None, missing, metrics)


def _read_evaluation(folder: Path, name: str) -> EvaluationResult | None:
    """Read the evaluation with which a run ends, at the size that evaluation.json states.

    More samples may have been asked for since then, and not all of them may be there yet.
    """
    entry = state.read_evaluation(folder, name)
    if not entry:
        return None
    samples = get_evaluation_folder(folder, name)
    if not (samples / SETTINGS).is_file():
        raise ValueError(f"{samples} has no {SETTINGS}: its samples are gone")
    size = {key: value for key in ("runs", "samples") if isinstance(value := entry.get("settings", {}).get(key), int)}
    return _read_samples(samples, tuple(size.items()), max(path.stat().st_mtime_ns for path in samples.glob("*.json*")))


@lru_cache(maxsize=256)  # several tables may share a row
def _read_samples(samples: Path, size: tuple[tuple[str, int], ...], written: int) -> EvaluationResult:
    path = samples / SETTINGS
    settings = state.read_json_mapping(path, "nothing says how its samples were made") | dict(size)
    if not _is_complete(settings):
        raise ValueError(f"{path} is damaged: nothing says how its samples were made")
    runs, n = settings["runs"], settings["samples"]
    graded = tuple(
        collect_samples(name, read_samples(samples / f"{escape_file_name(name)}.jsonl"), runs, n, of["problems"])
        for name, of in settings["benchmarks"].items()
    )
    return EvaluationResult(samples, settings, graded)


def _is_complete(settings: Mapping[str, Any]) -> bool:
    """Return whether a settings.json has everything that a report reads from it."""
    return (
        all(isinstance(settings.get(key), dict) for key in ("model", "evaluation", "benchmarks"))
        and all(isinstance(settings.get(key), int) for key in ("runs", "samples"))
        and all(isinstance(of, dict) and {"problems", "data"} <= of.keys() for of in settings["benchmarks"].values())
    )


def _describe_progress(folder: Path, row: SweepRow, steps: int) -> str:
    cfg = state.read_stored_config(folder)
    if cfg is None:
        return "not started"
    if not row.train:
        return "half-way: its evaluation is not at its end"
    return f"half-way: {steps} of {cfg.steps} steps" + (", not evaluated to its end" if steps == cfg.steps else "")


def exclude_different_runs(runs: Sequence[SweepRun]) -> list[SweepRun]:
    """Return the runs; those that were trained or evaluated differently from the first do not count, and say why."""
    checked: list[SweepRun] = []
    for run in runs:
        first = next((other for other in checked if other.evaluation is not None), None)
        sibling = next((other for other in checked if other.evaluation and other.row.name == run.row.name), None)
        reason = (
            _explain_incomparable(first, run) or (_explain_different_settings(sibling, run) if sibling else "")
            if first
            else ""
        )
        checked.append(replace(run, evaluation=None, missing=reason) if reason and run.evaluation else run)
    return checked


def _explain_incomparable(first: SweepRun, other: SweepRun) -> str:
    """Return why the evaluations of two runs cannot be compared; "" if they can."""
    if first.evaluation is None or other.evaluation is None:
        return ""
    try:
        require_comparable(first.evaluation, other.evaluation)
    except ValueError as error:
        return f"other than {first.evaluation.folder}: {error}"
    return ""


def _explain_different_settings(first: SweepRun, other: SweepRun) -> str:
    """Return how a run differs from another run of its row; "" if it does not.

    The seeds of a row have the same settings except for the seed. In rows that are not trained they also have the same
    weights.
    """
    keys = sorted({*first.settings, *other.settings} - {"seed"})
    a, b = first.settings, other.settings
    changed = [f"{key}: {a.get(key)} -> {b.get(key)}" for key in keys if a.get(key) != b.get(key)]
    if changed:
        return f"other settings than {first.folder} ({', '.join(changed[:4])})"
    if other.row.train or first.evaluation is None or other.evaluation is None:
        return ""
    weights = list_differences(first.evaluation.settings, other.evaluation.settings, ["model"])
    return f"another model than {first.folder} ({', '.join(weights)})" if weights else ""


def read_run_settings(folder: Path, train: bool) -> dict[str, Any]:
    """Return the settings that decide the numbers of a finished run, as {dotted key: value}.

    Raises ValueError if its config.yaml is missing or damaged.
    """
    cfg = state.read_stored_config(folder)
    if cfg is None:
        raise ValueError(f"{folder / CONFIG} is gone: nothing says with which settings it was made")
    return state.select_deciding_settings(cfg, train)
