"""`nemo-tapo grade FILE.jsonl --out GRADED.jsonl`: rows {id, answer, responses} -> the same with outcomes and correct.

Rows are read, graded and written a window at a time, in their order. The result appears under its name when it is
whole. A row that cannot be graded is written too, with `outcomes` and `correct` null, the `fault` and its `line`.
"""

from __future__ import annotations

import argparse
import asyncio
import errno
import json
import os
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.verifier import OUTCOMES, Verifier
from nemo_tapo.tracking.progress import Progress, Stage
from nemo_tapo.utils.errors import DiskFull, RuntimeFailure

WINDOW = 64  # rows in hand
LISTED = 50  # disagreements and faulty lines that are printed
Row = dict[str, Any]


@dataclass
class Tally:
    """What became of the rows and responses."""

    graded: int = 0  # rows
    outcomes: Counter[str] = field(default_factory=Counter)  # responses by outcome
    faults: dict[str, list[int]] = field(default_factory=dict)  # reason -> lines
    agree: int = 0  # responses judged as the other grader did
    disagree: list[str] = field(default_factory=list)  # "id/index other -> ours"
    incomparable: int = 0  # graded rows without the other grader's list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """The command's own options."""
    default = VerifierConfig()
    parser.add_argument("file", type=Path, help="JSONL; a row has id, answer (gold) and responses (a list of texts)")
    parser.add_argument("--out", type=Path, required=True, help="the graded rows; replaced if it exists")
    parser.add_argument("--workers", type=int, default=default.workers, help=f"processes ({default.workers})")
    parser.add_argument(
        "--deadline", type=float, default=default.deadline, help=f"seconds an answer may take ({default.deadline:g})"
    )
    parser.add_argument("--agree", metavar="FIELD", help="compare with the booleans in this field of the rows")


def grade(arguments: argparse.Namespace) -> int:
    """Runs the command. Exit code 0, or 2 if no row could be graded.

    Raises ValueError for what is wrong with the arguments, DiskFull, RuntimeFailure.
    """
    check(arguments)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # unwinds, as Ctrl-C does
    verifier = Verifier(VerifierConfig(workers=arguments.workers, deadline=arguments.deadline))
    try:
        with Progress() as progress, whole(arguments.out) as out:
            stage = progress.stage("grading", lines(arguments.file), "row")
            tally = asyncio.run(grade_file(arguments.file, out, verifier, arguments.agree, stage))
    except RuntimeFailure as failure:
        failure.kept = f"{arguments.out} was not written."
        raise
    finally:
        verifier.close()
    show(tally, verifier.counts, arguments.agree)
    return 0 if tally.graded else 2


def check(arguments: argparse.Namespace) -> None:
    """Raises ValueError with a sentence for files and options that cannot be."""
    file, out = arguments.file, arguments.out
    if not file.is_file():
        raise ValueError(
            f"{file} is a folder; grade takes a JSONL file." if file.is_dir() else f"there is no file {file}."
        )
    if out.is_dir():
        raise ValueError(f"--out {out} is a folder; name a file.")
    if out.exists() and out.samefile(file):
        raise ValueError("--out is the file that is read; name another.")
    if arguments.workers < 1:
        raise ValueError(f"--workers {arguments.workers}: at least 1.")
    if not 0 < arguments.deadline <= 2:
        raise ValueError(f"--deadline {arguments.deadline:g}: more than 0 and at most 2 seconds.")
    if not lines(file):
        raise ValueError(f"{file} holds no rows.")


def lines(file: Path) -> int:
    """Lines that are not blank."""
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


@contextmanager
def whole(path: Path) -> Iterator[IO[str]]:
    """A file that appears under `path` when the block ends well, and not at all if it does not."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        with part.open("w", encoding="utf-8") as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(part, path)
    except OSError as error:
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            raise DiskFull(error.errno, f"no room on the disk for {path}; it was not written") from error
        raise
    finally:
        part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------- grading


async def grade_file(file: Path, out: IO[str], verifier: Verifier, agree: str | None, stage: Stage) -> Tally:
    """Grades a file into another; bounded memory but for the ids."""
    tally = Tally()
    async for line, row, fault in graded(file, verifier, agree, tally):
        if fault is None:
            tally.graded += 1
        else:
            tally.faults.setdefault(fault, []).append(line)
            row = {**row, "outcomes": None, "correct": None, "fault": fault, "line": line}
        # ASCII: a lone surrogate, which a response may hold, cannot be written otherwise
        out.write(json.dumps(row) + "\n")
        stage.advance()
    return tally


async def graded(
    file: Path, verifier: Verifier, agree: str | None, tally: Tally
) -> AsyncIterator[tuple[int, Row, str | None]]:
    """(line, row, fault) in the file's order, with at most WINDOW rows in hand."""
    seen: set[str] = set()
    hand: deque[asyncio.Task[tuple[int, Row, str | None]]] = deque()
    try:
        with file.open("rb") as stream:
            for number, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                row, fault = read(text, seen)
                hand.append(asyncio.create_task(grade_row(number, row, fault, verifier, agree, tally)))
                if len(hand) == WINDOW:
                    yield await hand.popleft()
        while hand:
            yield await hand.popleft()
    finally:
        for task in hand:
            task.cancel()
        await asyncio.gather(*hand, return_exceptions=True)  # the first failure is the one that is told


