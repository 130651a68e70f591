"""Kinds of answers on which graders have been reported to err: each with the outcome that is right, by hand.

answer_cases.jsonl has one answer a line. A case that is `known` is refused though it is right, with the reason.
"""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.verifier import Verifier

CASES = [json.loads(line) for line in Path(__file__).with_name("answer_cases.jsonl").read_text("utf-8").splitlines()]


@pytest.fixture(scope="module")
def verifier() -> Iterator[Verifier]:
    one = Verifier(VerifierConfig(workers=1))
    yield one
    one.close()


@pytest.mark.parametrize("case", CASES, ids=lambda case: f"{case['kind']}: {case['gold'][:24]}")
def test_answer(verifier: Verifier, case: dict[str, Any]) -> None:
    grade = asyncio.run(verifier.grade(case["gold"], case["response"]))
    wanted = case["expected"] == "right" and "known" not in case
    assert (grade.reward == 1.0) == wanted, (grade, case)
