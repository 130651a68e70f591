"""`nemo-tapo grade FILE.jsonl --out GRADED.jsonl`: rows {id, answer, responses} -> the same with outcomes and correct.

Rows are read, graded and written in order, a window at a time. The result file appears only when it is complete. A row
that cannot be graded is written too, with null `outcomes` and `correct`, the reason as `fault`, and its `line` number.
NaN and infinities, which JSON does not have, become null.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import re
import signal
import sys
from collections import Counter, deque
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import IO, Any

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.datasets.field_text import BLANK, MISSING, FieldFault, parse_text
from nemo_tapo.datasets.row_files import load_json
from nemo_tapo.grading.verifier import OUTCOMES, Verifier
from nemo_tapo.tracking.progress import Progress, ProgressStage
from nemo_tapo.utils.errors import RuntimeFailure, name_full_disk
from nemo_tapo.utils.files import refuse_foreign_link
from nemo_tapo.utils.jsonl import replace_non_finite

WINDOW = 64  # rows that are being graded at once
MAX_LISTED = 50  # disagreements and faulty lines that are printed
JsonRow = dict[str, Any]

ANSWER_FAULTS = {  # FieldFault.reason -> what is wrong with the row
    "not_text": "answer is neither text nor number",
    "too_long": "the answer is too long",
    "not_unicode": "the answer has half a surrogate pair",
    "lost_backslash": r"the answer lost a backslash (in JSON, \frac is written \\frac)",
}


@dataclass
class Tally:
    """The counts of graded rows and responses, and the faults found."""

    graded: int = 0  # rows
    outcomes: Counter[str] = field(default_factory=Counter)  # responses by outcome
    faults: dict[str, list[int]] = field(default_factory=dict)  # reason -> lines
    agreements: int = 0  # responses with the same verdict from the other grader
    disagreements: list[str] = field(default_factory=list)  # "id/index other -> ours"
    incomparable: int = 0  # graded rows without the other grader's list


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the options of this command."""
    default = VerifierConfig()
    parser.add_argument("file", type=Path, help="JSONL; a row has id, answer (gold) and responses (a list of texts)")
    parser.add_argument("--out", type=Path, required=True, help="the graded rows; replaced if it exists")
    parser.add_argument("--workers", type=int, default=default.workers, help=f"processes ({default.workers})")
    parser.add_argument(
        "--deadline", type=float, default=default.deadline, help=f"seconds an answer may take ({default.deadline:g})"
    )
    parser.add_argument("--agree", metavar="FIELD", help="compare with the booleans in this field of the rows")


def grade(arguments: argparse.Namespace) -> int:
    """Run the command. Return exit code 0, or 2 if no row could be graded.

    Raises ValueError for bad arguments, DiskFull if the disk is full, and RuntimeFailure if grading breaks down.
    """
    check_arguments(arguments)
    signal.signal(signal.SIGTERM, lambda signum, frame: sys.exit(128 + signum))  # clean up as on Ctrl-C
    verifier = Verifier(VerifierConfig(workers=arguments.workers, deadline=arguments.deadline))
    try:
        with Progress() as progress, open_atomically(arguments.out) as out:
            stage = progress.start_stage("grading", count_rows(arguments.file), "row")
            tally = asyncio.run(grade_file(arguments.file, out, verifier, arguments.agree, stage))
    except RuntimeFailure as failure:
        failure.kept = f"{arguments.out} was not written."
        raise
    finally:
        verifier.close()
    print_summary(tally, verifier.counts, arguments.agree)
    return 0 if tally.graded else 2


def check_arguments(arguments: argparse.Namespace) -> None:
    """Raise ValueError if a file or an option cannot be used."""
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
    if not count_rows(file):
        raise ValueError(f"{file} holds no rows.")


def count_rows(file: Path) -> int:
    """Return the number of lines that are not blank."""
    with file.open("rb") as stream:
        return sum(1 for line in stream if line.strip())


