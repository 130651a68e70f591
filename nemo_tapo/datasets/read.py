"""A data set as the config names it: rows read, fields found, counted. Screening (screening.py) comes after."""

from __future__ import annotations

import difflib
import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.files import Broken, Opened, Record, records
from nemo_tapo.types import Provenance, SetAside

LONGEST_TEXT = 100_000  # characters of a question or an answer: whatever is longer is no problem that a person wrote

# Benchmarks whose size is known, by the repository's name without its owner: the check `rows` without being asked.
# opencompass/AIME2025 is two configurations of 15, and one alone looks like a benchmark.
BENCHMARK_ROWS = {
    "aime_2024": 30, "AIME2025": 30, "aime_2025": 30, "aime25": 30, "aime_2026": 30,
    "hmmt_feb_2025": 30, "hmmt_nov_2025": 30, "hmmt_feb_2026": 30,
}  # fmt: skip


@dataclass(frozen=True)
class Example:
    """A row with a question and an answer."""

    uid: str
    question: str
    answer: str
    row: Mapping[str, Any]  # as read
    solution: str = ""


@dataclass(frozen=True)
class Loaded:
    """A data set as read; `provenance.rows` = examples + provenance.set_aside."""

    examples: tuple[Example, ...]
    provenance: Provenance


def read(cfg: DatasetConfig, name: str, key: str) -> Loaded:
    """Reads `cfg`. `name` makes the uids of rows that have none; `key` is the setting that errors speak of.

    Raises ValueError with a sentence for data that is not there, has not the fields or not the rows it should have.
    """
    opened = open_source(cfg, key)
    check_rows(cfg, opened, key)
    for field, setting in (
        (cfg.question, "question"),
        (cfg.answer, "answer"),
        (cfg.uid, "uid"),
        (cfg.solution, "solution"),
    ):
        if field is not None:
            require_field(opened, field, key, setting)
    found = [example(record, cfg, f"{name}-{number}") for number, record in enumerate(opened.rows)]
    return Loaded(
        tuple(e for e in found if isinstance(e, Example)),
        Provenance(
            opened.words,
            len(found),
            tuple(e for e in found if isinstance(e, SetAside)),
            cfg.licence,
            opened.notes,
        ),
    )


def open_source(cfg: DatasetConfig, key: str) -> Opened:
    """The rows of the file or of the hub's data set."""
    if cfg.path is None:
        from nemo_tapo.datasets.hub import open_hub

        return open_hub(cfg, key)
    try:
        return Opened(str(cfg.path), list(records(cfg.path)))
    except ValueError as error:
        raise ValueError(f"{key}.path: {error}") from None


def check_rows(cfg: DatasetConfig, opened: Opened, key: str) -> None:
    """Raises ValueError if the set is empty or is not as long as it has to be."""
    found = len(opened.rows)
    if found == 0:
        raise ValueError(f"{key}: {opened.words} has no rows.")
    wanted = cfg.rows or (BENCHMARK_ROWS.get(cfg.hub.rstrip("/").split("/")[-1]) if cfg.hub else None)
    if wanted is not None and found != wanted:
        names = ", ".join(opened.others)
        left = f" Left out of {key}.configs: {names}; a part of a benchmark is not the benchmark." if names else ""
        raise ValueError(
            f"{key}: {opened.words} has {found} rows, not {wanted}.{left} If that is meant, set {key}.rows={found}."
        )


def require_field(opened: Opened, field: str, key: str, setting: str) -> None:
    """Raises ValueError, naming the fields that are there, if no row has `field`. Single rows may lack it."""
    rows = [row for row in opened.rows if not isinstance(row, Broken)]
    if not rows:
        first = opened.rows[0]
        assert isinstance(first, Broken)
        raise ValueError(
            f"{key}: {opened.words} is not JSON Lines, a JSON array or Parquet: no row can be read; the first: "
            f"{first.reason}, {first.detail}."
        )
    if any(field in row for row in rows):
        return
    there = list(rows[0])
    usual = {"question": "problem", "problem": "question"}.get(field)
    near = [usual] if usual in there else difflib.get_close_matches(field, there, n=1, cutoff=0.5)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"{key}.{setting}: no row of {opened.words} has a field '{field}'; they have {', '.join(there)}{meant}"
    )


def example(record: Record, cfg: DatasetConfig, numbered: str) -> Example | SetAside:
    """A row as question and answer, or why it is none."""
    if isinstance(record, Broken):
        return SetAside(numbered, record.reason, record.detail)
    uid, fault = (numbered, None) if cfg.uid is None else text_of(record.get(cfg.uid))
    if fault is not None:
        return SetAside(numbered, f"uid_{fault}")
    question, fault = text_of(record.get(cfg.question), numbers=False)
    if fault is not None:
        return SetAside(uid, f"question_{fault}")
    answer, fault = text_of(record.get(cfg.answer))
    if fault is None and cfg.answer_after is not None:
        _, marker, answer = answer.rpartition(cfg.answer_after)
        fault = "without_marker" if not marker else None if answer.strip() else "missing"
    if fault is not None:
        return SetAside(uid, f"answer_{fault}", question=question)
    solution = "" if cfg.solution is None else text_of(record.get(cfg.solution), numbers=False)[0]
    return Example(uid, question, answer.strip(), record, solution)


def text_of(value: Any, numbers: bool = True) -> tuple[str, str | None]:
    """(text, None) or ("", why not). Whole floats lose their point: a column of 72 and 0.5 makes 72.0 of 72."""
    if isinstance(value, float) and math.isnan(value):  # how tables write a gap
        value = None
    if value is None or (isinstance(value, str) and not value.strip()):
        return "", "missing"
    if numbers and isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value):
        return str(int(value)) if value == int(value) else repr(value), None
    if not isinstance(value, str):
        return "", "not_text"
    if len(value) > LONGEST_TEXT:
        return "", "too_long"
    if any("\ud800" <= character <= "\udfff" for character in value):  # half a character, from a JSON escape
        return "", "not_unicode"
    return value, None
