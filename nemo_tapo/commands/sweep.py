"""`nemo-tapo sweep NAME ... [seeds=5] [--config FILE] [key=value ...]`: run the rows of a table over several seeds."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.sweeps import definition
from nemo_tapo.sweeps.expand import SweepJob, SweepPlan, SweepRequest, expand_sweeps, parse_seeds
from nemo_tapo.sweeps.state import RunState, read_run_state, require_same_settings
from nemo_tapo.utils.files import replace_text, require_free_disk
from nemo_tapo.utils.resources import find_resource

LAUNCHER = Path(__file__).parents[2] / "tools" / "slurm" / "launch.py"
TINY_BASE = "assets/tiny-base"  # base model if no --config is given


def add_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    sub.add_argument("--config", type=Path, help="of every run; without it, the tiny model on this machine")
    sub.add_argument("--dry-run", action="store_true", help="print the runs and their commands, start nothing")
    sub.add_argument("--list", type=Path, metavar="FILE", help="write the runs for tools/slurm/launch.py --list FILE")
    sub.add_argument("--slurm", metavar="OPTIONS", help="submit them as a job array with these options of launch.py")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME | key=value",
        help=f"sweeps ({', '.join(definition.list_sweep_names())}, or a YAML file), then seeds=5 or seeds=[3,7], "
        "output=FOLDER, base_model=FOLDER, and settings of every run; a=1,2 runs both",
    )


def sweep(arguments: argparse.Namespace) -> int:
    """Expand the sweeps into runs, then print, list, submit or run them. Return the exit code."""
    request = parse_request(arguments.overrides, arguments.config)
    plan = expand_sweeps(request)
    require_same_settings(plan.jobs)
    for note in plan.notes:
        print(f"sweep: {note}")
    if arguments.dry_run:
        print(describe_jobs(plan.jobs, request.config))
        return 0
    unfinished = [job for job in plan.jobs if read_run_state(job) is not RunState.DONE]
    if arguments.list:
        replace_text(arguments.list, format_job_list(unfinished))
        print(f"sweep: {len(unfinished)} of {len(plan.jobs)} runs in {arguments.list}, the others are done")
        return 0
    require_free_disk(request.output, plan.jobs[0].cfg.checkpoint.min_free_gib)
    save_definitions(request.output, plan)
    if arguments.slurm is not None:
        return submit(request, unfinished, shlex.split(arguments.slurm))
    return run_serially(plan, request)


def parse_request(words: Sequence[str], config: Path | None) -> SweepRequest:
    """Parse the words of the command line. Words without "=" are names of sweeps; ValueError if there is none."""
    names = tuple(word for word in words if "=" not in word)
    if not names:
        raise ValueError(f"say which sweep: {', '.join(definition.list_sweep_names())}, or a YAML file.")
    options: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in ("seeds", "output", "base_model"):
            options[key] = value
        elif equals:
            overrides.append(word)
    return SweepRequest(
        sweeps=names,
        config=config or definition.find_configs_folder() / definition.DEFAULT_CONFIG,
        seeds=parse_seeds(options.get("seeds", "1")),
        output=Path(options.get("output", "runs/sweep")),
        base_model=options.get("base_model", _find_tiny_base() if config is None else None),
        overrides=tuple(overrides),
    )


def _find_tiny_base() -> str:
    return TINY_BASE if Path(TINY_BASE).is_dir() else str(find_resource(TINY_BASE))


def run_serially(plan: SweepPlan, request: SweepRequest) -> int:
    """Run the sweep's runs one after another. Return exit code 0 if all are done, 1 if some failed."""
    from nemo_tapo.sweeps.serial import run_jobs

    failed = run_jobs(plan.jobs, request.config)
    print(f"sweep: {len(plan.jobs) - len(failed)} of {len(plan.jobs)} runs are done, in {request.output}")
    for note in plan.notes:
        print(f"sweep: {note}")
    for job, failure in failed:
        print(f"sweep: {job.name} failed with exit code {failure.code}: {failure.reason}")
    if failed:
        print("sweep: the same command tries the failed ones again.")
    return 1 if failed else 0


def describe_jobs(jobs: Sequence[SweepJob], config: Path) -> str:
    """Return one line for each run: its state, then its command."""
    lines = []
    for job in jobs:
        command = shlex.join(["nemo-tapo", "run", "--config", str(config), *job.overrides])
        lines.append(f"{read_run_state(job).value:8}  {command}")
    return "\n".join([*lines, f"{len(jobs)} runs"])


def format_job_list(jobs: Sequence[SweepJob]) -> str:
    """Return one line for each run: its overrides as a JSON array, the format that tools/slurm/launch.py reads."""
    return "".join(json.dumps(list(job.overrides)) + "\n" for job in jobs)


def submit(request: SweepRequest, jobs: Sequence[SweepJob], options: Sequence[str]) -> int:
    """Submit the runs through the launcher, each as one element of a job array. Return the exit code."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config

    if not jobs:
        print("sweep: all runs are done")
        return 0
    file = request.output / "slurm-list.jsonl"
    replace_text(file, format_job_list(jobs))
    output = f"{'tapo.' if is_nemo_rl_config(request.config) else ''}output={request.output}"
    command = [sys.executable, str(LAUNCHER), *options, "--list", str(file), "--", "run"]
    return subprocess.run([*command, "--config", str(request.config), output], check=False).returncode


def save_definitions(output: Path, plan: SweepPlan) -> None:
    """Save the sweeps as run and the requested seeds, for the report. Rows and seeds of earlier calls are kept.

    Raises ValueError if a file of an earlier call is damaged.
    """
    import yaml

    requested_seeds: dict[str, set[int]] = {}
    for job in plan.jobs:
        requested_seeds.setdefault(job.row.name, set()).add(job.seed)
    for one in plan.sweeps:
        path = output / definition.SWEEPS_FOLDER / f"{one.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = {row.name: row for row in definition.read_saved_sweep(path).rows} if path.is_file() else {}
        rows = {row.name: row for row in one.rows}
        rows |= {name: row for name, row in before.items() if name not in rows}
        for name, row in rows.items():
            seeds = requested_seeds.get(name, set()) | ({*before[name].seeds} if name in before else set())
            rows[name] = row.model_copy(update={"seeds": tuple(sorted(seeds))})
        merged = one.model_copy(update={"rows": tuple(rows.values())})
        replace_text(path, yaml.safe_dump(merged.model_dump(mode="json"), sort_keys=False))