_OWN_STREAM = re.compile(r"(?:/dev/fd|/proc/self/fd)/([0-9]+)|/dev/(stdout|stderr)")


@contextmanager
def open_atomically(path: Path) -> Iterator[IO[str]]:
    """Open a file for writing that appears under `path` only if the block ends without an exception.

    What is no file, such as a pipe or /dev/stdout, is written as it is, and a link of the user's own is followed.
    Raises DiskFull if there is no room for it.
    """
    if own := _OWN_STREAM.fullmatch(str(path)):  # opened anew, a file behind it would be written at two places
        number = int(own[1]) if own[1] else {"stdout": 1, "stderr": 2}[own[2]]
        with open(os.dup(number), "w", encoding="utf-8") as stream:
            yield stream
        return
    if path.exists() and not path.is_file():
        with name_full_disk(path, "it was not written whole"), path.open("w", encoding="utf-8") as stream:
            yield stream
        return
    if path.is_symlink() and path.lstat().st_uid == os.getuid():
        try:
            path = path.resolve()
        except RuntimeError:  # a circle, until Python 3.13
            raise ValueError(f"{path} is a link that leads to itself.") from None
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    with name_full_disk(path, "it was not written"):
        try:
            with open(part, "w", encoding="utf-8", opener=refuse_foreign_link) as stream:
                yield stream
                stream.flush()
                os.fsync(stream.fileno())
            os.replace(part, path)
        finally:
            part.unlink(missing_ok=True)


# ---------------------------------------------------------------------------------- grading


async def grade_file(file: Path, out: IO[str], verifier: Verifier, agree: str | None, stage: ProgressStage) -> Tally:
    """Grade the rows of `file` into `out`. Memory use is bounded, except for the ids seen."""
    tally = Tally()
    async for line, row, fault in grade_rows(file, verifier, agree, tally):
        if fault is None:
            tally.graded += 1
        else:
            tally.faults.setdefault(fault, []).append(line)
            row = {**row, "outcomes": None, "correct": None, "fault": fault, "line": line}
        # json.dumps escapes to ASCII: a response may hold a lone surrogate, which UTF-8 cannot encode
        out.write(json.dumps(row) + "\n")
        stage.advance()
    return tally


async def grade_rows(
    file: Path, verifier: Verifier, agree: str | None, tally: Tally
) -> AsyncIterator[tuple[int, JsonRow, str | None]]:
    """Yield (line, row, fault) in the file's order, with at most WINDOW rows in progress."""
    seen: set[str] = set()
    pending: deque[asyncio.Task[tuple[int, JsonRow, str | None]]] = deque()
    try:
        with file.open("rb") as stream:
            for number, text in enumerate(stream, 1):
                if not text.strip():
                    continue
                row, fault = parse_row(text, seen)
                pending.append(asyncio.create_task(grade_row(number, row, fault, verifier, agree, tally)))
                if len(pending) == WINDOW:
                    yield await pending.popleft()
        while pending:
            yield await pending.popleft()
    finally:
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)  # only the first failure is reported


def parse_row(text: bytes, seen: set[str]) -> tuple[JsonRow, str | None]:
    """Parse one line. Return the row, and what is wrong with it or None.

    `seen` holds the ids read so far; the row's id is added to it.

    >>> parse_row(b'{"id": 1, "answer": "85", "responses": []}', set())
    ({'id': 1, 'answer': '85', 'responses': []}, None)
    >>> parse_row(b'{"id": 1, "answer": NaN, "responses": []}', set())
    ({'id': 1, 'answer': None, 'responses': []}, 'no answer (it is the number nan)')
    """
    try:
        read = load_json(text)
        row = replace_non_finite(read)
    except (ValueError, RecursionError):
        return {}, "not JSON"
    if not isinstance(row, dict):
        return {}, "not an object"
    if row.get("id") is None:
        return row, "no id"
    fault = describe_answer_fault(read.get("answer"))
    if fault is not None:
        return row, fault
    if row.get("responses") is None:
        return row, "no responses"
    if not isinstance(row["responses"], list) or not all(isinstance(r, str) for r in row["responses"]):
        return row, "responses is not a list of texts"
    name = json.dumps(row["id"])
    if name in seen:
        return row, "id seen before"
    seen.add(name)
    return row, None


