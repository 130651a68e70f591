"""Read a data set of the config: open it, check its fields and its size, parse its rows. screening.py comes after."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.field_text import FieldFault, parse_text
from nemo_tapo.datasets.row_files import BrokenRow, RawDataset, Record, read_records
from nemo_tapo.types import Provenance, SetAside

# Benchmarks of known size, by the repository's name without its owner: these are checked even without `rows`.
# opencompass/AIME2025, for example, has two configurations of 15 rows, and one alone looks like a whole benchmark.
BENCHMARK_ROWS = {
    "aime_2024": 30, "AIME2025": 30, "aime_2025": 30, "aime25": 30, "aime_2026": 30,
    "hmmt_feb_2025": 30, "hmmt_nov_2025": 30, "hmmt_feb_2026": 30,
}  # fmt: skip


@dataclass(frozen=True)
class DataRow:
    """A row of a data set with a question and an answer.

    >>> row = DataRow("train-7", "47+38=?", "85", {"question": "47+38=?", "answer": 85})
    >>> row.answer, row.raw["answer"]
    ('85', 85)
    """

    uid: str
    question: str
    answer: str
    raw: Mapping[str, Any]  # all fields as read
    solution: str = ""


@dataclass(frozen=True)
class LoadedDataset:
    """A data set as read; `provenance.rows` is the number of `rows` and of `provenance.set_aside` together."""

    rows: tuple[DataRow, ...]
    provenance: Provenance


def read_dataset(cfg: DatasetConfig, name: str, key: str) -> LoadedDataset:
    """Read the data set `cfg`. Rows without a uid get `<name>-<number>`; error messages name the config key `key`.

    Raises ValueError with a sentence if the data does not exist, or lacks the fields or the number of rows it should
    have.
    """
    opened = open_dataset(cfg, key)
    check_row_count(cfg, opened, key)
    for field, setting in (
        (cfg.question, "question"),
        (cfg.answer, "answer"),
        (cfg.uid, "uid"),
        (cfg.solution, "solution"),
    ):
        if field is not None:
            require_field(opened, field, key, setting)
    parsed = [parse_row(record, cfg, f"{name}-{number}") for number, record in enumerate(opened.rows)]
    return LoadedDataset(
        tuple(row for row in parsed if isinstance(row, DataRow)),
        Provenance(
            opened.description,
            len(parsed),
            tuple(row for row in parsed if isinstance(row, SetAside)),
            cfg.licence,
            opened.notes,
        ),
    )


def open_dataset(cfg: DatasetConfig, key: str) -> RawDataset:
    """Read the rows of the file or of the hub data set. Raises ValueError with a sentence if that fails."""
    if cfg.path is None:
        from nemo_tapo.datasets.hub import read_hub

        return read_hub(cfg, key)
    try:
        return RawDataset(str(cfg.path), list(read_records(cfg.path)))
    except ValueError as error:
        raise ValueError(f"{key}.path: {error}") from None


def check_row_count(cfg: DatasetConfig, opened: RawDataset, key: str) -> None:
    """Raise ValueError if the set is empty or does not have the expected number of rows."""
    found = len(opened.rows)
    if found == 0:
        raise ValueError(f"{key}: {opened.description} has no rows.")
    wanted = cfg.rows or (BENCHMARK_ROWS.get(cfg.hub.rstrip("/").split("/")[-1]) if cfg.hub else None)
    if wanted is not None and found != wanted:
        names = ", ".join(opened.other_configs)
        left = f" Left out of {key}.configs: {names}; a part of a benchmark is not the benchmark." if names else ""
        raise ValueError(
            f"{key}: {opened.description} has {found} rows, not {wanted}.{left} "
            f"If that is meant, set {key}.rows={found}."
        )


def require_field(opened: RawDataset, field: str, key: str, setting: str) -> None:
    """Raise ValueError, naming the fields that exist, if no row has `field`. Single rows may lack it."""
    rows = [row for row in opened.rows if not isinstance(row, BrokenRow)]
    if not rows:
        first = opened.rows[0]
        assert isinstance(first, BrokenRow)
        raise ValueError(
            f"{key}: {opened.description} is not JSON Lines, a JSON array or Parquet: no row can be read; the first: "
            f"{first.reason}, {first.detail}."
        )
    if any(field in row for row in rows):
        return
    there = list(rows[0])
    usual = {"question": "problem", "problem": "question"}.get(field)
    near = [usual] if usual in there else difflib.get_close_matches(field, there, n=1, cutoff=0.5)
    meant = f"; did you mean '{near[0]}'?" if near else ""
    raise ValueError(
        f"{key}.{setting}: no row of {opened.description} has a field '{field}'; they have {', '.join(there)}{meant}"
    )


def parse_row(record: Record, cfg: DatasetConfig, fallback_uid: str) -> DataRow | SetAside:
    """Parse a row into question and answer, or return why it is set aside."""
    if isinstance(record, BrokenRow):
        return SetAside(fallback_uid, record.reason, record.detail)
    uid = fallback_uid if cfg.uid is None else parse_text(record.get(cfg.uid))
    if isinstance(uid, FieldFault):
        return SetAside(fallback_uid, f"uid_{uid.reason}", uid.detail)
    question = parse_text(record.get(cfg.question), numbers=False, short=False)
    if isinstance(question, FieldFault):
        return SetAside(uid, f"question_{question.reason}", question.detail)
    answer = parse_answer(record.get(cfg.answer), cfg.answer_after)
    if isinstance(answer, FieldFault):
        return SetAside(uid, f"answer_{answer.reason}", answer.detail, question)
    solution = "" if cfg.solution is None else parse_text(record.get(cfg.solution), numbers=False, short=False)
    if isinstance(solution, FieldFault):
        if solution.reason == "lost_backslash":
            return SetAside(uid, f"solution_{solution.reason}", solution.detail, question)
        solution = ""
    return DataRow(uid, question, answer, record, solution)


def parse_answer(value: Any, marker: str | None = None) -> str | FieldFault:
    """Return the gold answer in a field, or why there is none: the field itself, or what follows the last `marker`.

    >>> parse_answer("40 + 2 is #### 42", "####"), parse_answer(1e-05)
    ('42', '0.00001')
    """
    if marker is not None:
        whole = value if isinstance(value, str) else parse_text(value)
        if isinstance(whole, FieldFault):
            return whole
        if whole.strip():
            _, found, value = whole.rpartition(marker)
            if not found:
                return FieldFault("without_marker")
    answer = parse_text(value)
    return answer if isinstance(answer, FieldFault) else answer.strip()
