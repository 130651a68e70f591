"""What a run leaves behind, as plain JSONL beside its other output::

    metrics.jsonl        one object a step: {"step": 3, "loss": -0.02, "reward/mean": 0.41, ...}
    tensorboard/         the same numbers as TensorBoard events
    trajectories.jsonl   one object a constructed pair ("pair") or query that was not constructed ("skipped")

The page (html.py), the terminal view (terminal.py) and the figures (plots.py) read these files and nothing
else.

A "pair", for the worked example of types.py::

    step 3   uid "7_reflected/0"   group "7_reflected"   question "47+38=?"   answer "85"
    wrong           "47+38=75\\n\\boxed{75}"            the policy's own mistake
    reference       "47+38=85\\n\\boxed{85}"            the right rollout that guided the correction
    analysis        "The carry was forgotten."
    reconstruction  "47+38=75\\nWait, the carry was forgotten: 47+38=85\\n\\boxed{85}"
    kept_chars  9   reconstruction[:9] is the kept prefix, the wrong response's own tokens
    turn_chars 40   reconstruction[9:40] is the turn, "Wait, the carry was forgotten: "; the rest is the
    correction tokens, weights one OTS weight (Eq. 7) a token; the tokens joined are the reconstruction reward
    1.0   outcome "right"   extracted "85"   advantage 0.577   dropped null   raw ""   kept_share 0.5
"""

from __future__ import annotations

import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from nemo_tapo.utils.jsonl import Appender, Lines, Record, read

if TYPE_CHECKING:  # torch takes seconds to import, and the readers do without it
    from torch.utils.tensorboard import SummaryWriter

    from nemo_tapo.types import Construction, Group

METRICS, TRAJECTORIES, TENSORBOARD = "metrics.jsonl", "trajectories.jsonl", "tensorboard"
WEIGHT_DIGITS = 4  # of the OTS weights stored; they lie in [w_min, w_max], 0.01 to 10 in the paper


class MetricsWriter:
    """Appends a step's metrics to `metrics.jsonl` and to TensorBoard."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._lines = Appender(folder / METRICS)
        self._events: SummaryWriter | None = None

    @property
    def last_step(self) -> int:
        """The newest step on file; -1 if there is none."""
        return self._lines.last_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """One line. Raises ValueError if the step, or a later one, is on file already."""
        if step <= self.last_step:
            raise ValueError(
                f"{self._lines.path} has steps up to {self.last_step} already, so step {step} cannot be "
                "added: resume that run, or choose another output folder."
            )
        self._lines.append([{"step": step, **metrics}])
        events = self._tensorboard()
        for name, value in metrics.items():
            events.add_scalar(name, value, step)
        events.flush()

    def truncate_after(self, step: int) -> int:
        """Forgets the steps after `step`, for a resumed run; returns how many lines were dropped."""
        if self._events is not None:
            self._events.close()
        self._events = None
        return self._lines.truncate_after(step)

    def close(self) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()

    def _tensorboard(self) -> SummaryWriter:
        """Opened at the first write: TensorBoard is told that what is on file after that step is void."""
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._folder / TENSORBOARD), purge_step=self.last_step)
        return self._events


class TrajectoryWriter:
    """Appends trajectory records to `trajectories.jsonl`, at most `limit_per_step` (None: all) a step."""

    def __init__(self, folder: Path, limit_per_step: int | None = None) -> None:
        if limit_per_step is not None and limit_per_step < 0:
            raise ValueError(f"limit_per_step is {limit_per_step}; it must be 0 or more, or None for all.")
        self._limit = limit_per_step
        self._lines = Appender(folder / TRAJECTORIES)

    def write(self, step: int, records: Sequence[Record]) -> int:
        """Writes the step's records in their order; returns how many the limit left out.

        Over the limit, outcomes take turns, so that a rare one (a drop, say) is not crowded out; one line of
        kind "left_out" holds the number that is missing.
        """
        kept = records if self._limit is None else fair_share(records, self._limit)
        left_out = len(records) - len(kept)
        rows: list[Record] = [{"step": step, **record} for record in kept]
        if left_out:
            rows.append({"step": step, "kind": "left_out", "count": left_out})
        self._lines.append(rows)
        return left_out

    def truncate_after(self, step: int) -> int:
        """Forgets the steps after `step`, for a resumed run; returns how many lines were dropped."""
        return self._lines.truncate_after(step)

    def close(self) -> None:
        self._lines.close()


def fair_share(records: Sequence[Record], limit: int) -> list[Record]:
    """`limit` of the records, outcome by outcome in turn; order as given."""
    by_outcome: dict[str, list[int]] = defaultdict(list)
    for index, record in enumerate(records):
        by_outcome[outcome(record)].append(index)
    turns = sorted((turn, index) for indices in by_outcome.values() for turn, index in enumerate(indices))
    return [records[index] for index in sorted(index for _, index in turns[:limit])]


def outcome(record: Record) -> str:
    """What became of a record's pair or query: corrected, still_wrong, dropped:<reason> or skipped:<zone>."""
    if record["kind"] == "skipped":
        return f"skipped:{record['zone']}"
    if record["dropped"] is not None:
        return f"dropped:{record['dropped']}"
    return "corrected" if record["reward"] > 0 else "still_wrong"


