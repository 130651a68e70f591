"""Programs to be graded, and whether this machine can isolate them."""

from __future__ import annotations

import json
from typing import Any

import pytest

from nemo_tapo.config.sections import CodeRewardConfig
from nemo_tapo.grading.code_tests import CodeTests
from nemo_tapo.grading.sandbox import find_isolation_fault
from nemo_tapo.types import Grade, Query

FAULT = find_isolation_fault()
NEEDS_BUBBLEWRAP = pytest.mark.skipif(FAULT is not None, reason=f"no program was run: {FAULT}")


def block(program: str) -> str:
    """A response with a program."""
    return f"So:\n```python\n{program}\n```\n"


def grade(tests: Any, program: str, **settings: Any) -> Grade:
    """The grade of a program, in this process."""
    settings = {"seconds": 3, **settings}
    return CodeTests(**CodeRewardConfig(**settings).model_dump()).grade(
        Query("7", "?", json.dumps(tests)), block(program)
    )
