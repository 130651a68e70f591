"""`nemo-tapo sweep NAME ... [seeds=5] [--config FILE] [key=value ...]`."""

from __future__ import annotations

import argparse
import json
import shlex
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.sweeps import definition
from nemo_tapo.sweeps.expand import Asked, Expanded, Job, expand, seeds_of
from nemo_tapo.sweeps.state import State, require_same, state_of
from nemo_tapo.utils.files import replace_text, require_free

LAUNCHER = Path(__file__).parents[2] / "tools" / "slurm" / "launch.py"
TINY_BASE = "assets/tiny-base"  # beside the default config's cold start


def add_arguments(sub: argparse.ArgumentParser) -> None:
    sub.add_argument("--config", type=Path, help="of every run; without it, the tiny model on this machine")
    sub.add_argument("--dry-run", action="store_true", help="print the runs and their commands, start nothing")
    sub.add_argument("--list", type=Path, metavar="FILE", help="write the runs for tools/slurm/launch.py --list FILE")
    sub.add_argument("--slurm", metavar="OPTIONS", help="submit them as a job array with these options of launch.py")
    sub.add_argument(
        "overrides",
        nargs="*",
        metavar="NAME | key=value",
        help=f"sweeps ({', '.join(definition.names())}, or a YAML file), then seeds=5 or seeds=[3,7], output=FOLDER, "
        "base_model=FOLDER, and settings of every run; a=1,2 runs both",
    )


def sweep(arguments: argparse.Namespace) -> int:
    """Expands, then prints, lists, submits or runs. Returns the exit code."""
    asked = asked_of(arguments.overrides, arguments.config)
    expanded = expand(asked)
    require_same(expanded.jobs)
    for note in expanded.notes:
        print(f"sweep: {note}")
    if arguments.dry_run:
        print(described(expanded.jobs, asked.config))
        return 0
    left = [job for job in expanded.jobs if state_of(job) is not State.DONE]
    if arguments.list:
        replace_text(arguments.list, listed(left))
        print(f"sweep: {len(left)} of {len(expanded.jobs)} runs in {arguments.list}, the others are done")
        return 0
    require_free(asked.output, expanded.jobs[0].cfg.checkpoint.min_free_gib)
    keep_definitions(asked.output, expanded)
    if arguments.slurm is not None:
        return submit(asked, left, shlex.split(arguments.slurm))
    return serial(expanded, asked)


def asked_of(words: Sequence[str], config: Path | None) -> Asked:
    """What was typed: names are words without "=". Raises ValueError for a command without a name."""
    names = tuple(word for word in words if "=" not in word)
    if not names:
        raise ValueError(f"say which sweep: {', '.join(definition.names())}, or a YAML file.")
    own: dict[str, str] = {}
    overrides: list[str] = []
    for word in words:
        key, equals, value = word.partition("=")
        if equals and key in ("seeds", "output", "base_model"):
            own[key] = value
        elif equals:
            overrides.append(word)
    return Asked(
        sweeps=names,
        config=config or definition.configs_folder() / definition.BASE,
        seeds=seeds_of(own.get("seeds", "1")),
        output=Path(own.get("output", "runs/sweep")),
        base_model=own.get("base_model", TINY_BASE if config is None else None),
        overrides=tuple(overrides),
    )


def serial(expanded: Expanded, asked: Asked) -> int:
    """Exit code 0 if all runs are done, 1 if some failed."""
    from nemo_tapo.sweeps.serial import run_all

    failed = run_all(expanded.jobs, asked.config)
    print(f"sweep: {len(expanded.jobs) - len(failed)} of {len(expanded.jobs)} runs are done, in {asked.output}")
    for note in expanded.notes:
        print(f"sweep: {note}")
    for job, found in failed:
        print(f"sweep: {job.name} failed with exit code {found.code}: {found.reason}")
    if failed:
        print("sweep: the same command tries the failed ones again.")
    return 1 if failed else 0


def described(jobs: Sequence[Job], config: Path) -> str:
    """A line a run: how far it is, then the command that it is."""
    lines = []
    for job in jobs:
        command = shlex.join(["nemo-tapo", "run", "--config", str(config), *job.overrides])
        lines.append(f"{state_of(job).value:8}  {command}")
    return "\n".join([*lines, f"{len(jobs)} runs"])


def listed(jobs: Sequence[Job]) -> str:
    """A JSON array of overrides a line, as tools/slurm/launch.py takes them."""
    return "".join(json.dumps(list(job.overrides)) + "\n" for job in jobs)


def submit(asked: Asked, jobs: Sequence[Job], options: Sequence[str]) -> int:
    """Hands the runs to the launcher, one element of a job array each."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl

    if not jobs:
        print("sweep: all runs are done")
        return 0
    file = asked.output / "slurm-list.jsonl"
    replace_text(file, listed(jobs))
    output = f"{'tapo.' if is_nemo_rl(asked.config) else ''}output={asked.output}"
    command = [sys.executable, str(LAUNCHER), *options, "--list", str(file), "--", "run"]
    return subprocess.run([*command, "--config", str(asked.config), output], check=False).returncode


def keep_definitions(output: Path, expanded: Expanded) -> None:
    """The sweeps as run and the seeds asked for, for the report; what an earlier call asked for stays in them.

    Raises ValueError for a file of an earlier call that is damaged.
    """
    import yaml

    asked: dict[str, set[int]] = {}
    for job in expanded.jobs:
        asked.setdefault(job.row.name, set()).add(job.seed)
    for one in expanded.sweeps:
        path = output / definition.SWEEPS / f"{one.name}.yaml"
        path.parent.mkdir(parents=True, exist_ok=True)
        before = {row.name: row for row in definition.read_kept(path).rows} if path.is_file() else {}
        rows = {row.name: row for row in one.rows}
        rows |= {name: row for name, row in before.items() if name not in rows}
        for name, row in rows.items():
            seeds = asked.get(name, set()) | ({*before[name].seeds} if name in before else set())
            rows[name] = row.model_copy(update={"seeds": tuple(sorted(seeds))})
        whole = one.model_copy(update={"rows": tuple(rows.values())})
        replace_text(path, yaml.safe_dump(whole.model_dump(mode="json"), sort_keys=False))
