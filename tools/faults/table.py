"""Write the table of docs/reliability.md from the results of tools/chaos.py."""

from __future__ import annotations

from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping
from pathlib import Path
from statistics import median
from typing import Any

BEGIN, END = "<!-- written by tools/chaos.py: begin -->", "<!-- written by tools/chaos.py: end -->"
ENDINGS = {
    None: "not at all", 0: "went on (0)", 1: "unexpected failure (1)", 2: "refused with a sentence (2)",
    3: "lost process named (3)", 4: "disk full (4)", 143: "stopped with a checkpoint (143)",
    -9: "killed", -15: "ended before its engines were up",
}  # fmt: skip
SLURM_ENDINGS = {
    None: "queued again", 1: "failed, with the cause named (1)", 137: "failed, with the cause named (137)",
    138: "stopped with a checkpoint (138)",
}  # fmt: skip
TITLES = {
    "local": "Ray, vLLM and Megatron-core",
    "slurm": "Chains of jobs on Slurm",
    "scripted": "The scripted runtime",
}
HEAD = """\
| fault | tried on | tries | survived | how the command ended | seconds to the end: median, most |
| --- | --- | ---: | ---: | --- | ---: |
"""


def write_table(page: Path, rows: Iterable[Mapping[str, Any]]) -> None:
    """Replace what is between the markers of a page, but for tables of a level that no row is of.

    Raises ValueError if the page has no markers.
    """
    text = page.read_text(encoding="utf-8")
    before, begun, rest = text.partition(BEGIN)
    written, ended, after = rest.partition(END)
    if not begun or not ended:
        raise ValueError(f"{page} has no place for the table: {BEGIN} ... {END}")
    page.write_text(f"{before}{BEGIN}\n{make_tables(list(rows), written)}{END}{after}", encoding="utf-8")


def make_tables(rows: list[Mapping[str, Any]], written: str = "") -> str:
    """Return one table for each level, and a sentence with its sums.

    written: earlier tables, of which a level's stays that has no row.
    """
    sections = {section.partition("\n")[0]: section for section in written.split("\n### ")[1:]}
    text = ""
    for level, title in TITLES.items():
        mine = [row for row in rows if row["level"] == level]
        if not mine:
            text += f"\n### {sections[title].rstrip()}\n" if title in sections else ""
            continue
        by_fault: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
        for row in mine:
            by_fault[row["fault"]].append(row)
        survived = sum(row["fault_found"] is None for row in mine)
        text += f"\n### {title}\n\n{len(mine)} tries, {survived} survived.\n\n{HEAD}"
        text += "".join(make_row(fault, found) for fault, found in by_fault.items())
    return text + "\n"


def make_row(fault: str, rows: list[Mapping[str, Any]]) -> str:
    """Return the line of one kind of fault."""
    names = ENDINGS | (SLURM_ENDINGS if rows[0]["level"] == "slurm" else {})
    endings = Counter(names.get(row["code"], f"exit code {row['code']}") for row in rows)
    told = ", ".join(f"{count} {ending}" for ending, count in endings.most_common())
    commands = ", ".join(f"`{name}`" for name in sorted({row["command"] for row in rows}))
    survived = sum(row["fault_found"] is None for row in rows)
    seconds = [row["seconds"] for row in rows]
    return f"| {fault} | {commands} | {len(rows)} | {survived} | {told} | {median(seconds):.0f}, {max(seconds):.0f} |\n"
