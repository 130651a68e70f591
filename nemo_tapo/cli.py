"""nemo-tapo <command> --config FILE [key=value ...]

Exit codes: 0 done; 1 an unexpected failure; 2 bad input, nothing was lost; 3 an engine or actor was lost; 4 the disk
is full; 130 / 143 stopped by Ctrl-C / SIGTERM with a checkpoint: the same command goes on.
"""

from __future__ import annotations

import argparse
import asyncio
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.checkpoint import require_free
from nemo_tapo.config import RunConfig
from nemo_tapo.errors import DiskFull, RuntimeFailure, Stopped
from nemo_tapo.stop import Stop

if TYPE_CHECKING:
    from nemo_tapo.runtime.interface import Runtime

DONE, FAILED, BAD_INPUT, RUNTIME_LOST, DISK_FULL = 0, 1, 2, 3, 4

COMMANDS = {
    "run": "the main job: cold start, evaluation, RL, evaluation, report; goes on where it was stopped",
    "pretrain": "train a tiny base model on the generated task, from nothing, into <output>/hf",
    "coldstart": "build the cold-start data from the model's own samples and train on it, into <output>/hf",
    "train": "TAPO (or algorithm=grpo) from model.path, into <output>/hf",
    "evaluate": "pass@k of model.path on the held-out problems, into <output>/evaluation.json",
    "report": "write the plots and the HTML page of a run folder again",
    "show": "a run's trajectories in the terminal",
}
OF_A_FOLDER = ("report", "show")  # take a run folder instead of a config


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
            sub.add_argument("folder", type=Path, help="a run's output folder")
            if name == "show":
                sub.add_argument("--step", type=int, help="only this step (default: the last)")
                sub.add_argument("--limit", type=int, default=10, help="at most so many trajectories")
            continue
        sub.add_argument("--config", type=Path, help="a YAML file; without it, every setting at its default")
        sub.add_argument("--dry-run", action="store_true", help="print the resolved config and the plan, start nothing")
        sub.add_argument("overrides", nargs="*", metavar="key=value", help="settings, in Hydra's override grammar")
    return top


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; returns its exit code. Expected failures end in one sentence on standard error."""
    arguments = parser().parse_args(argv)
    try:
        return run_command(arguments)
    except Stopped as stopped:
        return fail(f"{stopped}. The same command goes on from there.", 128 + stopped.signum)
    except DiskFull as error:
        return fail(error.strerror or str(error), DISK_FULL)
    except RuntimeFailure as error:
        return fail(
            f"{str(error).rstrip('.')}. The last checkpoint is kept; the same command goes on from it.", RUNTIME_LOST
        )
    except ValueError as error:
        return fail(str(error), BAD_INPUT)
    except KeyboardInterrupt:
        return fail("interrupted; what was saved before is kept.", 130)


def fail(sentence: str, code: int) -> int:
    print(f"nemo-tapo: {sentence}", file=sys.stderr)
    return code


def run_command(arguments: argparse.Namespace) -> int:
    """Dispatches; raises what `main` turns into exit codes."""
    if arguments.command in OF_A_FOLDER:
        return of_a_folder(arguments)
    from nemo_tapo.load import load
    from nemo_tapo.plan import describe

    cfg = load(arguments.config, arguments.overrides)
    if arguments.dry_run:
        print(describe(cfg, arguments.command))
        return DONE
    require_free(cfg.output, cfg.checkpoint.min_free_gib)
    save_config(cfg)
    if arguments.command == "pretrain":
        from nemo_tapo.pretrain import initialise

        cfg = initialise(cfg)
    asyncio.run(run_stages(cfg, arguments.command))
    return DONE


def of_a_folder(arguments: argparse.Namespace) -> int:
    """`report` and `show`."""
    if not arguments.folder.is_dir():
        raise ValueError(f"no run folder {arguments.folder}")
    if arguments.command == "show":
        from nemo_tapo.report.terminal import show

        show(arguments.folder, step=arguments.step, limit=arguments.limit)
    else:
        from nemo_tapo.report.progress import Progress
        from nemo_tapo.stages import report

        with Progress() as progress:
            report(arguments.folder, progress)
    return DONE


def save_config(cfg: RunConfig) -> None:
    """The resolved configuration beside the run's output: `nemo-tapo <command> --config` takes it again."""
    from nemo_tapo.plan import as_yaml

    cfg.output.mkdir(parents=True, exist_ok=True)
    (cfg.output / "config.yaml").write_text(as_yaml(cfg))


async def run_stages(cfg: RunConfig, command: str) -> None:
    """Starts the runtime, runs the command's stages on it, ends it."""
    from nemo_tapo.report.progress import Progress
    from nemo_tapo.stages import STAGES, WEIGHTS, Session

    stop = Stop()
    with Progress(WEIGHTS.get(command, ())) as progress:
        progress.stage("starting engines")
        runtime = await start_runtime(cfg, command, progress.status)
        stop.install()
        try:
            await STAGES[command](Session(cfg, runtime, progress, stop))
        finally:
            runtime.close()


async def start_runtime(cfg: RunConfig, command: str, status: Callable[[str], None]) -> Runtime:
    """The runtime that the config names; heavy packages are imported here and not before."""
    if cfg.runtime == "scripted":
        from nemo_tapo.runtime.scripted import ScriptedRuntime, arithmetic_script

        return ScriptedRuntime(arithmetic_script, cfg.model.max_length)
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    return await LocalRuntime.start(cfg, status, with_engine=command != "pretrain")


if __name__ == "__main__":
    sys.exit(main())
