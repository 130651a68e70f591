"""`nemo-tapo replay RUN --step N`: compute a step again from a run's records and compare (report/step_replay.py)."""

from __future__ import annotations

import argparse
import json
from collections import defaultdict
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.commands.folders import require_folder
from nemo_tapo.utils.text_table import make_visible

if TYPE_CHECKING:
    from nemo_tapo.config.run_config import RunConfig
    from nemo_tapo.report.step_replay import Check, Replay
    from nemo_tapo.utils.jsonl import Record

AGREES, DIFFERS, BAD_INPUT = 0, 1, 2
MOST_SHOWN = 5  # differences of one kind, and missing records


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `replay`."""
    sub.add_argument("folder", type=Path, help="a run's output folder; the run may still be at work")
    which = sub.add_mutually_exclusive_group()
    which.add_argument("--step", type=int, help="the step to compute again; default: the newest that is complete")
    which.add_argument("--all", action="store_true", help="every step that was recorded, one line each")


@dataclass(frozen=True)
class RecordedRun:
    """What a run folder holds."""

    cfg: RunConfig
    metrics: Mapping[int, Record]  # by step
    groups: Mapping[int, list[Record]]
    trajectories: Mapping[int, list[Record]]
    notes: tuple[str, ...]  # about lines that could not be read, and settings that are not the run's

    @property
    def steps(self) -> list[int]:
        """Every step of which there is anything."""
        return sorted({*self.metrics, *self.groups, *self.trajectories})


def replay(arguments: argparse.Namespace) -> int:
    """Print how a step, or every step, compares; return 0 if all agrees, 1 if not, 2 if records are missing.

    Raises ValueError if the folder has no records of the step, or no readable configuration.
    """
    run = load_recorded_run(arguments.folder)
    for note in run.notes:
        print_line(f"note: {note}")
    if not arguments.all:
        outcome = replay_recorded(run, choose_step(run, arguments.step, arguments.folder))
        print_line(f"step {outcome.step} of {arguments.folder}: {run.cfg.algorithm}, seed {run.cfg.seed}")
        for line in describe(outcome):
            print_line(line)
        return exit_code(outcome)
    outcomes = [replay_recorded(run, step) for step in run.steps]
    for outcome in outcomes:
        print_line(describe_in_one_line(outcome))
    codes = {exit_code(outcome) for outcome in outcomes}
    return DIFFERS if DIFFERS in codes else max(codes)


def load_recorded_run(folder: Path) -> RecordedRun:
    """Read a run folder, leaving out and noting damaged lines."""
    require_folder(folder)
    from nemo_tapo.runtime.registry import load_run_config
    from nemo_tapo.tracking.group_records import GROUPS_FILE, read_group_records
    from nemo_tapo.tracking.records import METRICS_FILE, TRAJECTORIES_FILE
    from nemo_tapo.utils.jsonl import read_lines
    from nemo_tapo.utils.run_folder import CONFIG

    if not (folder / CONFIG).is_file():
        raise ValueError(f"{folder} has no {CONFIG}: replay needs the settings of the run. Give a run's output folder.")
    groups = read_group_records(folder)
    metrics = read_lines(folder / METRICS_FILE, skip_damaged=True)
    trajectories = read_lines(folder / TRAJECTORIES_FILE, skip_damaged=True)
    if not groups.rows and not trajectories.rows:
        raise ValueError(
            f"{folder} has neither {GROUPS_FILE} (record_groups: true) nor {TRAJECTORIES_FILE} of any step: "
            "there is nothing to compute a step from."
        )
    notes = list(metrics.notes + groups.notes + trajectories.notes)
    if not (folder / METRICS_FILE).is_file():
        notes.append(f"{METRICS_FILE} is missing, so counters and loss cannot be compared.")
    cfg = load_run_config(folder / CONFIG)
    return RecordedRun(
        cfg,
        {step: lines[-1] for step, lines in _by_step(metrics.rows).items()},
        _by_step(groups.rows),
        _by_step(trajectories.rows),
        (*notes, *_find_other_settings(folder, cfg)),
    )


def _find_other_settings(folder: Path, cfg: RunConfig) -> Iterator[str]:
    """Yield a sentence if config.yaml is not what the newest checkpoint was made with: another command replaced it."""
    from nemo_tapo.config.run_config import rl_fingerprint

    try:
        newest = max((folder / "checkpoints").glob("step-*/state.json"))
        before, here = json.loads(newest.read_text())["fingerprint"], json.loads(json.dumps(rl_fingerprint(cfg)))
        changed = sorted(key for key in before.keys() | here.keys() if before.get(key) != here.get(key))
    except (ValueError, OSError, KeyError, AttributeError, TypeError):
        return  # no checkpoint, or none that can be read
    if changed:
        values = ", ".join(f"{key}: {before.get(key)} -> {here.get(key)}" for key in changed[:MOST_SHOWN])
        yield f"config.yaml is not what {newest.parent} was made with ({values}); the comparison is with config.yaml."


def _by_step(rows: tuple[Record, ...]) -> dict[int, list[Record]]:
    steps: dict[int, list[Record]] = defaultdict(list)
    for row in rows:
        if isinstance(row.get("step"), int):
            steps[row["step"]].append(row)
    return dict(steps)


def choose_step(run: RecordedRun, asked: int | None, folder: Path) -> int:
    """Return the step to compare. Raises ValueError if nothing was recorded of the one that was asked for."""
    if asked is None:
        wanted = run.cfg.rollout.queries_per_step
        whole = [s for s in run.metrics if sum(r.get("kind") == "group" for r in run.groups.get(s, ())) == wanted]
        return max(whole or run.groups or run.trajectories)
    if asked not in run.steps:
        raise ValueError(f"{folder} has no records of step {asked}: it has steps {run.steps[0]} to {run.steps[-1]}.")
    return asked


def replay_recorded(run: RecordedRun, step: int) -> Replay:
    """Compute one step again, from groups.jsonl or, in a run without it, from trajectories.jsonl."""
    from nemo_tapo.report.replay_trajectories import replay_trajectories
    from nemo_tapo.report.step_replay import RecordedStep, Replay, replay_step

    metrics: Mapping[str, Any] = run.metrics.get(step, {})
    if run.groups and step not in run.groups:
        return Replay(step, (), (f"groups.jsonl has no line of step {step}",))
    if not run.groups:
        return replay_trajectories(run.cfg, step, metrics, run.trajectories.get(step, ()))
    return replay_step(run.cfg, RecordedStep(step, metrics, run.groups[step], run.groups.get(step - 1, ())))


def exit_code(outcome: Replay) -> int:
    """Return 1 if a number differs, 2 if records are missing or nothing could be compared, else 0."""
    if outcome.differs:
        return DIFFERS
    return BAD_INPUT if outcome.missing or not outcome.compared else AGREES


def print_line(text: str) -> None:
    """Print a line; uids are a data set's, so what would steer the terminal is made visible."""
    print(make_visible(text))


