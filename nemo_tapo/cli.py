"""nemo-tapo <command> --config FILE [key=value ...]

Exit codes: 0 done; 1 an unexpected failure; 2 bad input, nothing was lost; 3 an engine or actor was lost; 4 the disk
is full; 130 / 143 / 138 stopped by Ctrl-C / SIGTERM / SIGUSR1 with a checkpoint: the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.utils.errors import DiskFull, RuntimeFailure, Stopped
from nemo_tapo.utils.files import require_free
from nemo_tapo.utils.signals import Stop

if TYPE_CHECKING:
    from nemo_tapo.interfaces import Runtime

DONE, FAILED, BAD_INPUT, RUNTIME_LOST, DISK_FULL = 0, 1, 2, 3, 4

COMMANDS = {
    "run": "the main job: cold start, evaluation, RL, evaluation, report; goes on where it was stopped",
    "sweep": "the runs of a table of the paper, over several seeds; skips what is done, goes on where it was stopped",
    "pretrain": "train a tiny base model on the generated task, from nothing, into <output>/hf",
    "coldstart": "build the cold-start data from the model's own samples and train on it, into <output>/hf",
    "train": "TAPO (or algorithm=grpo, opsd, reflective_sft) from model.path, into <output>/hf",
    "filter": "sample the training queries and keep those of middling difficulty, into <output>/kept.jsonl",
    "evaluate": "pass@k of a model, a checkpoint or an endpoint on the benchmarks, into <output>/evaluation.json",
    "compare": "two evaluations of the same problems, with the paired differences",
    "grade": "grade a JSONL file of {id, answer, responses}",
    "judge": "DSR and ERR of evaluated responses by a judge behind an endpoint; or its agreement with human labels",
    "plan": "what a run will hold and take (on a cluster: memory, time, disk), and whether it can; starts nothing",
    "report": "write the plots and the HTML page of a run folder again; of a sweep's folder: its tables",
    "show": "a run's trajectories in the terminal",
}
OF_A_FOLDER = ("report", "show", "compare")  # take run folders instead of a config


def parser() -> argparse.ArgumentParser:
    """The command line."""
    top = argparse.ArgumentParser(
        prog="nemo-tapo",
        description="TAPO (arXiv 2606.18844): reinforcement learning from the model's own corrected mistakes.",
        epilog=(__doc__ or "").split("\n\n", 1)[1],
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = top.add_subparsers(dest="command", required=True, metavar="command")
    for name, text in COMMANDS.items():
        sub = commands.add_parser(name, help=text, description=text)
        if name in OF_A_FOLDER:
            arguments_of_a_folder(sub, name)
        elif name == "grade":
            from nemo_tapo.commands.grade import add_arguments as add_grade_arguments

            add_grade_arguments(sub)
        elif name == "sweep":
            from nemo_tapo.commands.sweep import add_arguments as add_sweep_arguments

            add_sweep_arguments(sub)
        else:
            arguments_of_a_config(sub, name)
    return top


def arguments_of_a_folder(sub: argparse.ArgumentParser, name: str) -> None:
    if name == "compare":
        sub.add_argument("first", type=Path, help="folder of an evaluation")
        sub.add_argument("second", type=Path, help="folder of another; differences are second minus first")
        return
    sub.add_argument("folder", type=Path, help="a run's output folder" + (", or a sweep's" if name == "report" else ""))
    if name == "report":
        sub.add_argument("--table", action="append", default=[], help="of a sweep: only this one (table4); repeatable")
    if name == "show":
        sub.add_argument("--step", type=int, help="only this step (default: the last)")
        sub.add_argument("--limit", type=int, default=10, help="at most so many trajectories")


def arguments_of_a_config(sub: argparse.ArgumentParser, name: str) -> None:
    sub.add_argument("--config", type=Path, help="a YAML file; without it, every setting at its default")
    if name == "plan":
        sub.add_argument("--full", action="store_true", help="show every setting, NeMo-RL's too")
    else:
        sub.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, start nothing")
    if name == "filter":
        sub.add_argument("--model", help="model.path")
        sub.add_argument("--data", help="task.mathematics.train.path: a JSONL or Parquet file")
    if name == "judge":
        from nemo_tapo.commands.judge import add_arguments as add_judge_arguments

        add_judge_arguments(sub)
    sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Expected failures end in one sentence on standard error."""
    top = parser()
    arguments, rest = top.parse_known_args(argv)
    if rest and (not hasattr(arguments, "overrides") or any(word.startswith("-") for word in rest)):
        top.error(f"unrecognized arguments: {' '.join(rest)}")
    if rest:  # settings on both sides of an option
        arguments.overrides += rest
    try:
        code = run_command(arguments)
        sys.stdout.flush()  # here, where a closed pipe is no failure
        return code
    except Stopped as stopped:
        return fail(f"{stopped}. The same command goes on from there.", 128 + stopped.signum)
    except DiskFull as error:
        return fail(error.strerror or str(error), DISK_FULL)
    except RuntimeFailure as error:
        return fail(f"{str(error).rstrip('.')}. {error.kept}", RUNTIME_LOST)
    except ValueError as error:
        return fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return fail("interrupted; what was saved before is kept.", 130)
    except BrokenPipeError:  # `nemo-tapo report ... | head`: the reader has read enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())  # nor may what is buffered fail at the end
        return DONE


