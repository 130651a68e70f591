"""Queries on their way to the loop: the order in which they reach it, their prompts, and what was set aside."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from nemo_tapo.datasets.screen import NOT_NEEDED, TOLERATED_IN_TRAINING
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Provenance, Query, SetAside
from nemo_tapo.utils.files import replace_text
from nemo_tapo.utils.jsonl import encode
from nemo_tapo.utils.seeding import rng

DATA, QUARANTINE = "data.json", "quarantine.jsonl"


class QueryOrder:
    """`queries(step)` gives the P queries of a step, shuffled anew each epoch.

    A function of (seed, step) alone: no position has to be stored to resume.
    """

    def __init__(self, queries: Sequence[Query], per_step: int, seed: int) -> None:
        """Raises ValueError if there are fewer queries than one step needs."""
        if len(queries) < per_step:
            raise ValueError(
                f"the training set has {len(queries)} usable queries, fewer than rollout.queries_per_step = {per_step}."
            )
        self.all, self.per_step, self.seed = list(queries), per_step, seed
        self.steps_per_epoch = len(queries) // per_step  # the last, incomplete batch of an epoch is left out

    def queries(self, step: int) -> list[Query]:
        """The queries of `step` (0-based)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.all)))
        rng(self.seed, "order", epoch).shuffle(order)
        return [self.all[i] for i in order[batch * self.per_step : (batch + 1) * self.per_step]]


def with_prompts(queries: Sequence[Query], tokenizer: Tokenizer, longest: int) -> tuple[list[Query], list[SetAside]]:
    """Adds each query's token ids. Returns (usable, set aside).

    Set aside are queries without question or answer, with a uid seen before, and those whose prompt has more than
    `longest` tokens.
    """
    usable: list[Query] = []
    aside: list[SetAside] = []
    seen: set[str] = set()
    for query in queries:
        reason, detail = None, ""
        if not query.question.strip():
            reason = "question_missing"
        elif not query.answer.strip():
            reason = "answer_missing"
        elif query.uid in seen:
            reason = "uid_seen_before"
        if reason is None:
            seen.add(query.uid)
            prompt_ids = tokenizer.chat(query.user_text)
            if len(prompt_ids) <= longest:
                usable.append(replace(query, prompt_ids=prompt_ids))
                continue
            reason, detail = "prompt_too_long", f"{len(prompt_ids)} tokens, the context leaves {longest}"
        aside.append(SetAside(query.uid, reason, detail, query.question))
    return usable, aside


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
