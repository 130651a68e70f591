"""Break small runs on purpose, at random moments drawn from a seed, and see whether they keep what README promises.

    python tools/chaos.py --runtime scripted --tries 200              hundreds of tries, a few seconds each
    python tools/chaos.py --runtime local --tries 12                  real Ray, vLLM and Megatron-core, a minute each
    python tools/chaos.py --runtime slurm --tries 12                  chains of jobs on a Slurm of two nodes; as root
    python tools/chaos.py --write docs/reliability.md                 the table, from the results so far

Every try runs a command, breaks it (faults/kinds.py), and looks how it ends: within a minute or not at all, with a
documented exit code and the cause in its last message. Then the same command runs again, to its end. Its weights and
everything that it counted have to be those of an undisturbed run, bit for bit. Results are appended to
<work>/results.jsonl; a tool that was stopped goes on with the tries that are missing. Nothing listens beyond loopback,
and only processes that a try started are ended. Exit code 1: a try was not survived; its folder is kept.
"""

from __future__ import annotations

import argparse
import json
import re
import signal
import sys
import time
from collections.abc import Iterator
from dataclasses import asdict
from pathlib import Path
from random import Random

sys.path[:0] = [str(Path(__file__).parent), str(Path(__file__).parents[1])]
from faults.kinds import FAULTS, Fault, find_mount_fault  # noqa: E402
from faults.processes import import_everything  # noqa: E402
from faults.table import write_table  # noqa: E402
from faults.trial import Trial, make_trial  # noqa: E402

from nemo_tapo.evaluation.sample_store import cut_torn_line  # noqa: E402

RESULTS = "results.jsonl"


def parse_arguments() -> argparse.Namespace:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runtime", choices=("scripted", "local", "slurm"), default="scripted")
    parser.add_argument("--tries", type=int, default=0, help="how many there shall be in the results")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--minutes", type=float, default=110.0, help="start no further try after so long")
    parser.add_argument("--only", default="", help="faults whose name has this (a regular expression)")
    parser.add_argument("--command", default="", help="commands whose name has this (a regular expression)")
    parser.add_argument("--work", type=Path, default=Path("runs/chaos"), help="folder of results and of failed tries")
    parser.add_argument("--write", type=Path, metavar="PAGE", help="write the table into this page")
    return parser.parse_args()


def list_tries(level: str, seed: int, only: str, command: str) -> Iterator[tuple[str, Fault, str]]:
    """Yield (name, fault, command) without end: rounds of all that there are, each in an order of its own."""
    pairs = [(fault, name) for fault in FAULTS if level in fault.levels for name in fault.commands]
    if level == "local":
        pairs = [(fault, name) for fault, name in pairs if name == "run"]
    number = 0
    while True:
        order = list(pairs)
        Random(f"{seed}/{level}/{number}").shuffle(order)
        for fault, name in order:
            number += 1
            if re.search(only, fault.name) and re.search(command, name):
                yield f"{level}-{seed}-{number:04d}", fault, name


def read_results(path: Path) -> list[dict[str, object]]:
    """Return the results so far."""
    return [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []


def open_results(work: Path) -> list[dict[str, object]]:
    """Make the folder, and return the results of earlier calls, without a line that a kill has cut."""
    work.mkdir(parents=True, exist_ok=True)
    cut_torn_line(work / RESULTS)
    return read_results(work / RESULTS)


def run_tries(arguments: argparse.Namespace) -> int:
    """Make the tries that are missing, and append each to the results. Return how many were not survived."""
    work: Path = arguments.work.resolve()
    done = {row["name"] for row in open_results(work)}
    no_disk, until, failed = find_mount_fault(work), time.monotonic() + 60 * arguments.minutes, 0
    if no_disk:
        print(f"chaos: a full disk is left out: {no_disk}")
    if arguments.runtime == "scripted":
        import_everything()
    tries = list_tries(arguments.runtime, arguments.seed, arguments.only, arguments.command)
    for _, (name, fault, command) in zip(range(arguments.tries), tries, strict=False):
        if name in done or (no_disk and fault.name == "a full disk"):
            continue
        if time.monotonic() > until:
            print("chaos: the time is over; the same command goes on")
            break
        trial = make_trial(name, arguments.runtime, fault, command, name, work)
        failed += not trial.survived
        report(trial, work)
    return failed


def report(trial: Trial, work: Path) -> None:
    """Add a try to the results, and print it."""
    with (work / RESULTS).open("a") as file:
        file.write(json.dumps(asdict(trial)) + "\n")
    shown = "survived" if trial.survived else f"NOT SURVIVED: {trial.fault_found}"
    told = f"{trial.fault} ({trial.moment}): {trial.code}, {trial.seconds} s"
    print(f"{trial.name} {trial.command}: {told}; {shown}", flush=True)


def run_chains(arguments: argparse.Namespace) -> int:
    """Break jobs on Slurm until there are as many tries as asked for. Return how many were not survived."""
    from faults.slurm_chain import make_chain, open_cluster

    work: Path = arguments.work.resolve()
    done = {row["name"] for row in open_results(work) if row["level"] == "slurm"}
    until, failed, number = time.monotonic() + 60 * arguments.minutes, 0, 0
    with open_cluster() as slurm:
        while len(done) < arguments.tries and time.monotonic() < until:
            name, number = f"slurm-{arguments.seed}-{number:04d}", number + 1
            if f"{name}-0" in done:
                continue
            for trial in make_chain(name, name, slurm, work):
                failed += not trial.survived
                done.add(trial.name)
                report(trial, work)
    return failed


def main() -> int:
    """Run the tool; return 1 if a try was not survived."""
    arguments = parse_arguments()
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that a try that is stopped ends its processes
    failed = 0
    if arguments.tries:
        failed = run_chains(arguments) if arguments.runtime == "slurm" else run_tries(arguments)
    if arguments.write:
        write_table(arguments.write, read_results(arguments.work / RESULTS))
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        print("chaos: stopped; the same command goes on with the tries that are missing", file=sys.stderr)
        sys.exit(130)
