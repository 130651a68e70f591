"""Contract tests: what the project expects of NeMo-RL, asked of NeMo-RL itself.

Tests marked `nemo_rl` need the checkout that NEMO_RL_SRC names, in an environment made by tools/nemo_rl_env.sh;
tools/test.sh runs them and sets PYTHONPATH. Without the variable they are left out, with one line that says so. With
it, a NeMo-RL that does not import is a failure.
"""

from __future__ import annotations

import os

import pytest

from tests.helpers.left_out import LeftOut

HOW = (
    "set NEMO_RL_SRC=<checkout of NVIDIA-NeMo/RL> and NEMO_RL_PYTHON=<python of an environment made by "
    "tools/nemo_rl_env.sh>, and run tools/test.sh tests/contract"
)
LEFT_OUT = LeftOut("NeMo-RL contract tests", HOW)


@pytest.hookimpl(trylast=True)  # after `-m`: nothing is imported for tests that were deselected
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    contracts = [item for item in items if item.get_closest_marker("nemo_rl")]
    if contracts and os.environ.get("NEMO_RL_SRC"):
        _import_or_fail()
        return
    LEFT_OUT.leave_out(config, items, contracts)


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    return LEFT_OUT.describe(config)


def _import_or_fail() -> None:
    """Any exception counts: below Python 3.12 without the shim it is pydantic's, not an ImportError."""
    try:
        import nemo_rl.algorithms.grpo  # noqa: F401
    except Exception as error:
        raise pytest.UsageError(f"NeMo-RL does not import ({type(error).__name__}: {error}): {HOW}.") from error
