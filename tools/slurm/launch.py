#!/usr/bin/env python3
"""Submit a run to Slurm, from any directory. Needs sbatch and Python 3.9, nothing installed.

    tools/slurm/launch.py --nodes 2 --time 4:00:00 --container nvcr.io#nvidia/nemo-rl:v0.7.0 -- \\
        train --config examples/configs/X.yaml output=runs/x

What stands behind `--` is what `nemo-tapo` would get, with `output=FOLDER` among it. Left in that folder:

    slurm/submit-<time>/   code and config as they were at submission, and the script: a queued job runs these
    slurm/<job>.log        what the run prints, over all its allocations
    slurm/<job>/<n>/       of the n-th allocation: which nodes came up, and Ray's logs

With a container, `model-cache` beside that folder has the models of all runs there, unless HF_HOME and
NRL_MEGATRON_CHECKPOINT_DIR name other places.

Exit codes of the job: 0 done; 138 stopped before its time limit and not requeued; else those of nemo-tapo, and 1 for a
node that failed. Exit codes of this program: 0 submitted; 2 bad arguments; else sbatch's own.
"""

from __future__ import annotations

import argparse
import hashlib
import itertools
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from mounts import (
    CACHES,
    PLACES,
    choose_caches,
    find_paths,
    find_paths_in_yaml,
    find_unseen,
    list_mounts,
    read_variables,
)

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[1]
CODE = ("nemo_tapo", "tools", "examples")  # what a run needs of this repository
COMMANDS = ("run", "pretrain", "coldstart", "train", "filter", "evaluate", "diagnose")
OUTPUTS = ("output", "tapo.output")  # the local runtime's setting, and the same in a file of NeMo-RL's
TIME = re.compile(r"(?:(\d+)-)?(\d+)(?::(\d+))?(?::(\d+))?")
THEIRS = {"checkpointing.checkpoint_dir": "checkpoints", "logger.log_dir": "logs"}  # NeMo-RL's settings, and our places
NVIDIAS = re.compile(r"(?:docker://)?nvcr\.io[#/]nvidia/nemo-rl(?::([^@]*))?")
TAGS = ("v0.7.0",)  # of it; as in nemo_tapo/runtime/nemo_rl/config/validate.py
MOST = 1000  # configurations of a sweep; Slurm's usual MaxArraySize is 1001


class Bad(Exception):
    """A sentence for whoever typed the command."""


class Configuration(NamedTuple):
    """One run: its folder and the arguments that nemo-tapo gets."""

    folder: Path
    arguments: list[str]


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="launch.py",
        usage="launch.py [options] -- COMMAND [--config FILE] output=FOLDER [key=value ...]",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    add = top.add_argument
    add("--nodes", type=int, default=1, help="with more than one, Ray is brought up across them")
    add("--time", default="4:00:00", help="limit of one allocation, as Slurm writes it (default %(default)s)")
    add("--account")
    add("--partition")
    add("--gpus-per-node", type=int, default=0)
    add("--cpus-per-node", type=int, help="share nodes, taking so many CPUs; without it the nodes are taken whole")
    add("--name", help="of the job (default: the run's folder)")
    add("--container", help="image for pyxis (srun --container-image): a tag, nvcr.io#nvidia/nemo-rl:v0.7.0, or .sqsh")
    add("--mounts", default="", help="SRC:DST[,SRC:DST ...] into the container; the run's folders are added")
    add("--python", help="without a container: the environment's python (default: .venv of this repository)")
    add("--env", action="append", default=[], metavar="KEY=VALUE", help="stands in the script: no secrets; repeatable")
    add("--signal-minutes", type=int, default=10, help="stop and save so long before the limit (default %(default)s)")
    add("--chain", type=int, default=100, help="requeue until done, at most so many allocations (default %(default)s)")
    add("--start-minutes", type=float, default=30, help="a node not up by then ends the job (default %(default)s)")
    add("--sweep", action="append", default=[], metavar="KEY=A,B,C", help="a job array over the values; repeatable")
    add("--list", metavar="FILE", help="a job array over its lines: JSON arrays of settings, each with its own output=")
    add("--at-once", type=int, help="elements of the array that may run at a time")
    add("--sbatch", action="append", default=[], metavar="OPTION", help="any other, as qos=high; repeatable")
    add("--dry-run", action="store_true", help="print the script, submit nothing")
    add("arguments", nargs="*", help=argparse.SUPPRESS)
    return top


