"""Read what a run sampled, a step or a query at a time: all rollouts (`rollouts/`), else what trajectories.jsonl holds.

Both give a step's contents as summaries (rollout_store.summarise_query) and a query's record (rollout_store.py). What
trajectories.jsonl does not hold, the texts of most rollouts, is null there.
"""

from __future__ import annotations

import json
import re
from collections import OrderedDict
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from nemo_tapo.equations.selection import Zone
from nemo_tapo.tracking import rollout_store
from nemo_tapo.tracking.records import TRAJECTORIES_FILE
from nemo_tapo.types import REFLECTED_SUFFIX, is_correct
from nemo_tapo.utils.jsonl import Record
from nemo_tapo.watch.line_follower import LineFollower, count_lines

CACHED_STEPS = 256  # contents of steps kept in memory
_LINE_START = re.compile(rb'\{"step": (\d+), "kind": "(\w+)"')


class RunSamples:
    """The samples of one run."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._rollouts = LineFollower(folder / rollout_store.ROLLOUTS_FOLDER / rollout_store.INDEX_FILE)
        self._places: dict[int, rollout_store.StepPlace] = {}
        self._trajectories = TrajectoryLines(folder)
        self._contents: OrderedDict[tuple[Any, ...], list[Record]] = OrderedDict()
        self.version = 0  # rises when a file was replaced
        self.damaged = 0  # lines of the index

    def refresh(self) -> None:
        """Read where the steps that were added are."""
        if self._rollouts.restarted():
            self.version, self.damaged, self._places = self.version + 1, 0, {}
        for _, line in self._rollouts.read_new_lines():
            try:
                place = rollout_store.parse_place(json.loads(line))
            except ValueError:
                self.damaged += 1
                continue
            self._places[place.step] = place
        self.version += self._trajectories.refresh()

    @property
    def steps(self) -> list[int]:
        """The steps of which something was recorded, in ascending order."""
        return sorted(self._places.keys() | self._trajectories.lines.keys())

    def get_times(self) -> dict[int, float]:
        """Return when steps were recorded, seconds since 1970, where that is known."""
        return {step: place.at for step, place in self._places.items() if place.at is not None}

    def read_contents(self, step: int) -> tuple[list[Record], str]:
        """Return the summaries of a step's queries, and a sentence about what is missing or "".

        Raises ValueError if nothing of the step can be read.
        """
        problem = ""
        place = self._places.get(step)
        if place is not None:
            key = (step, place.segment, place.offset, place.size)
            if key in self._contents:
                self._contents.move_to_end(key)
                return self._contents[key], ""
            try:
                contents = rollout_store.read_contents(self._folder, place)
            except ValueError as error:
                problem = str(error)
            else:
                self._contents[key] = contents
                if len(self._contents) > CACHED_STEPS:
                    self._contents.popitem(last=False)
                return contents, ""
        if step not in self._trajectories.lines:
            raise ValueError(problem or f"nothing was recorded of step {step}.")
        contents = [rollout_store.summarise_query(record) for record in self._trajectories.read_queries(step)]
        return contents, " ".join(filter(None, (problem, self._trajectories.describe(step))))

    def read_query(self, step: int, index: int) -> Record:
        """Return the record of the query at `index` in the step's contents. Raises ValueError if there is none."""
        contents, problem = self.read_contents(step)
        if not 0 <= index < len(contents):
            raise ValueError(f"step {step} has {len(contents)} recorded queries, so there is no number {index}.")
        if "bytes" in contents[index]:
            return rollout_store.read_query(self._folder, self._places[step], contents[index])
        return {**self._trajectories.read_queries(step)[index], "note": problem}

    def search_text(self, step: int, wanted: list[int], text: str) -> Iterator[tuple[int, Record | None]]:
        """Yield (index, record) of the queries of a step that `wanted` names, None for those that lack the text.

        Upper and lower case are the same. A record that has the text somewhere may have it where nobody looks, in a
        key or a number. Raises ValueError as above.
        """
        contents, _ = self.read_contents(step)
        if contents and "bytes" in contents[0]:
            escaped = json.dumps(text, ensure_ascii=False)[1:-1].casefold()
            texts = rollout_store.read_query_texts(self._folder, self._places[step], [contents[i] for i in wanted])
            for index, line in zip(wanted, texts, strict=True):
                yield index, json.loads(line) if escaped in line.casefold() else None
        else:
            records = self._trajectories.read_queries(step)
            yield from ((index, records[index]) for index in wanted)

    def notes(self) -> list[str]:
        """Return a sentence for each thing that could not be read."""
        notes = []
        if self.damaged:
            name = f"{rollout_store.ROLLOUTS_FOLDER}/{rollout_store.INDEX_FILE}"
            notes.append(f"{name}: {count_lines(self.damaged)} damaged and left out, so steps are missing.")
        if self._trajectories.damaged:
            notes.append(f"{TRAJECTORIES_FILE}: {count_lines(self._trajectories.damaged)} damaged and left out.")
        return notes