def fail(sentence: str, code: int) -> int:
    print(f"nemo-tapo: {sentence}", file=sys.stderr)
    return code


def run_command(arguments: argparse.Namespace) -> int:
    """Dispatches; raises what `main` turns into exit codes."""
    if arguments.command in OF_A_FOLDER:
        return of_a_folder(arguments)
    if arguments.command == "grade":
        from nemo_tapo.commands.grade import grade

        return grade(arguments)
    if arguments.command == "sweep":
        from nemo_tapo.commands.sweep import sweep

        return sweep(arguments)
    if arguments.command == "judge":
        from nemo_tapo.commands.judge import judge

        return judge(arguments)
    from nemo_tapo.config.load import load
    from nemo_tapo.config.run_config import as_yaml
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl
    from nemo_tapo.stages.data_preview import check_data
    from nemo_tapo.stages.dry_run import describe
    from nemo_tapo.utils.run_folder import folder_of_run

    if is_nemo_rl(arguments.config):
        return on_nemo_rl(arguments)
    cfg = load(arguments.config, [*shorthands(arguments), *arguments.overrides])
    if arguments.command == "plan" or arguments.dry_run:
        print(describe(cfg, "run" if arguments.command == "plan" else arguments.command))
        return DONE
    check_data(cfg, arguments.command)
    check_coldstart(cfg, arguments.command)
    require_free(cfg.output, cfg.checkpoint.min_free_gib)
    with folder_of_run(cfg.output, as_yaml(cfg), arguments.command):
        if arguments.command == "pretrain":
            from nemo_tapo.stages.pretrain import initialise

            cfg = initialise(cfg)
        told = asyncio.run(run_stages(cfg, arguments.command))
    if told is not None:
        print(told)
    return DONE


def on_nemo_rl(arguments: argparse.Namespace) -> int:
    """A command with a NeMo-RL config file: everything is checked before a GPU is touched."""
    from nemo_tapo.runtime.nemo_rl.config import describe_run as describe_run
    from nemo_tapo.runtime.nemo_rl.runtime import prepared
    from nemo_tapo.stages.data_preview import check_data
    from nemo_tapo.utils.run_folder import folder_of_run

    run = describe_run.checked(arguments.config, arguments.overrides)
    if arguments.command == "plan" or arguments.dry_run:
        print(describe_run.describe(run, full=getattr(arguments, "full", False)))
        return DONE
    prepared(run.master, run.cfg, arguments.command)  # for its refusals
    describe_run.require_environment(run)
    check_data(run.cfg, arguments.command)
    check_coldstart(run.cfg, arguments.command)
    with folder_of_run(run.cfg.output, describe_run.as_yaml(run), arguments.command):
        told = asyncio.run(run_stages(run.cfg, arguments.command, run.master))
    if told is not None:
        print(told)
    return DONE