def main(argv: Sequence[str] | None = None) -> int:
    try:
        return launch(parser().parse_args(argv))
    except Bad as bad:
        print(f"launch.py: {bad}", file=sys.stderr)
        return 2


def launch(options: argparse.Namespace) -> int:
    """Check, take the snapshot, submit. Raises Bad before anything is written."""
    check(options)
    base = output_folder(options.arguments)
    submission = base / "slurm" / time.strftime("submit-%Y%m%d-%H%M%S")
    config, snapshot_of_config = config_in(submission, options.arguments)
    arguments = [str(config) if config and a == config_argument(options.arguments) else a for a in options.arguments]
    runs = configurations(arguments, base, options.sweep, options.list)
    check_mounts(options, runs, base)
    script = text_of(options, runs, base, submission)
    if options.dry_run:
        print(script)
        return 0
    if not shutil.which("sbatch"):
        raise Bad("there is no sbatch here: submit from a login node, or look at the script with --dry-run.")
    make_caches(options, base)
    take_snapshot(submission, snapshot_of_config)
    for run in runs:
        run.folder.mkdir(parents=True, exist_ok=True)
    (submission / "job.sh").write_text(script)
    return submit(submission / "job.sh", base, runs)


# ---- checks ----------------------------------------------------------------------------------------------------------


def check(options: argparse.Namespace) -> None:
    """Raise Bad for what Slurm or the job would find out later."""
    least_1 = ("nodes", "chain", "signal_minutes", "at_once", "cpus_per_node")
    for name, least in (*((name, 1) for name in least_1), ("gpus_per_node", 0), ("start_minutes", 0.1)):
        value = getattr(options, name)
        if value is not None and value < least:
            raise Bad(f"--{name.replace('_', '-')} is {value}, it has to be {least} or more.")
    if minutes(options.time) <= options.signal_minutes:
        raise Bad(
            f"--time {options.time} leaves nothing before the signal at --signal-minutes {options.signal_minutes}: "
            "raise one or lower the other."
        )
    for pair in options.env:
        if not re.fullmatch(r"[A-Za-z_]\w*=.*", pair, re.DOTALL):
            raise Bad(f"--env {pair!r} is not KEY=VALUE; what the environment holds already goes along by itself.")
    if options.container and options.python:
        raise Bad("--container and --python exclude each other: the container has its own.")
    nvidias = NVIDIAS.fullmatch(options.container or "")
    if nvidias and nvidias[1] not in TAGS:
        raise Bad(f"--container {options.container} is not supported: of NVIDIA's, {', '.join(TAGS)} is.")
    if options.mounts and not options.container:
        raise Bad("--mounts is for a container, and no --container is given.")
    for mount in filter(None, options.mounts.split(",")):
        if not re.fullmatch(r"/[^:]*:/[^:]*(:[\w+]+)?", mount):
            raise Bad(f"--mounts: {mount!r} is not /SRC:/DST.")
    if not options.container and not shutil.which(python_of(options)):
        raise Bad(f"there is no python at {python_of(options)}: name one with --python, or a --container.")
    if not options.arguments or options.arguments[0] not in COMMANDS:
        found = options.arguments[0] if options.arguments else "nothing"
        raise Bad(f"behind -- comes what nemo-tapo is to do ({', '.join(COMMANDS)}), here {found}.")
    config = config_argument(options.arguments)
    if config is not None and not Path(config).is_file():
        raise Bad(f"no config file {config}.")


def minutes(limit: str) -> float:
    """Parse a time in one of Slurm's forms: M, M:S, H:M:S, D-H, D-H:M, D-H:M:S."""
    found = TIME.fullmatch(limit)
    if not found:
        raise Bad(f"--time {limit!r} is none of M, M:S, H:M:S, D-H, D-H:M, D-H:M:S.")
    days, a, b, c = found.groups()
    if days is not None:
        return int(days) * 1440 + int(a) * 60 + int(b or 0) + int(c or 0) / 60
    return int(a) * 60 + int(b or 0) + int(c) / 60 if c is not None else int(a) + int(b or 0) / 60