def trajectory_record(
    construction: Construction, tokens: Sequence[str], weights: Sequence[float], advantage: float | None
) -> Record:
    """The record of one pair, constructed or dropped.

    tokens: the training row's response, decoded piece by piece (`token_pieces`); weights: one OTS weight a
    token. Both are empty, and `advantage` is None, where no row was trained on. With tokens, `reconstruction`
    is their concatenation, the very text that the row holds.
    """
    assert len(tokens) == len(weights), f"{len(tokens)} tokens but {len(weights)} weights"
    pair, query, grade = construction.pair, construction.pair.wrong.query, construction.grade
    reconstruction = "".join(tokens) if tokens else construction.reconstruction
    return {
        "kind": "pair",
        "uid": pair.uid,
        "group": pair.uid.rpartition("/")[0],
        "question": query.question,
        "answer": query.answer,
        "wrong": pair.wrong.text,
        "reference": pair.reference.text,
        "analysis": construction.analysis,
        "reconstruction": reconstruction,
        "kept_chars": construction.kept_chars,
        "turn_chars": turn_end(reconstruction, construction.kept_chars),
        "tokens": list(tokens),
        "weights": [round(float(weight), WEIGHT_DIGITS) for weight in weights],
        "reward": construction.reward,
        "outcome": grade.outcome if grade else None,
        "extracted": grade.answer if grade else None,
        "advantage": advantage,
        "dropped": construction.dropped,
        "raw": construction.raw if construction.dropped is not None else "",
        "kept_share": construction.kept_share,
    }


def skipped_record(group: Group, reason: str) -> Record:
    """The record of a query that was not constructed; `reason` is "mastered" or "beyond" (selection.Zone)."""
    right, wrong = group.correct, group.incorrect
    return {
        "kind": "skipped",
        "zone": reason,
        "uid": group.query.uid,
        "group": group.query.uid,
        "question": group.query.question,
        "answer": group.query.answer,
        "rewards": [rollout.reward for rollout in group.rollouts],
        "right": right[0].text if right else None,
        "wrong": wrong[0].text if wrong else None,
    }


_SENTENCE_END = re.compile(r"[.!?:…](?=\s)|[。！？：]|\n")  # noqa: RUF001  full-width marks are meant
_BLANKS = re.compile(r"[ \t]*\n?")
_LEAST_WORDS = 3  # "Wait." alone is no sentence yet: "Wait. That is wrong." is the turn


def turn_end(text: str, kept_chars: int) -> int:
    """Where the turn ("Wait, the carry was forgotten: ") ends: a character offset into `text`.

    The first line break or end of a sentence (a colon counts) after the kept prefix, blanks after it
    included. The turn has at least three words unless its line is shorter. With nothing kept there is no
    turn: the result is 0.
    """
    if kept_chars <= 0:
        return 0
    start = kept_chars + len(text[kept_chars:]) - len(text[kept_chars:].lstrip())
    for match in _SENTENCE_END.finditer(text, start):
        if match[0] in ".!?:…" and len(text[start : match.end()].split()) < _LEAST_WORDS:
            continue
        blanks = _BLANKS.match(text, match.end()) if match[0] != "\n" else None
        return blanks.end() if blanks else match.end()
    return len(text)


def token_pieces(ids: Sequence[int], decode: Callable[[Sequence[int]], str]) -> list[str]:
    """The text of each token id, so that the pieces joined are the text of all.

    A character that several tokens make up belongs to the last of them; the ones before it have no text.
    """
    pieces: list[str] = []
    begin = 0  # of the tokens whose text is not out yet
    for end in range(1, len(ids) + 1):
        text = decode(ids[begin:end])
        if text.endswith("\ufffd") and end < len(ids) and end - begin < 4:  # UTF-8 has at most four bytes
            pieces.append("")
            continue
        pieces.append(text)
        begin = end
    return pieces


def read_metrics(folder: Path) -> Lines:
    """The steps of `metrics.jsonl`; `notes` says if a half-written last line was left out."""
    return read(folder / METRICS)


def read_trajectories(folder: Path) -> Lines:
    """The records of `trajectories.jsonl`; `notes` says if a half line or records over the limit miss."""
    lines = read(folder / TRAJECTORIES)
    rows = tuple(row for row in lines.rows if row.get("kind") != "left_out")
    missing = sum(row["count"] for row in lines.rows if row.get("kind") == "left_out")
    notes = lines.notes
    if missing:
        notes += (f"{TRAJECTORIES}: {missing:,} more records were over the limit a step and not stored.",)
    return Lines(rows, notes)