def describe_answer_fault(answer: Any) -> str | None:
    """Return why a field is no gold answer, or None; of a blank text the verifier says so.

    >>> describe_answer_fault(["5"]), describe_answer_fault(1e22)
    ('answer is neither text nor number', None)
    """
    gold = parse_text(answer)
    if not isinstance(gold, FieldFault) or gold.detail == BLANK:
        return None
    if gold.reason == MISSING:
        return f"no answer ({gold.detail})" if gold.detail else "no answer"
    return ANSWER_FAULTS[gold.reason]


async def grade_row(
    line: int, row: JsonRow, fault: str | None, verifier: Verifier, agree: str | None, tally: Tally
) -> tuple[int, JsonRow, str | None]:
    """Grade one row. Return it with `outcomes` and `correct`, or with the fault of the row or of its gold answer."""
    if fault is not None:
        return line, row, fault
    gold = parse_text(row["answer"])
    gold = "" if isinstance(gold, FieldFault) else gold  # only a blank one comes so far
    fault = await verifier.find_gold_fault_async(gold)
    if fault is not None:
        return line, row, f"the answer {fault}"
    grades = await asyncio.gather(*(verifier.grade(gold, response) for response in row["responses"]))
    correct = [g.correct for g in grades]
    tally.outcomes.update(g.outcome for g in grades)
    if agree is not None:
        count_agreement(row["id"], row.get(agree), correct, tally)
    return line, {**row, "outcomes": [g.outcome for g in grades], "correct": correct}, None


def count_agreement(name: Any, theirs: Any, ours: list[bool], tally: Tally) -> None:
    """Count where the other grader's verdicts (`theirs`) equal `ours`, and note where they differ.

    >>> tally = Tally()
    >>> count_agreement("p1", [True, False], [True, True], tally)
    >>> tally.agreements, tally.disagreements
    (1, ['p1/1: wrong there, right here'])
    """
    if not isinstance(theirs, list) or len(theirs) != len(ours) or not all(t in (0, 1) for t in theirs):
        tally.incomparable += 1
        return
    for index, (their, our) in enumerate(zip(theirs, ours, strict=True)):
        tally.agreements += bool(their) == our
        if bool(their) != our:
            tally.disagreements.append(
                f"{name}/{index}: {'right' if their else 'wrong'} there, {'right' if our else 'wrong'} here"
            )


# ---------------------------------------------------------------------------------- the summary


def print_summary(tally: Tally, method_counts: Counter[str], agree: str | None) -> None:
    """Print the counts to standard output."""
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
        print(f"  {fault}: {len(where)} (line {join_first(list(map(str, where)), ', ')})")
    print("How: " + ", ".join(f"{name} {count}" for name, count in method_counts.most_common()))
    if agree is None:
        return
    compared = tally.agreements + len(tally.disagreements)
    print(
        f"Agreement with {agree}: {tally.agreements} of {compared}"
        + (f" ({tally.agreements / compared:.2%})" if compared else "")
    )
    if tally.incomparable:
        print(f"  {tally.incomparable} rows have no list of booleans there, one a response")
    if tally.disagreements:
        print("  " + join_first(tally.disagreements, "\n  "))


def join_first(items: list[str], separator: str) -> str:
    """Join the first MAX_LISTED items and say how many more there are.

    >>> join_first(["3", "8"], ", ")
    '3, 8'
    """
    more = len(items) - MAX_LISTED
    return separator.join(items[:MAX_LISTED]) + (f"{separator}and {more} more" if more > 0 else "")
