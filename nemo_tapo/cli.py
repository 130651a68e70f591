"""nemo-tapo <command> --config FILE [key=value ...]

Exit codes: 0 done; 1 an unexpected failure; 2 bad input, nothing was lost; 3 an engine or actor was lost; 4 the disk
is full; 130 / 143 / 138 stopped by Ctrl-C / SIGTERM / SIGUSR1 with a checkpoint: the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tapo.commands import export, folders, grade, judge, replay, start, sweep, watch
from nemo_tapo.commands.run_stage import run_stages
from nemo_tapo.config.algorithms import ALGORITHMS
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.utils.errors import DiskFull, RuntimeFailure, Stopped, is_full_disk, is_out_of_memory
from nemo_tapo.utils.files import require_free_disk
from nemo_tapo.utils.text_table import make_visible

DONE, FAILED, BAD_INPUT, RUNTIME_LOST, DISK_FULL = 0, 1, 2, 3, 4
# A path that a user gave cannot be used.
BAD_PATH = (
    errno.ENAMETOOLONG, errno.ENOENT, errno.EEXIST, errno.ENOTDIR, errno.EISDIR, errno.EACCES, errno.EPERM, errno.EROFS,
    errno.ELOOP,
)  # fmt: skip
GO_ON = "What was saved before is kept; the same command goes on from it."
OTHER_ALGORITHMS = [name for name in ALGORITHMS if name != "tapo"]


def build_parser() -> argparse.ArgumentParser:
    """Build the parser of the whole command line."""
    top = argparse.ArgumentParser(
        prog="nemo-tapo",
        description="TAPO (arXiv 2606.18844): reinforcement learning from the model's own corrected mistakes.",
        epilog=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, command in COMMANDS.items():
        sub = commands.add_parser(name, help=command.text, description=command.text)
        if command.takes_config:
            sub.add_argument("--config", type=Path, help="a YAML file; without it, every setting at its default")
        command.add_options(sub)
        if command.takes_config:
            sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")
    return top


def add_dry_run(sub: argparse.ArgumentParser) -> None:
    """Add --dry-run."""
    sub.add_argument("--dry-run", action="store_true", help="print the plan, start nothing")


def add_run_options(sub: argparse.ArgumentParser) -> None:
    """Add --dry-run, and --full for it."""
    add_dry_run(sub)
    add_plan_options(sub)


def add_filter_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `filter`."""
    add_run_options(sub)
    sub.add_argument("--model", help="model.path")
    sub.add_argument("--data", help="task.mathematics.train.path: a JSONL or Parquet file")


def add_diagnose_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `diagnose`."""
    add_dry_run(sub)
    sub.add_argument("--model", help="model.path")


def add_judge_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `judge`."""
    add_dry_run(sub)
    judge.add_arguments(sub)


def add_plan_options(sub: argparse.ArgumentParser) -> None:
    """Add --full."""
    sub.add_argument(
        "--full", action="store_true", help="show with the plan every setting; of a cluster all assumptions and notes"
    )


