"""Write and read the records of a run, plain JSONL files beside its other output::

    metrics.jsonl        one object per step: {"step": 3, "loss": -0.02, "reward/mean": 0.41, ...}
    tensorboard/         the same numbers as TensorBoard events
    trajectories.jsonl   one object per constructed pair ("pair") or query that was not constructed ("skipped")

The page (html.py), the terminal view (terminal.py) and the figures (plots.py) read these files.

A "pair", for the worked example of types.py::

    step 3   uid "7_reflected/0"   group "7_reflected"   question "47+38=?"   answer "85"
    wrong           "47+38=75\\n\\boxed{75}"            the policy's own mistake
    reference       "47+38=85\\n\\boxed{85}"            the right rollout that guided the correction
    analysis        "The carry was forgotten."
    reconstruction  "47+38=75\\nWait, the carry was forgotten: 47+38=85\\n\\boxed{85}"
    kept_chars  9   reconstruction[:9] is the kept prefix, the wrong response's own tokens
    turn_chars 40   reconstruction[9:40] is the turn, "Wait, the carry was forgotten: "; the rest is the
    correction tokens, weights one OTS weight (Eq. 7) per token; the tokens joined are the reconstruction reward
    1.0   outcome "right"   extracted "85"   advantage 0.577   dropped null   raw ""   kept_share 0.5
"""

from __future__ import annotations

import json
import re
from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

from nemo_tapo.types import is_correct
from nemo_tapo.utils.jsonl import Appender, Lines, Record, encode_line, read_lines

if TYPE_CHECKING:  # importing torch takes seconds, and the readers do not need it
    from torch.utils.tensorboard import SummaryWriter

    from nemo_tapo.types import Construction, Grade, Group

METRICS_FILE, TRAJECTORIES_FILE, TENSORBOARD_FOLDER = "metrics.jsonl", "trajectories.jsonl", "tensorboard"
Item = TypeVar("Item")
WEIGHT_DECIMALS = 4  # of the stored OTS weights, which lie in [w_min, w_max], 0.01 to 10 in the paper


class MetricsWriter:
    """Appends the metrics of a step to `metrics.jsonl` and, with `tensorboard`, to its event files."""

    def __init__(self, folder: Path, tensorboard: bool = True) -> None:
        self._folder, self._has_events = folder, tensorboard
        self._lines = Appender(folder / METRICS_FILE)
        self._events: SummaryWriter | None = None

    @property
    def path(self) -> Path:
        return self._lines.path

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about a damaged file that was found."""
        return self._lines.notes

    @property
    def last_step(self) -> int:
        """The newest step in the file; -1 if there is none."""
        return self._lines.last_step

    def write(self, step: int, metrics: Mapping[str, float]) -> None:
        """Append one line. Raises ValueError if the file already has this step or a later one."""
        if step <= self.last_step:
            raise ValueError(
                f"{self._lines.path} has steps up to {self.last_step} already, so step {step} cannot be "
                "added: resume that run, or choose another output folder."
            )
        self._lines.append([{"step": step, **metrics}])
        if not self._has_events:
            return
        events = self._tensorboard()
        for name, value in metrics.items():
            events.add_scalar(name, value, step)
        events.flush()

    def truncate_after(self, step: int) -> int:
        """Drop the steps after `step`, for a resumed run; return how many lines were dropped."""
        if self._events is not None:
            self._events.close()
        self._events = None
        return self._lines.truncate_after(step)

    def restore(self, history: Sequence[str]) -> bool:
        """Make the file hold `history`, the lines of a checkpoint; return True if it did not.

        A checkpoint without lines says nothing.
        """
        if not history or self.lines() == list(history):
            return False
        self._lines.replace([json.loads(line) for line in history])
        return True

    def lines(self) -> list[str]:
        """Return the lines of the file."""
        return [encode_line(row).decode() for row in self._lines.read()]

    def close(self) -> None:
        self._lines.close()
        if self._events is not None:
            self._events.close()

    def _tensorboard(self) -> SummaryWriter:
        """Return the event writer, opened at the first write.

        When it is opened, TensorBoard discards what was recorded before for this step and later ones.
        """
        if self._events is None:
            from torch.utils.tensorboard import SummaryWriter

            self._events = SummaryWriter(str(self._folder / TENSORBOARD_FOLDER), purge_step=self.last_step)
        return self._events


class TrajectoryWriter:
    """Appends trajectory records to `trajectories.jsonl`."""

    def __init__(self, folder: Path) -> None:
        self._lines = Appender(folder / TRAJECTORIES_FILE)

    @property
    def notes(self) -> Sequence[str]:
        """Sentences about a damaged file that was found."""
        return self._lines.notes

    def write(self, step: int, records: Sequence[Record], left_out: int = 0) -> None:
        """Append the step's records in their order, and a line of kind "left_out" with the number of missing ones."""
        rows: list[Record] = [{"step": step, **record} for record in records]
        if left_out:
            rows.append({"step": step, "kind": "left_out", "count": left_out})
        self._lines.append(rows)

    def truncate_after(self, step: int) -> int:
        """Drop the steps after `step`, for a resumed run; return how many lines were dropped."""
        return self._lines.truncate_after(step)

    def close(self) -> None:
        self._lines.close()