def python_of(options: argparse.Namespace) -> str:
    """Return the interpreter on the nodes; in the container it is the image's own, the first on its PATH."""
    if options.container:
        return "python"
    return str(Path(options.python or ROOT / ".venv" / "bin" / "python").absolute())  # a link into a venv stays one


def output_folder(arguments: Sequence[str]) -> Path:
    for argument in arguments:
        key, _, value = argument.partition("=")
        if key in OUTPUTS and value:
            return Path(value.strip("\"'")).resolve()
    raise Bad("add output=FOLDER (tapo.output=FOLDER with a file of NeMo-RL's): code and logs are kept there too.")


def config_argument(arguments: Sequence[str]) -> str | None:
    for i, argument in enumerate(arguments):
        if argument == "--config" and i + 1 < len(arguments):
            return arguments[i + 1]
        if argument.startswith("--config="):
            raise Bad("write --config FILE, not --config=FILE.")
    return None


# ---- what a container sees -------------------------------------------------------------------------------------------


def caches_of(options: argparse.Namespace, base: Path) -> dict[str, Path]:
    """Return the cache variables that the script sets. Without a container the user's home folder is there as here."""
    return choose_caches(options.env, base) if options.container else {}


def mounts_of(options: argparse.Namespace, base: Path) -> list[str]:
    """Return the container's mounts: those asked for, the runs' folder, this folder, and the caches."""
    return list_mounts(options.mounts, [str(base), os.getcwd(), *map(str, caches_of(options, base).values())])


def check_mounts(options: argparse.Namespace, runs: Sequence[Configuration], base: Path) -> None:
    """Raise Bad for a folder or file that the run needs and the container would not have.

    A path in the settings that is not here either may be the image's own; a folder to write to may not.
    """
    if not options.container:
        return
    variables = read_variables(options.env)
    needed = [(f"{name}={variables[name]}", variables[name]) for name in PLACES if name in variables]
    for run in runs:
        settings = named(run.arguments)
        needed += [(f"{key}={settings[key]}", settings[key]) for key in THEIRS if key in settings]
        needed += [(argument, path) for argument in run.arguments for path in find_paths(argument)]
    config = config_argument(options.arguments)
    if config is not None:
        needed += [(f"{config}: {line}", path) for line, path in find_paths_in_yaml(Path(config))]
    mounts = mounts_of(options, base)
    for said, path in needed:
        missing = find_unseen(path, mounts)
        if missing is not None:
            raise Bad(f"{said}: the container would not have {missing}, add it (or a folder above it) to --mounts.")


def make_caches(options: argparse.Namespace, base: Path) -> None:
    for folder in caches_of(options, base).values():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            names = " and ".join(CACHES)
            raise Bad(
                f"{folder} cannot be made ({error.strerror}): set {names} to folders that all nodes see."
            ) from None


# ---- snapshot --------------------------------------------------------------------------------------------------------


def config_in(submission: Path, arguments: Sequence[str]) -> tuple[Path | None, Path | None]:
    """Return where the config will be read from, and the folder of YAML files to copy if it is not in here."""
    given = config_argument(arguments)
    if given is None:
        return None, None
    config = Path(given).resolve()
    if ROOT in config.parents and config.relative_to(ROOT).parts[0] in CODE:
        return submission / "code" / config.relative_to(ROOT), None
    return submission / "config" / config.name, config.parent


def take_snapshot(submission: Path, config_folder: Path | None) -> None:
    """Copy code and config into `submission`; write the commit, and what was changed since, into COMMIT."""
    try:
        submission.mkdir(parents=True)
    except OSError as error:
        raise Bad(f"{submission} cannot be made: {error.strerror}.") from None
    unwanted = shutil.ignore_patterns("__pycache__", "*.pyc")
    for name in CODE:
        shutil.copytree(ROOT / name, submission / "code" / name, ignore=unwanted)
    if config_folder is not None:
        for file in sorted(config_folder.rglob("*.yaml"))[:MOST]:
            target = submission / "config" / file.relative_to(config_folder)
            target.parent.mkdir(parents=True, exist_ok=True)
            shutil.copyfile(file, target)
    (submission / "code" / "COMMIT").write_text(commit())