class TrajectoryLines:
    """Where each step's lines are in trajectories.jsonl, which is never held in memory."""

    def __init__(self, folder: Path) -> None:
        self._follower = LineFollower(folder / TRAJECTORIES_FILE)
        self._forget()

    def _forget(self) -> None:
        self.lines: dict[int, list[tuple[int, int]]] = {}  # (offset, length) in bytes
        self.left_out: dict[int, int] = {}
        self.damaged = 0

    def refresh(self) -> bool:
        """Find the lines that were added; return True if the file was replaced."""
        again = self._follower.restarted()
        if again:
            self._forget()
        for offset, line in self._follower.read_new_lines():
            start = _LINE_START.match(line)
            if start is None or not line.endswith(b"}"):
                self.damaged += 1
            elif start[2] == b"left_out":
                self.left_out[int(start[1])] = int(json.loads(line)["count"])
            else:
                self.lines.setdefault(int(start[1]), []).append((offset, len(line)))
        return again

    def describe(self, step: int) -> str:
        """Return a sentence about what trajectories.jsonl lacks of a step."""
        missing = self.left_out.get(step, 0)
        more = f", and {missing:,} more records were over the limit a step" if missing else ""
        return f"Of step {step} only {TRAJECTORIES_FILE} is there: without the texts of all rollouts{more}."

    def read_queries(self, step: int) -> list[Record]:
        """Return a record for each query of which the step has lines, as far as these tell."""
        by_query: dict[str, list[Record]] = {}
        with self._follower.path.open("rb") as file:
            for offset, length in self.lines.get(step, ()):
                file.seek(offset)
                try:
                    row = json.loads(file.read(length))
                    by_query.setdefault(row["group"].removesuffix(REFLECTED_SUFFIX), []).append(row)
                except (ValueError, KeyError):
                    self.damaged += 1
        return [_join_lines(step, uid, rows) for uid, rows in by_query.items()]


def _join_lines(step: int, uid: str, rows: list[Record]) -> Record:
    """Return the record of a query from its lines."""
    skipped = next((row for row in rows if row["kind"] == "skipped"), None)
    rollouts: list[Record] = []
    if skipped is not None:
        texts = {True: skipped["right"], False: skipped["wrong"]}  # of the first of each
        for reward in skipped["rewards"]:
            correct = is_correct(reward, skipped.get("correct_at"))
            verdict = "right" if correct else "wrong"
            text = texts.pop(correct, None)
            rollouts.append({"text": text, "reward": reward, "correct": correct, "outcome": verdict, "advantage": None})
    return {
        "kind": "query",
        "step": step,
        "uid": uid,
        "question": rows[0]["question"],
        "answer": rows[0]["answer"],
        "zone": skipped["zone"] if skipped else Zone.ELIGIBLE.value,
        "rollouts": rollouts,
        "pairs": [row for row in rows if row["kind"] == "pair"],
    }