def take_fair_share(items: Sequence[Item], limit: int, name_outcome: Callable[[Item], str]) -> list[Item]:
    """Return `limit` of the items, taken from each outcome in turn; their order stays.

    >>> take_fair_share(["mastered", "mastered", "beyond"], 2, name_outcome=str)
    ['mastered', 'beyond']
    """
    by_outcome: dict[str, list[int]] = defaultdict(list)
    for index, item in enumerate(items):
        by_outcome[name_outcome(item)].append(index)
    turns = sorted((turn, index) for indices in by_outcome.values() for turn, index in enumerate(indices))
    return [items[index] for index in sorted(index for _, index in turns[:limit])]


def get_outcome(record: Record) -> str:
    """Return what became of a record's pair or query: corrected, still_wrong, dropped:<reason> or skipped:<zone>.

    >>> get_outcome({"kind": "pair", "dropped": None, "reward": 1.0})
    'corrected'
    >>> get_outcome({"kind": "skipped", "zone": "mastered"})
    'skipped:mastered'
    """
    if record["kind"] == "skipped":
        return f"skipped:{record['zone']}"
    if record["dropped"] is not None:
        return f"dropped:{record['dropped']}"
    return "corrected" if is_correct(record["reward"], record.get("correct_at")) else "still_wrong"


def make_trajectory_record(
    construction: Construction, tokens: Sequence[str], weights: Sequence[float], advantage: float | None
) -> Record:
    """Make the record of one pair, constructed or dropped.

    tokens: the training row's response, decoded piece by piece (`token_text.TokenPieces`). weights: one OTS weight per
    token. Both are empty, and `advantage` is None, if no row was trained on. With tokens, `reconstruction` is their
    concatenation: exactly the text of the row.
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
        "reference": pair.right.text,
        "analysis": construction.analysis,
        "reconstruction": reconstruction,
        "kept_chars": construction.kept_chars,
        "turn_chars": find_turn_end(reconstruction, construction.kept_chars),
        "tokens": list(tokens),
        "weights": [round(float(weight), WEIGHT_DECIMALS) for weight in weights],
        "reward": construction.reward,
        "outcome": grade.outcome if grade else None,
        "extracted": grade.answer if grade else None,
        "advantage": advantage,
        "dropped": construction.dropped,
        "raw": construction.raw if construction.dropped is not None else "",
        "kept_share": construction.kept_share,
        **make_threshold_entry(grade),
    }


def make_skipped_record(group: Group, reason: str) -> Record:
    """Make the record of a query without constructions; `reason` is "mastered" or "beyond" (selection.Zone)."""
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
        **make_threshold_entry(group.rollouts[0].grade if group.rollouts else None),
    }


def make_threshold_entry(grade: Grade | None) -> Record:
    """Return {"correct_at": ...}, or {} if any reward above 0 counts as correct."""
    return {} if grade is None or grade.correct_at is None else {"correct_at": grade.correct_at}


_SENTENCE_END = re.compile(r"[.!?:…](?=\s)|[。！？：]|\n")  # noqa: RUF001  full-width marks are intended
_BLANKS = re.compile(r"[ \t]*\n?")
_MIN_TURN_WORDS = 3  # "Wait." alone is too short: the turn is "Wait. That is wrong."


def find_turn_end(text: str, kept_chars: int) -> int:
    """Return the character offset in `text` at which the turn ("Wait, the carry was forgotten: ") ends.

    The turn ends at the first line break or end of a sentence (a colon counts) after the kept prefix. Blanks that
    follow belong to it. It has at least three words unless its line is shorter. If nothing is kept there is no turn:
    the result is 0.

    >>> text = "47+38=75 Wait, the carry was forgotten: 47+38=85"
    >>> text[9 : find_turn_end(text, kept_chars=9)]
    'Wait, the carry was forgotten: '
    """
    if kept_chars <= 0:
        return 0
    start = kept_chars + len(text[kept_chars:]) - len(text[kept_chars:].lstrip())
    for match in _SENTENCE_END.finditer(text, start):
        if match[0] in ".!?:…" and len(text[start : match.end()].split()) < _MIN_TURN_WORDS:
            continue
        blanks = _BLANKS.match(text, match.end()) if match[0] != "\n" else None
        return blanks.end() if blanks else match.end()
    return len(text)


def read_metrics(folder: Path) -> Lines:
    """Read the steps of `metrics.jsonl`; `notes` says if an incomplete last line was left out."""
    return read_lines(folder / METRICS_FILE)


def read_trajectories(folder: Path) -> Lines:
    """Read the records of `trajectories.jsonl`.

    `notes` says if an incomplete line was left out, and how many records were over the limit.
    """
    lines = read_lines(folder / TRAJECTORIES_FILE)
    rows = tuple(row for row in lines.rows if row.get("kind") in ("pair", "skipped"))
    others = [row.get("count") for row in lines.rows if row.get("kind") not in ("pair", "skipped")]
    missing = sum(count for count in others if isinstance(count, int))
    notes = lines.notes
    if unknown := sum(not isinstance(count, int) for count in others):
        notes += (f"{TRAJECTORIES_FILE}: {unknown:,} lines are no records of this package and were left out.",)
    if missing:
        notes += (f"{TRAJECTORIES_FILE}: {missing:,} more records were over the limit a step and not stored.",)
    return Lines(rows, notes)