def describe(outcome: Replay) -> Iterator[str]:
    """Yield the lines that show one step."""
    for check in outcome.checks:
        yield f"  {check.subject:<26} {_describe_check(check)}"
        yield from _shorten([f"    {text}" for text in check.differences], "    ")
    for text in _shorten(list(outcome.missing), ""):
        yield f"  missing: {text}"
    yield f"  {_sum_up(outcome)}"


def _describe_check(check: Check) -> str:
    if not check.compared:
        return f"not compared: {check.not_kept or 'the step has none'}"
    different = (
        f"{len(check.differences)} of {check.compared} differ" if check.differences else f"{check.compared} agree"
    )
    return different + (f" (not kept: {check.not_kept})" if check.not_kept else "")


def _sum_up(outcome: Replay) -> str:
    differing = sum(len(check.differences) for check in outcome.checks)
    if differing:
        return f"{differing} of {outcome.compared} numbers differ from what was recorded."
    if outcome.missing:
        return f"{outcome.compared} numbers agree, but records are missing."
    return f"all {outcome.compared} numbers agree with what was recorded."


def describe_in_one_line(outcome: Replay) -> str:
    """Return a step's line under --all."""
    first = next((text for check in outcome.checks for text in check.differences), None)
    return f"step {outcome.step}: {_sum_up(outcome)}" + (f" First: {first}" if first else "")


def _shorten(texts: list[str], indent: str) -> list[str]:
    more = len(texts) - MOST_SHOWN
    return texts[:MOST_SHOWN] + ([f"{indent}... and {more} more"] if more > 0 else [])