def commit() -> str:
    def git(*arguments: str) -> str:
        command = ["git", "-C", str(ROOT), *arguments]
        return subprocess.run(command, check=False, capture_output=True, text=True).stdout

    if not shutil.which("git"):
        return "unknown: no git here\n"
    return (git("rev-parse", "HEAD") or "not a git checkout\n") + git("status", "--short", "--", *CODE)


# ---- configurations --------------------------------------------------------------------------------------------------


def configurations(
    arguments: Sequence[str], base: Path, sweep: Sequence[str], listed: str | None = None
) -> list[Configuration]:
    """List the runs: one, or one a combination of swept values in <output>/000-key-value-..., or those listed."""
    if listed is not None:
        if sweep:
            raise Bad("--list and --sweep exclude each other.")
        return list_of(arguments, base, Path(listed))
    axes = [axis(text) for text in sweep]
    if axes and (shared := named(arguments).keys() & THEIRS):
        raise Bad(f"{min(shared)} would be one folder for the whole sweep: leave it out, and each run has its own.")
    if not axes:
        return [Configuration(base, with_output(arguments, base))]
    chosen = list(itertools.product(*axes))
    if len(chosen) > MOST:
        raise Bad(f"the sweep has {len(chosen)} configurations, more than {MOST}.")
    runs = []
    for i, overrides in enumerate(chosen):
        label = re.sub(r"[^\w.+-]+", "-", ",".join(overrides))[:80].strip("-")  # "=" and "," mean something to Hydra
        folder = base / f"{i:03d}-{label}"
        runs.append(Configuration(folder, [*with_output(arguments, folder), *overrides]))
    return runs


def list_of(arguments: Sequence[str], base: Path, path: Path) -> list[Configuration]:
    """Read one run a line, as `nemo-tapo sweep ... --list FILE` writes them; its settings replace the output given."""
    if not path.is_file():
        raise Bad(f"no list {path}.")
    shared = [argument for argument in arguments if argument.partition("=")[0] not in OUTPUTS]
    runs = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            settings = json.loads(line)
            folder = output_folder(settings)
        except (ValueError, AttributeError, TypeError, Bad):
            raise Bad(f"{path}: line {number} is not a JSON array of settings with an output= among them.") from None
        if base not in folder.parents:  # that is where code and logs are kept, and what a container sees
            raise Bad(f"{path}: line {number}: its output {folder} is not below {base}.")
        runs.append(Configuration(folder, [*shared, *with_output(settings, folder)]))
    if not 0 < len(runs) <= MOST:
        raise Bad(f"{path} has {len(runs)} runs; a job array has 1 to {MOST}.")
    if len({run.folder for run in runs}) < len(runs):
        raise Bad(f"{path}: two runs have the same output.")
    return runs


def axis(text: str) -> list[str]:
    """Split `key=a,[b,c],d` into three overrides; commas in brackets and quotes belong to a value."""
    key, _, values = text.partition("=")
    if not values:
        raise Bad(f"--sweep {text!r} is not KEY=A,B,C.")
    if key in OUTPUTS:
        raise Bad("a sweep chooses the output folders itself: give one output= and sweep another key.")
    parts = re.findall(r"""((?:\[[^]]*\]|\{[^}]*\}|\([^)]*\)|"[^"]*"|'[^']*'|[^,])+)""", values)
    return [f"{key}={part}" for part in parts]


def with_output(arguments: Sequence[str], folder: Path) -> list[str]:
    """Put the run's folder in place of the one given, and NeMo-RL's folders into it unless the command names others."""
    placed = [f"{a.partition('=')[0]}={folder}" if a.partition("=")[0] in OUTPUTS else a for a in arguments]
    if "tapo.output" not in named(arguments):
        return placed
    return placed + [f"{key}={folder / name}" for key, name in THEIRS.items() if key not in named(arguments)]


def named(arguments: Sequence[str]) -> dict[str, str]:
    """Find the settings among the arguments: Hydra's key=value, +key=value, ++key=value."""
    pairs = (argument.partition("=") for argument in arguments)
    return {key.lstrip("+"): value for key, equals, value in pairs if equals}