def read(text: bytes, seen: set[str]) -> tuple[Row, str | None]:
    """A line as a row, and what is wrong with it, if anything. `seen` are the ids so far."""
    try:
        row = json.loads(text)
    except (ValueError, RecursionError):
        return {}, "not JSON"
    if not isinstance(row, dict):
        return {}, "not an object"
    for name in ("id", "answer", "responses"):
        if row.get(name) is None:
            return row, f"no {name}"
    if isinstance(row["answer"], bool) or not isinstance(row["answer"], (str, int, float)):
        return row, "answer is neither text nor number"
    if not isinstance(row["responses"], list) or not all(isinstance(r, str) for r in row["responses"]):
        return row, "responses is not a list of texts"
    name = json.dumps(row["id"])
    if name in seen:
        return row, "id seen before"
    seen.add(name)
    return row, None


async def grade_row(
    line: int, row: Row, fault: str | None, verifier: Verifier, agree: str | None, tally: Tally
) -> tuple[int, Row, str | None]:
    """The row with `outcomes` and `correct`, unless it has a fault or its gold answer turns out to have one."""
    if fault is not None:
        return line, row, fault
    gold = str(row["answer"])
    fault = await verifier.gold_fault_soon(gold)
    if fault is not None:
        return line, row, f"the answer {fault}"
    grades = await asyncio.gather(*(verifier.grade(gold, response) for response in row["responses"]))
    correct = [g.reward > 0 for g in grades]
    tally.outcomes.update(g.outcome for g in grades)
    if agree is not None:
        compare(row["id"], row.get(agree), correct, tally)
    return line, {**row, "outcomes": [g.outcome for g in grades], "correct": correct}, None


def compare(name: Any, theirs: Any, ours: list[bool], tally: Tally) -> None:
    """Counts where another grader's verdicts are the same."""
    if not isinstance(theirs, list) or len(theirs) != len(ours) or not all(t in (0, 1) for t in theirs):
        tally.incomparable += 1
        return
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        tally.agree += bool(their) == our
        if bool(their) != our:
            tally.disagree.append(
                f"{name}/{index}: {'right' if their else 'wrong'} there, {'right' if our else 'wrong'} here"
            )


# ---------------------------------------------------------------------------------- the summary


def show(tally: Tally, how: Counter[str], agree: str | None) -> None:
    """Prints the counts to standard output."""
    from rich.console import Console
    from rich.table import Table

    console = Console(highlight=False)
    total = sum(tally.outcomes.values())
    table = Table("outcome", "responses", "share")
    for name in OUTCOMES:
        count = tally.outcomes[name]
        table.add_row(name, str(count), f"{count / total:.1%}" if total else "")
    table.add_section()
    table.add_row("all", str(total), "")
    console.print(table)
    faulty = sum(map(len, tally.faults.values()))
    print(f"{tally.graded} rows graded, {faulty} not.")
    for fault, where in sorted(tally.faults.items()):
        print(f"  {fault}: {len(where)} (line {listed(list(map(str, where)), ', ')})")
    print("How: " + ", ".join(f"{name} {count}" for name, count in how.most_common()))
    if agree is None:
        return
    compared = tally.agree + len(tally.disagree)
    print(
        f"Agreement with {agree}: {tally.agree} of {compared}"
        + (f" ({tally.agree / compared:.2%})" if compared else "")
    )
    if tally.incomparable:
        print(f"  {tally.incomparable} rows have no list of booleans there, one a response")
    if tally.disagree:
        print("  " + listed(tally.disagree, "\n  "))


def listed(items: list[str], separator: str) -> str:
    """The first of many."""
    more = len(items) - LISTED
    return separator.join(items[:LISTED]) + (f"{separator}and {more} more" if more > 0 else "")