def main(argv: Sequence[str] | None = None) -> int:
    """Run a command and return its exit code.

    An expected failure prints one sentence to standard error.
    """
    top = build_parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings given after an option as well as before it
        arguments.overrides += rest
    try:
        code = COMMANDS[arguments.command].run(arguments)
        sys.stdout.flush()  # inside the try: a closed pipe is not a failure
        return code
    except Stopped as stopped:
        return print_failure(f"{stopped}. The same command goes on from there.", 128 + stopped.signum)
    except DiskFull as error:
        return print_failure(error.strerror or str(error), DISK_FULL)
    except RuntimeFailure as error:
        return print_failure(f"{str(error).rstrip('.')}. {error.kept}", RUNTIME_LOST)
    except ValueError as error:
        return print_failure(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return print_failure("interrupted; what was saved before is kept.", 130)
    except (MemoryError, RuntimeError) as error:
        if not is_out_of_memory(error):
            raise
        return print_failure(f"there is not enough memory. {GO_ON}", FAILED)
    except BrokenPipeError:  # as in `nemo-tapo report ... | head`: the reader stopped reading
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # so that flushing at exit does not fail either
        return DONE
    except OSError as error:
        what = f" for {error.filename}" if error.filename else ""
        if is_full_disk(error):
            return print_failure(f"no room on the disk{what}. Free some. {GO_ON}", DISK_FULL)
        if error.errno in (errno.EMFILE, errno.ENFILE):
            return print_failure(f"too many open files{what}: raise the limit (ulimit -n). {GO_ON}", FAILED)
        if error.errno in BAD_PATH and error.filename:
            return print_failure(f"{error.filename}: {error.strerror}.", BAD_INPUT)
        raise


def print_failure(sentence: str, code: int) -> int:
    """Print `sentence` to standard error and return `code`."""
    print(f"nemo-tapo: {make_visible(sentence)}", file=sys.stderr)  # it may quote a server's or a model's words
    return code


def run_with_config(arguments: argparse.Namespace) -> int:
    """Run a command that takes a config file of this package or of NeMo-RL. Return the exit code."""
    from nemo_tapo.config.load import load_config
    from nemo_tapo.config.run_config import to_yaml
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config
    from nemo_tapo.stages.branch import continue_as_branch, find_branch
    from nemo_tapo.stages.data_preview import check_data
    from nemo_tapo.stages.dry_run import describe_command
    from nemo_tapo.tracking.trackers import check_trackers
    from nemo_tapo.utils.code_version import record_code
    from nemo_tapo.utils.run_folder import claim_run_folder

    if is_nemo_rl_config(arguments.config):
        return run_on_nemo_rl(arguments)
    cfg = load_config(arguments.config, [*overrides_from_options(arguments), *arguments.overrides])
    if arguments.command == "plan" or arguments.dry_run:
        print(describe_command(cfg, "run" if arguments.command == "plan" else arguments.command, arguments.full))
        return DONE
    check_local_stack(cfg, arguments.command)
    check_data(cfg, arguments.command)
    check_coldstart(cfg, arguments.command)
    if arguments.command in ("run", "train"):
        check_trackers(cfg.logger)
    branch = find_branch(cfg, arguments.command)
    if branch is not None:
        print(f"nemo-tapo: {branch.sentence}", flush=True)
        cfg = continue_as_branch(cfg, branch)
    require_free_disk(cfg.output, cfg.checkpoint.min_free_gib)
    with claim_run_folder(cfg.output, to_yaml(cfg), arguments.command):
        record_code(cfg.output, arguments.command)
        if arguments.command == "pretrain":
            from nemo_tapo.stages.pretrain import prepare_initial_model

            cfg = prepare_initial_model(cfg)
        message = asyncio.run(run_stages(cfg, arguments.command))
    if message is not None:
        print(message)
    return DONE


def run_on_nemo_rl(arguments: argparse.Namespace) -> int:
    """Run a command with a NeMo-RL config file. Everything is checked before a GPU is touched."""
    from nemo_tapo.runtime.nemo_rl.config import describe_run
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import load_cluster_run
    from nemo_tapo.runtime.nemo_rl.runtime import prepare_master_config
    from nemo_tapo.stages.data_preview import check_data
    from nemo_tapo.utils.code_version import record_code
    from nemo_tapo.utils.run_folder import claim_run_folder

    run = load_cluster_run(arguments.config, arguments.overrides)
    faults = describe_run.find_faults(run)
    if arguments.command == "plan" or arguments.dry_run:
        print(describe_run.describe(run, arguments.full, faults), flush=True)
        describe_run.raise_faults(faults)
        return DONE
    describe_run.raise_faults(faults)
    prepare_master_config(run.master, run.cfg, arguments.command)  # raises ValueError for what it cannot run
    describe_run.require_environment(run)
    check_data(run.cfg, arguments.command)
    check_coldstart(run.cfg, arguments.command)
    with claim_run_folder(run.cfg.output, describe_run.as_yaml(run), arguments.command):
        record_code(run.cfg.output, arguments.command)
        message = asyncio.run(run_stages(run.cfg, arguments.command, run.master))
    if message is not None:
        print(message)
    return DONE


def check_local_stack(cfg: RunConfig, command: str) -> None:
    """Raise ValueError if the command starts the local runtime and this machine cannot have it."""
    served = command == "evaluate" and cfg.evaluation.endpoint.url is not None
    if cfg.runtime == "local" and not served:
        from nemo_tapo.runtime.local_stack import find_local_fault

        if fault := find_local_fault():
            raise ValueError(fault)


def check_coldstart(cfg: RunConfig, command: str) -> None:
    """Raise ValueError if the command includes a cold start that is bound to fail, before engines are started."""
    if command == "coldstart" or (command == "run" and "coldstart" in cfg.parts):
        from nemo_tapo.stages.coldstart.stage import check_coldstart_config

        check_coldstart_config(cfg)


def overrides_from_options(arguments: argparse.Namespace) -> list[str]:
    """Return the options that stand for settings as overrides. Values are quoted, so that any path may be given.

    >>> options = argparse.Namespace(command="filter", model="runs/a b", data=None)
    >>> overrides_from_options(options)
    ['model.path="runs/a b"']
    """
    if arguments.command not in ("filter", "diagnose"):
        return []
    data = getattr(arguments, "data", None)
    given = {"model.path": arguments.model, "task.mathematics.train.path": data}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    if data:  # replaces a data set that the config may name
        overrides += ["task.name=mathematics", "task.mathematics.train.hub=null", "task.mathematics.train.rows=null"]
    return overrides


@dataclass(frozen=True)
class Command:
    """A command: its line in --help, the function that runs it, and the arguments that it takes."""

    text: str
    run: Callable[[argparse.Namespace], int] = run_with_config  # returns the exit code of a run without an exception
    add_options: Callable[[argparse.ArgumentParser], None] = add_run_options
    takes_config: bool = True  # a config file before its options, settings after them


def run_demo(arguments: argparse.Namespace) -> int:
    """Run the main job of README wherever the package is installed; settings may be added. Return the exit code."""
    arguments.command = "run"
    arguments.config, settings = start.find_demo_arguments()
    arguments.overrides = [*settings, *arguments.overrides]
    return run_with_config(arguments)


def add_demo_options(sub: argparse.ArgumentParser) -> None:
    """Add the options of `demo`, which has its config file."""
    add_run_options(sub)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")


COMMANDS = {
    "demo": Command(
        "the main job with the tiny model, into runs/demo; needs no checkout, takes about 10 minutes on two cores",
        run_demo,
        add_demo_options,
        takes_config=False,
    ),
    "init": Command(
        "a new folder with a config, a task file and a README to start a project of your own from",
        start.run_init,
        start.add_init_arguments,
        takes_config=False,
    ),
    "run": Command("the main job: cold start, evaluation, RL, evaluation, report; goes on where it was stopped"),
    "sweep": Command(
        "the runs of a table of the paper, over several seeds; skips what is done, goes on where it was stopped",
        sweep.sweep,
        sweep.add_arguments,
        takes_config=False,
    ),
    "pretrain": Command("train a tiny base model on a generated task, from nothing, into <output>/hf"),
    "coldstart": Command("build the cold-start data from the model's own samples and train on it, into <output>/hf"),
    "train": Command(f"TAPO (or algorithm={', '.join(OTHER_ALGORITHMS)}) from model.path, into <output>/hf"),
    "filter": Command(
        "sample the training queries and keep those of middling difficulty, into <output>/kept.jsonl",
        add_options=add_filter_options,
    ),
    "diagnose": Command(
        "whether TAPO is likely to help a model, and why: one step without its update, into <output>/diagnosis.json",
        add_options=add_diagnose_options,
    ),
    "evaluate": Command(
        "pass@k of a model, a checkpoint or an endpoint on the benchmarks, into <output>/evaluation.json"
    ),
    "compare": Command(
        "two evaluations of the same problems, with the paired differences",
        folders.run_compare,
        folders.add_compare_arguments,
        takes_config=False,
    ),
    "grade": Command(
        "grade a JSONL file of {id, answer, responses}", grade.grade, grade.add_arguments, takes_config=False
    ),
    "judge": Command(
        "DSR and ERR of evaluated responses by a judge behind an endpoint; or its agreement with human labels",
        judge.judge,
        add_judge_options,
    ),
    "plan": Command(
        "what a run will hold and take (on a cluster: memory, time, disk), and whether it can; starts nothing",
        add_options=add_plan_options,
    ),
    "report": Command(
        "write the plots and the HTML page of a run folder again; of a sweep's folder: its tables",
        folders.run_report,
        folders.add_report_arguments,
        takes_config=False,
    ),
    "export": Command(
        "a finished run's model with tokenizer and model card in a new folder, and on request on the Hugging Face Hub",
        export.run_export,
        export.add_arguments,
        takes_config=False,
    ),
    "show": Command(
        "a run's trajectories in the terminal", folders.run_show, folders.add_show_arguments, takes_config=False
    ),
    "watch": Command(
        "a page on this machine that follows runs while they train: curves, time, every rollout",
        watch.watch,
        watch.add_arguments,
        takes_config=False,
    ),
    "replay": Command(
        "compute a step again from a run's records and compare; exit code 1 where they differ",
        replay.replay,
        replay.add_arguments,
        takes_config=False,
    ),
}

if __name__ == "__main__":
    sys.exit(main())
