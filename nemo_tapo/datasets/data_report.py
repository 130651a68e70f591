"""Report a run's data: how many rows each set has, how many are usable, and which were set aside for which reason."""

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
from nemo_tapo.utils.jsonl import encode_line

DATA_FILE, QUARANTINE_FILE = "data.json", "quarantine.jsonl"


class DataReport:
    """The report on a run's data: `data.json` counts every row of every set, `quarantine.jsonl` lists rows set aside.

    rows = usable + not_asked_for (beyond `evaluation.problems`) + the sum of set_aside.
    """

    def __init__(self, folder: Path, largest_share: float) -> None:
        """Prepare an empty report. `largest_share` limits the share of faulty rows in a set (`max_bad_rows`)."""
        self.folder, self.largest_share = folder, largest_share
        self.sets: dict[str, dict[str, Any]] = {}
        self.set_aside: dict[str, list[SetAside]] = {}

    def add(
        self, name: str, provenance: Provenance, usable: int, not_asked_for: int, set_aside_later: Sequence[SetAside]
    ) -> str:
        """Add a set, write both files, and return a sentence for the user.

        `name` is "train" or a benchmark. `set_aside_later` has the rows set aside after `provenance` was made.
        Raises ValueError if too many rows are bad.
        """
        all_set_aside = [*provenance.set_aside, *set_aside_later]
        counted = usable + not_asked_for + len(all_set_aside)
        assert provenance.rows == counted, (name, provenance.rows, usable, len(all_set_aside))
        counts = Counter(row.reason for row in all_set_aside)
        self.sets[name] = {
            "source": provenance.source,
            "licence": provenance.licence,
            "rows": provenance.rows,
            "usable": usable,
            "not_asked_for": not_asked_for,
            "set_aside": dict(sorted(counts.items())),
        }
        self.set_aside[name] = all_set_aside
        self._write()
        self._check_shares(name, provenance, counts)
        licence = f" ({provenance.licence})" if provenance.licence else ""
        reasons = ", ".join(f"{count} {reason}" for reason, count in counts.most_common())
        where = f"; set aside: {reasons}, see {self.folder / QUARANTINE_FILE}" if counts else ""
        return f"{name}: {usable} of {provenance.rows} rows of {provenance.source}{licence}{where}"

    def _write(self) -> None:
        """Write `data.json`, and `quarantine.jsonl` if it has rows or replaces an earlier one."""
        self.folder.mkdir(parents=True, exist_ok=True)
        replace_text(self.folder / DATA_FILE, json.dumps(self.sets, indent=1) + "\n")
        lines = [encode_line({"set": name, **asdict(row)}) for name, rows in self.set_aside.items() for row in rows]
        if lines or (self.folder / QUARANTINE_FILE).exists():
            replace_text(self.folder / QUARANTINE_FILE, b"".join(lines).decode())

    def _check_shares(self, name: str, provenance: Provenance, counts: Counter[str]) -> None:
        """Raise ValueError if too many rows of a set are bad, or most have no gradable answer."""
        tolerated = TOLERATED_IN_TRAINING if name == "train" else NOT_NEEDED
        bad = Counter({reason: count for reason, count in counts.items() if reason not in tolerated})
        if bad.total() / provenance.rows > self.largest_share:
            raise ValueError(
                f"{name}: {bad.total()} of {provenance.rows} rows of data were set aside "
                f"({_format_top_reasons(bad)}), more than "
                f"max_bad_rows = {self.largest_share:.1%}; see {self.folder / QUARANTINE_FILE} for each."
            )
        ungradable = counts["answer_ungradable"] + counts["answer_missing"] + counts["answer_without_marker"]
        if 2 * ungradable > provenance.rows:
            raise ValueError(
                f"{name}: most rows of {provenance.source} have no answer that can be graded "
                f"({_format_top_reasons(counts)}): is "
                f"`answer` the right field? See {self.folder / QUARANTINE_FILE}."
            )


def _format_top_reasons(counts: Counter[str]) -> str:
    """Return the three most frequent reasons, as "12 not_json, 3 question_missing"."""
    return ", ".join(f"{count} {reason}" for reason, count in counts.most_common(3))
