"""Count what the corrections of evaluated responses do, on the generated arithmetic: tools/turns.py RUN_FOLDER...

A correction is a line `Wait, the carry was forgotten: a: 47+38=85` that does the line before it again. Of each folder's
last evaluation: responses, their accuracy with and without a correction, and of the corrections how often a wrong line
became right, a right one was only written again, a right one became wrong, and so on.
"""

from __future__ import annotations

import re
import sys
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from nemo_tapo.evaluation.sample_store import get_evaluation_folder
from nemo_tapo.judge.responses import read_responses
from nemo_tapo.tasks.arithmetic import apply_step

LINE = re.compile(
    r"(?P<turn>Wait, [^:]*: )?(?P<step>[a-h]: (?P<total>\d+)(?P<sign>[+-])(?P<number>\d+)=)(?P<result>-?\d+)"
)


@dataclass
class Turns:
    """Counts over responses."""

    kinds: Counter[str] = field(default_factory=Counter)
    right: Counter[bool] = field(default_factory=Counter)  # {with a correction: right responses}
    all: Counter[bool] = field(default_factory=Counter)

    def add(self, text: str, correct: bool) -> None:
        found = list(kinds(text))
        self.kinds.update(found)
        self.all[bool(found)] += 1
        self.right[bool(found)] += correct


def kinds(text: str) -> Iterator[str]:
    """Say for each correction what it did: `wrong to right`, `right to right`, `other line` and so on."""
    before = None
    for line in text.split("\n"):
        match = LINE.fullmatch(line)
        if match and match["turn"]:
            same = before is not None and before["step"] == match["step"]
            yield f"{_verdict(before)} to {_verdict(match)}" if same and before else "other line"
        before = match


def _verdict(line: re.Match[str]) -> str:
    return (
        "right" if apply_step(int(line["total"]), line["sign"], int(line["number"])) == int(line["result"]) else "wrong"
    )


def turns_of(folders: Sequence[Path]) -> Turns:
    """Count over the folders' evaluations `after`, or `before` where there is no other."""
    turns = Turns()
    for folder in folders:
        names = [name for name in ("after", "before") if (folder / "evaluation" / name).is_dir()]
        if not names:
            raise SystemExit(f"{folder} holds no evaluation; give run folders, as runs/sweep/tapo/seed-*.")
        for sample in read_responses(get_evaluation_folder(folder, names[0])).samples:
            turns.add(sample.text, sample.correct)
    return turns


def table(turns: Turns) -> str:
    responses = sum(turns.all.values())
    lines = [f"{responses} responses"]
    for with_turn in (True, False):
        if turns.all[with_turn]:
            share, right = turns.all[with_turn] / responses, turns.right[with_turn] / turns.all[with_turn]
            lines.append(f"  {'with' if with_turn else 'without'} a correction {share:.1%}, of them right {right:.1%}")
    lines += [f"  {kind}: {count} ({count / responses:.1%})" for kind, count in turns.kinds.most_common()]
    return "\n".join(lines)


if __name__ == "__main__":
    if not sys.argv[1:]:
        raise SystemExit(__doc__)
    print(table(turns_of([Path(name) for name in sys.argv[1:]])))
