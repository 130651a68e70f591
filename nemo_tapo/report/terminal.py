"""Print a run in the terminal: settings, evaluation, metrics, then trajectories with their parts marked.

Parts carry labels and low-weight tokens carry marks, so nothing depends on colour: the output reads the same in a
pipe, with NO_COLOR, and in 80 columns.
"""

from __future__ import annotations

import io
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.evaluation.tables import make_tables
from nemo_tapo.report import summary
from nemo_tapo.tracking.records import get_outcome, take_fair_share
from nemo_tapo.types import RIGHT, WRONG, is_correct
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.utils.text_table import plain_text, text_table

if TYPE_CHECKING:
    from rich.console import Console, RenderableType
    from rich.table import Table
    from rich.text import Text

LOW_WEIGHT = 0.5  # tokens below it are marked, as in the page
LABEL_WIDTH = 11
PART_STYLES = {"kept": "dim", "turn": "bold yellow", "correction": "green", "unanchored": "", "raw answer": ""}
OUTCOME_STYLES = {
    "corrected": "bold green",
    "still_wrong": "bold red",
    "dropped": "bold yellow",
    "skipped": "bold blue",
}


def print_run(run_folder: Path, step: int | None = None, limit: int = 10, console: Console | None = None) -> None:
    """Print a run folder.

    step: print only the trajectories of this step. limit: print at most so many, the newest of each outcome in turn.

    Raises ValueError if the folder is not a run folder, a file in it is damaged, or the step has no trajectory.
    """
    from rich.console import Console

    run = summary.load_run(run_folder)
    chosen = _choose_records(run.trajectories, step, limit)
    if console is None:
        if isinstance(sys.stdout, io.TextIOWrapper):
            sys.stdout.reconfigure(errors="replace")  # a terminal without UTF-8 shows '?' instead of a traceback
        console = Console(highlight=False)
    console.print(_make_heading(f"TAPO run {run.name}"))
    for note in run.notes:
        console.print(plain_text(f"note: {note}", "yellow"))
    for table in _make_tables(run):
        console.print(table)
        console.print()
    if run.trajectories:
        console.print(_make_heading("Trajectories"))
        console.print(_make_legend())
    for record in chosen:
        console.print()
        for line in _make_card(record):
            console.print(line, soft_wrap=False)
    _print_remainder(console, len(chosen), run.trajectories, step)


def _choose_records(records: Sequence[Record], step: int | None, limit: int) -> list[Record]:
    if limit < 0:
        raise ValueError(f"limit is {limit}; it must be 0 or more.")
    if step is not None:
        steps = sorted({record["step"] for record in records})
        records = [record for record in records if record["step"] == step]
        if not records:
            known = f"steps {steps[0]} to {steps[-1]} have some" if steps else "no step has any"
            raise ValueError(f"step {step} has no recorded trajectory; {known}.")
    return take_fair_share(records[::-1], limit, get_outcome)[::-1]


def _make_tables(run: summary.RunSummary) -> Iterator[Table]:
    settings = [(label, value) for label, value in summary.list_highlights(run.config)]
    if settings:
        yield text_table("Settings", ("", ""), settings)
    for table in make_tables(run.evaluation):
        yield text_table(f"Evaluation: {table.title}", ("", *table.head), table.rows)
    if run.metrics:
        title = f"Training, step {run.metrics[0].get('step')} to {run.metrics[-1].get('step')}"
        yield text_table(title, ("", "first", "last", "unit"), summary.list_first_and_last(run.metrics))
    head, rows = summary.tabulate_validation(run.metrics)
    if rows:
        yield text_table("Validation", head, rows)
    totals = summary.compute_totals(run.metrics)
    if totals:
        yield text_table("Queries and pairs, all steps", ("", "number", "share"), totals)


def _make_card(record: Record) -> Iterator[RenderableType]:
    """Yield the lines of one record."""
    name = get_outcome(record)
    head = plain_text("")
    title = name.replace("_", " ").replace(":", ": ").replace("skipped", "not constructed")
    head.append_text(plain_text(title, OUTCOME_STYLES[name.partition(":")[0]]))
    facts = [f"step {record['step']}", record["group"]]
    if record["kind"] == "pair" and record["dropped"] is None:
        advantage = "not trained on" if record["advantage"] is None else f"{record['advantage']:.3g}"
        facts += [f"pair {record['uid']}", f"reward {record['reward']:g}", f"advantage {advantage}"]
    head.append_text(plain_text("  " + "  ".join(facts)))
    yield head
    if name in summary.OUTCOME_MEANINGS:
        yield plain_text(f"  {summary.OUTCOME_MEANINGS[name]}", "dim")
    yield _make_row("question", plain_text(f"{record['question']}   (answer {record['answer']})"))
    yield from _make_skipped_rows(record) if record["kind"] == "skipped" else _make_pair_rows(record)