# ---- the script ------------------------------------------------------------------------------------------------------


def text_of(options: argparse.Namespace, runs: Sequence[Configuration], base: Path, submission: Path) -> str:
    """Write the whole batch script: Slurm's options, this run's values, and job.sh."""
    lines = ["#!/bin/bash", *(f"#SBATCH --{line}" for line in sbatch_options(options, runs, base)), ""]
    exported = [(name, value) for name, _, value in (pair.partition("=") for pair in options.env)]
    exported += caches_of(options, base).items()
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in exported]
    values: dict[str, object] = {
        "NT_CODE": submission / "code",
        "NT_PYTHON": python_of(options),
        "NT_CONTAINER": options.container or "",
        "NT_GPUS": options.gpus_per_node,
        "NT_START_SECONDS": int(options.start_minutes * 60),
        "NT_CHAIN": options.chain,
    }
    lines += [f"export {name}={shlex.quote(str(value))}" for name, value in values.items()]
    lines += [f"STEP=({shlex.join(step_options(options, base))})", "case ${SLURM_ARRAY_TASK_ID:-0} in"]
    for i, run in enumerate(runs):
        checkpoints = Path(named(run.arguments).get("checkpointing.checkpoint_dir", run.folder / "checkpoints"))
        lines += [f"{i})", f"    export NT_RUN={shlex.quote(str(run.folder))}"]
        lines += [f"    export NT_CHECKPOINTS={shlex.quote(str(checkpoints.resolve()))}"]
        lines += [f"    COMMAND=({shlex.join(run.arguments)})", "    ;;"]
    return "\n".join([*lines, "esac", "", (HERE / "job.sh").read_text()])


def sbatch_options(options: argparse.Namespace, runs: Sequence[Configuration], base: Path) -> list[str]:
    array = len(runs) > 1 or bool(options.sweep)
    unique = hashlib.sha256(str(base).encode()).hexdigest()[:6]
    lines = [
        f"job-name={options.name or base.name}-{unique}",
        f"nodes={options.nodes}",
        "ntasks-per-node=1",
        f"cpus-per-task={options.cpus_per_node}" if options.cpus_per_node else "exclusive",
        f"time={options.time}",
        f"signal=B:USR1@{options.signal_minutes * 60}",
        "requeue",
        "open-mode=append",
        f"output={base}/slurm/{'%A_%a' if array else '%j'}.log",
        # Two jobs in one folder would overwrite each other: one of a name runs at a time.
        f"array=0-{len(runs) - 1}" + (f"%{options.at_once}" if options.at_once else "")
        if array
        else "dependency=singleton",
    ]
    named = (("account", options.account), ("partition", options.partition))
    lines += [f"{name}={value}" for name, value in named if value]
    if options.gpus_per_node:
        lines.append(f"gres=gpu:{options.gpus_per_node}")
    return [*lines, *(extra.lstrip("-") for extra in options.sbatch)]


def step_options(options: argparse.Namespace, base: Path) -> list[str]:
    """List what every srun of the job gets, besides its nodes."""
    lines = [f"--gres=gpu:{options.gpus_per_node}"] if options.gpus_per_node else []
    if not options.container:
        return lines
    return [
        *lines,
        f"--container-image={options.container}",
        f"--container-mounts={','.join(mounts_of(options, base))}",
        f"--container-workdir={os.getcwd()}",
        "--no-container-mount-home",
    ]


def submit(script: Path, base: Path, runs: Sequence[Configuration]) -> int:
    """Call sbatch; print the job's number and where its log will be. Returns sbatch's exit code."""
    done = subprocess.run(["sbatch", "--parsable", str(script)], check=False, capture_output=True, text=True)
    if done.returncode:
        print(f"launch.py: sbatch refused: {done.stderr.strip()}", file=sys.stderr)
        return done.returncode
    job = done.stdout.strip().split(";")[0]
    many = len(runs) > 1
    print(f"job {job}" + (f", {len(runs)} configurations" if many else ""))
    print(f"script  {script}")
    print(f"log     {base}/slurm/{job}{'_*' if many else ''}.log")
    return 0


if __name__ == "__main__":
    sys.exit(main())
