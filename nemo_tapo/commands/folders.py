"""The commands that read finished folders and start no runtime: `compare`, `show` and `report`."""

from __future__ import annotations

import argparse
from pathlib import Path


def run_compare(arguments: argparse.Namespace) -> None:
    """Print the comparison of two evaluations."""
    from nemo_tapo.evaluation.compare import compare_evaluations

    print(compare_evaluations(arguments.first, arguments.second))


def run_show(arguments: argparse.Namespace) -> None:
    """Print a run's trajectories. Raises ValueError if there is no such folder."""
    require_folder(arguments.folder)
    from nemo_tapo.report.terminal import print_run

    print_run(arguments.folder, step=arguments.step, limit=arguments.limit)


def run_report(arguments: argparse.Namespace) -> None:
    """Write a run's plots and page again, or a sweep's tables and print them.

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


def require_folder(folder: Path) -> None:
    """Raise ValueError if `folder` does not exist."""
    if not folder.is_dir():
        raise ValueError(f"no run folder {folder}")