def _make_skipped_rows(record: Record) -> Iterator[RenderableType]:
    marks = " ".join(RIGHT if is_correct(reward, record.get("correct_at")) else WRONG for reward in record["rewards"])
    yield _make_row("rollouts", plain_text(marks))
    for label in ("wrong", "right"):
        if record[label]:
            yield _make_row(f"a {label} one", plain_text(record[label]))


def _make_pair_rows(record: Record) -> Iterator[RenderableType]:
    yield _make_row("wrong", plain_text(record["wrong"]))
    yield _make_row("reference", plain_text(record["reference"]))
    if record["analysis"]:
        yield _make_row("analysis", plain_text(record["analysis"]))
    text, kept, turn = record["reconstruction"], record["kept_chars"], record["turn_chars"]
    rest = "correction" if kept or record["dropped"] is None else "unanchored"
    for label, begin, end in (("kept", 0, kept), ("turn", kept, turn), (rest, turn, len(text))):
        if end > begin:
            yield _make_row(label, _make_part(record, label, begin, end), PART_STYLES[label])
    if record["dropped"] is not None:
        yield _make_row("raw answer", plain_text(record["raw"] or "(nothing was asked)"))


def _make_part(record: Record, label: str, begin: int, end: int) -> Text:
    """Return reconstruction[begin:end]; a token below LOW_WEIGHT is in brackets with its weight."""
    if not record["tokens"]:
        return plain_text(record["reconstruction"][begin:end], PART_STYLES[label])
    out = plain_text("")
    stop = 0
    for token, weight in zip(record["tokens"], record["weights"], strict=True):
        start, stop = stop, stop + len(token)
        cut = token[max(begin - start, 0) : max(end - start, 0)]
        if not token and end == stop == len(record["reconstruction"]) and weight < LOW_WEIGHT:
            cut = "end"  # the end-of-response token has no text
        if not cut:
            continue
        if weight < LOW_WEIGHT:
            out.append_text(plain_text(f"[{cut.rstrip(chr(10))}|{weight:.2g}]", "bold red"))
            out.append("\n" * cut.endswith("\n"))
        else:
            out.append_text(plain_text(cut, PART_STYLES[label]))
    return out


def _make_row(label: str, text: Text, style: str = "") -> Table:
    """Return a label column and the text, wrapped within its own column."""
    from rich import box
    from rich.table import Table

    text.rstrip()
    table = Table(box=box.MINIMAL, show_header=False, show_edge=False, pad_edge=False, border_style=style or "dim")
    table.add_column(width=LABEL_WIDTH, justify="right", no_wrap=True)
    table.add_column(overflow="fold")
    table.add_row(plain_text(label, style or "dim"), text)
    return table


def _make_legend() -> Text:
    text = plain_text("kept", PART_STYLES["kept"])
    text.append_text(plain_text(": the wrong response's own tokens;  "))
    text.append_text(plain_text("turn", PART_STYLES["turn"]))
    text.append_text(plain_text(": the change of mind;  "))
    text.append_text(plain_text("correction", PART_STYLES["correction"]))
    text.append_text(plain_text(": newly written;  "))
    text.append_text(plain_text("[token|0.05]", "bold red"))
    text.append_text(plain_text(f": its OTS weight (Eq. 7), where it is below {LOW_WEIGHT:g}"))
    return text


def _print_remainder(console: Console, shown: int, records: Sequence[Record], step: int | None) -> None:
    there = [record for record in records if step is None or record["step"] == step]
    if len(there) > shown:
        console.print()
        where = "" if step is None else f" of step {step}"
        console.print(
            plain_text(
                f"{shown} of {len(there)} records{where} shown; a larger limit shows more, report.html all.",
                "dim",
            )
        )


def _make_heading(text: str) -> Text:
    return plain_text(f"== {text} ==", "bold")
