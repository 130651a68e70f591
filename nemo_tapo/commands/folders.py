"""The commands that read finished folders and start no runtime: `compare`, `show` and `report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def add_compare_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the two folders that `compare` takes."""
    sub.add_argument("first", type=Path, help="folder of an evaluation")
    sub.add_argument("second", type=Path, help="folder of another; differences are second minus first")


def add_report_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `report`."""
    sub.add_argument("folder", type=Path, help="a run's output folder, or a sweep's")
    sub.add_argument("--table", action="append", default=[], help="of a sweep: only this one (table4); repeatable")


def add_show_arguments(sub: argparse.ArgumentParser) -> None:
    """Add the arguments of `show`."""
    sub.add_argument("folder", type=Path, help="a run's output folder")
    sub.add_argument("--step", type=int, help="only this step (default: the last)")
    sub.add_argument("--limit", type=int, default=10, help="at most so many trajectories")


def run_compare(arguments: argparse.Namespace) -> int:
    """Print the comparison of two evaluations and return 0."""
    from nemo_tapo.evaluation.compare import compare_evaluations

    print(compare_evaluations(arguments.first, arguments.second))
    return 0


def run_show(arguments: argparse.Namespace) -> int:
    """Print a run's trajectories and return 0. Raises ValueError if there is no such folder."""
    require_folder(arguments.folder)
    from nemo_tapo.report.terminal import print_run

    print_run(arguments.folder, step=arguments.step, limit=arguments.limit)
    return 0


def run_report(arguments: argparse.Namespace) -> int:
    """Write a run's plots and page again, or a sweep's tables and print them. Return 0.

    Raises ValueError if there is no such folder, or if tables are asked for a folder that is no sweep's.
    """
    require_folder(arguments.folder)
    from nemo_tapo.sweeps.report.read_runs import is_sweep_folder

    if is_sweep_folder(arguments.folder):
        from nemo_tapo.sweeps.report.write_report import write_sweep_report

        print(write_sweep_report(arguments.folder, arguments.table))
    elif arguments.table:
        raise ValueError(f"{arguments.folder} is no folder of a sweep: it has no runs in <row>/seed-<k>.")
    else:
        from nemo_tapo.stages.main_job import write_run_page
        from nemo_tapo.tracking.progress import Progress

        with Progress() as progress:
            write_run_page(arguments.folder, progress)
    return 0


def require_folder(folder: Path) -> None:
    """Raise ValueError if `folder` does not exist."""
    if not folder.is_dir():
        raise ValueError(f"no run folder {folder}")