def check_coldstart(cfg: RunConfig, command: str) -> None:
    """Raises ValueError for a cold start that could not end well, before engines are started."""
    if command == "coldstart" or (command == "run" and "coldstart" in cfg.parts):
        from nemo_tapo.stages.coldstart.stage import check

        check(cfg)


def shorthands(arguments: argparse.Namespace) -> list[str]:
    """Options that stand for settings, as overrides; the values are quoted, so that any path may be given."""
    if arguments.command != "filter":
        return []
    given = {"model.path": arguments.model, "task.mathematics.train.path": arguments.data}
    overrides = [f"{key}={json.dumps(value)}" for key, value in given.items() if value]
    if arguments.data:  # instead of a data set that the config may name
        overrides += ["task.name=mathematics", "task.mathematics.train.hub=null", "task.mathematics.train.rows=null"]
    return overrides


def of_a_folder(arguments: argparse.Namespace) -> int:
    """`report`, `show` and `compare`."""
    if arguments.command == "compare":
        from nemo_tapo.evaluation.compare import compare

        print(compare(arguments.first, arguments.second))
        return DONE
    from nemo_tapo.sweeps.report.read_runs import is_sweep

    if not arguments.folder.is_dir():
        raise ValueError(f"no run folder {arguments.folder}")
    if arguments.command == "show":
        from nemo_tapo.report.terminal import show

        show(arguments.folder, step=arguments.step, limit=arguments.limit)
    elif is_sweep(arguments.folder):
        from nemo_tapo.sweeps.report.write_report import report_sweep

        print(report_sweep(arguments.folder, arguments.table))
    elif arguments.table:
        raise ValueError(f"{arguments.folder} is no folder of a sweep: it has no runs in <row>/seed-<k>.")
    else:
        from nemo_tapo.stages.main_job import report
        from nemo_tapo.tracking.progress import Progress

        with Progress() as progress:
            report(arguments.folder, progress)
    return DONE


async def run_stages(cfg: RunConfig, command: str, master: dict[str, Any] | None = None) -> str | None:
    """Starts the runtime, runs the command's stages on it, ends it. Returns what is to be printed then.

    `master` is NeMo-RL's configuration, where its runtime is meant.
    """
    from nemo_tapo.stages.registry import STAGES, WEIGHTS
    from nemo_tapo.stages.session import Session
    from nemo_tapo.tracking.progress import Progress

    stop = Stop()
    with Progress(WEIGHTS.get(command, ())) as progress:
        progress.stage("starting engines")
        runtime = await start_runtime(cfg, command, progress.status, master)
        stop.install()
        try:
            session = Session(cfg, runtime, progress, stop)
            try:
                return await STAGES[command](session)
            finally:
                session.task.close()
        finally:
            runtime.close()


async def start_runtime(
    cfg: RunConfig, command: str, status: Callable[[str], None], master: dict[str, Any] | None = None
) -> Runtime:
    """The runtime that the config names; heavy packages are imported here and not before."""
    if command == "evaluate" and cfg.evaluation.endpoint.url:
        from nemo_tapo.runtime.endpoint_runtime import ServedRuntime

        return ServedRuntime()
    if master is not None:
        from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime

        return await NemoRLRuntime.start(master, cfg, status, command)
    if cfg.runtime == "nemo_rl":
        raise ValueError("runtime: nemo_rl needs a config file with NeMo-RL's sections (policy, cluster, ...).")
    if command == "evaluate":
        from nemo_tapo.evaluation.model_files import model_of

        cfg = model_of(cfg)
    if cfg.runtime == "scripted":
        from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script

        return ScriptedRuntime(arithmetic_script, cfg.model.max_length)
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    samples_only = command in ("evaluate", "filter")
    return await LocalRuntime.start(cfg, status, with_engine=command != "pretrain", with_actor=not samples_only)


if __name__ == "__main__":
    sys.exit(main())
