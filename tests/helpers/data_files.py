"""Where the tests find real data that is not the project's to distribute."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

FOLDER = Path(os.environ.get("NEMO_TAPO_TEST_DATA", Path(__file__).parents[3] / "shared" / "data"))


def data_file(name: str) -> Path:
    """The file; skips the test where it is missing."""
    path = FOLDER / name
    if not path.is_file():
        pytest.skip(f"{name} is not in {FOLDER}; set NEMO_TAPO_TEST_DATA to the folder that has it")
    return path


def data_rows(name: str) -> list[dict[str, Any]]:
    """The rows of a JSONL file."""
    return [json.loads(line) for line in data_file(name).read_text().splitlines()]
