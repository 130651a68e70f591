"""Find queries by outcome, verdict, reward and text, newest step first, a piece at a time."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

from nemo_tapo.utils.jsonl import Record
from nemo_tapo.watch.samples import RunSamples

SECONDS = 0.5  # of one search; what is left is found by the next one
TEXT_FIELDS = ("uid", "question", "answer")
PAIR_TEXT_FIELDS = ("uid", "wrong", "reference", "analysis", "reconstruction", "raw")
GROUPS: Mapping[str, Callable[[list[bool], list[float]], bool]] = {  # by how a query's rollouts went
    "mixed": lambda correct, rewards: any(correct) and not all(correct),
    "all_right": lambda correct, rewards: bool(correct) and all(correct),
    "all_wrong": lambda correct, rewards: bool(correct) and not any(correct),
    "partial": lambda correct, rewards: any(reward not in (0, 1) for reward in rewards),
}


@dataclass(frozen=True)
class Filter:
    """What a query must be; an empty field asks for nothing.

    >>> Filter(group="mixed").fits({"correct": [True, False], "rewards": [1.0, 0.0]})
    True
    """

    outcome: str = ""  # what became of one of its pairs, or of itself: corrected, dropped, dropped:leak, skipped:beyond
    verdict: str = ""  # of one of its rollouts: right, wrong, no_answer
    group: str = ""  # a key of GROUPS
    text: str = ""  # in the question, a response, an analysis, ...; upper and lower case are the same

    def __post_init__(self) -> None:
        if self.group and self.group not in GROUPS:
            raise ValueError(f"group is {self.group!r}; it must be one of {', '.join(GROUPS)}.")

    def fits(self, summary: Mapping[str, Any]) -> bool:
        """Return True if the summary has what is asked for; the text is not looked at."""
        if self.group and not GROUPS[self.group](summary["correct"], summary["rewards"]):
            return False
        if self.verdict and self.verdict not in summary["verdicts"]:
            return False
        names = list_outcomes(summary) if self.outcome else ()
        return not self.outcome or any(n == self.outcome or n.startswith(f"{self.outcome}:") for n in names)


@dataclass(frozen=True)
class Found:
    """One piece of a search."""

    queries: list[Record]  # summaries with "step" and "index"
    cursor: str  # goes on from here; "" at the end
    notes: list[str]  # what could not be searched, or is not complete


def list_outcomes(summary: Mapping[str, Any]) -> list[str]:
    """Return what became of a query's pairs, or why it has none.

    >>> list_outcomes({"outcomes": [], "zone": "beyond"})
    ['skipped:beyond']
    """
    outcomes: list[str] = summary["outcomes"]
    return outcomes or ([f"skipped:{summary['zone']}"] if summary["zone"] in ("mastered", "beyond") else [])


def search(samples: RunSamples, wanted: Filter, step: int | None, cursor: str, limit: int) -> Found:
    """Search one step, or all from the newest to the oldest, until `limit` queries are found or time is up.

    cursor: "" to begin, then what the last piece returned. Raises ValueError for a cursor that is none.
    """
    steps = samples.steps[::-1] if step is None else [step]
    deadline = time.monotonic() + SECONDS
    queries: list[Record] = []
    notes: list[str] = []
    for number, index, summary in _visit(samples, wanted, steps, _parse_cursor(cursor), notes):
        if summary is not None:
            queries.append({**summary, "step": number, "index": index})
        if len(queries) >= limit or time.monotonic() > deadline:
            return Found(queries, f"{number}:{index + 1}", notes)
    return Found(queries, "", notes)


def _visit(
    samples: RunSamples, wanted: Filter, steps: list[int], begin: tuple[int, int] | None, notes: list[str]
) -> Iterator[tuple[int, int, Record | None]]:
    """Yield (step, index, summary) of queries that fit, and in between, with None, how far the search has come."""
    for step in steps:
        if begin is not None and step > begin[0]:
            continue
        first = begin[1] if begin is not None and step == begin[0] else 0
        try:
            contents, note = samples.read_contents(step)
            if first > len(contents):  # the last piece ended with this step
                continue
            notes += [note] * bool(note)
            fitting = [index for index in range(first, len(contents)) if wanted.fits(contents[index])]
            if wanted.text:
                for index, record in samples.search_text(step, fitting, wanted.text):
                    yield step, index, contents[index] if record and contains(record, wanted.text) else None
            else:
                for index in fitting:
                    yield step, index, contents[index]
            yield step, len(contents), None
        except ValueError as error:
            notes.append(str(error))


def contains(record: Record, text: str) -> bool:
    """Return True if the text is in what a query's record says, upper and lower case being the same.

    >>> contains({"uid": "7", "question": "", "answer": "85", "rollouts": [{"text": "So 75."}], "pairs": []}, "SO")
    True
    """
    parts = [record[name] for name in TEXT_FIELDS]
    parts += [value for rollout in record["rollouts"] for value in (rollout["text"], rollout.get("extracted"))]
    parts += [pair.get(name) for pair in record["pairs"] for name in PAIR_TEXT_FIELDS]
    text = text.casefold()
    return any(text in part.casefold() for part in parts if part)


def _parse_cursor(cursor: str) -> tuple[int, int] | None:
    if not cursor:
        return None
    step, _, index = cursor.partition(":")
    try:
        return int(step), int(index)
    except ValueError:
        raise ValueError(f"cursor is {cursor!r}; it must be <step>:<index>.") from None
