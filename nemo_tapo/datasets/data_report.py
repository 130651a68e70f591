"""Queries on their way to the loop: the order in which they reach it, their prompts, and what was set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

from nemo_tapo.datasets.screening import NOT_NEEDED, TOLERATED_IN_TRAINING
from nemo_tapo.types import Provenance, SetAside
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.jsonl import encode

DATA, QUARANTINE = "data.json", "quarantine.jsonl"


class DataReport:
    """What a run's data is: `data.json` counts every row of every set, `quarantine.jsonl` has the rows set aside.

    rows = usable + not_asked_for (beyond `evaluation.problems`) + the sum of set_aside.
    """

    def __init__(self, folder: Path, largest_share: float) -> None:
        """largest_share: of rows that are set aside for a fault of their own, `max_bad_rows`."""
        self.folder, self.largest_share = folder, largest_share
        self.sets: dict[str, dict[str, Any]] = {}
        self.aside: dict[str, list[SetAside]] = {}

    def add(self, name: str, found: Provenance, usable: int, not_asked_for: int, aside: Sequence[SetAside]) -> str:
        """Takes a set up, writes both files, returns a sentence for the user.

        name: "train" or a benchmark. aside: what was set aside after `found` was made.
        Raises ValueError if too many rows are bad.
        """
        everything = [*found.set_aside, *aside]
        assert found.rows == usable + not_asked_for + len(everything), (name, found.rows, usable, len(everything))
        counts = Counter(row.reason for row in everything)
        self.sets[name] = {
            "source": found.source,
            "licence": found.licence,
            "rows": found.rows,
            "usable": usable,
            "not_asked_for": not_asked_for,
            "set_aside": dict(sorted(counts.items())),
        }
        self.aside[name] = everything
        self._write()
        self._check(name, found, counts)
        licence = f" ({found.licence})" if found.licence else ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        where = f"; set aside: {reasons}, see {self.folder / QUARANTINE}" if counts else ""
        return f"{name}: {usable} of {found.rows} rows of {found.source}{licence}{where}"

    def _write(self) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / DATA, json.dumps(self.sets, indent=1) + "\n")
        lines = [encode({"set": name, **asdict(row)}) for name, rows in self.aside.items() for row in rows]
        if lines or (self.folder / QUARANTINE).exists():
            replace_text(self.folder / QUARANTINE, b"".join(lines).decode())

    def _check(self, name: str, found: Provenance, counts: Counter[str]) -> None:
        tolerated = TOLERATED_IN_TRAINING if name == "train" else NOT_NEEDED
        bad = Counter({reason: count for reason, count in counts.items() if reason not in tolerated})
        if bad.total() / found.rows > self.largest_share:
            raise ValueError(
                f"{name}: {bad.total()} of {found.rows} rows of data were set aside ({_worst(bad)}), more than "
                f"max_bad_rows = {self.largest_share:.1%}; see {self.folder / QUARANTINE} for each."
            )
        if 2 * (counts["answer_ungradable"] + counts["answer_missing"] + counts["answer_without_marker"]) > found.rows:
            raise ValueError(
                f"{name}: most rows of {found.source} have no answer that can be graded ({_worst(counts)}): is "
                f"`answer` the right field? See {self.folder / QUARANTINE}."
            )


def _worst(counts: Counter[str]) -> str:
    """The most frequent reasons, as "12 not_json, 3 question_missing"."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common(3))
