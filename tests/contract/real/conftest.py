"""Tests of NeMo-RL's real workers: its policy workers and its vLLM engines, on CPUs.

They run where NEMO_RL_SRC names a checkout of NeMo-RL and NEMO_RL_WORKERS_PYTHON the interpreter of an environment that
`tools/nemo_rl_env.sh --workers` made; those of Megatron's workers where MEGATRON_BRIDGE_SRC and MEGATRON_LM_SRC name
checkouts as well. The others are left out, with one line that says how to enable them.
"""

from __future__ import annotations

import os
from pathlib import Path

import pytest
import real_run

from tests.helpers.left_out import LeftOut

HERE = Path(__file__).parent
HOW = (
    "make an environment with tools/nemo_rl_env.sh --workers, and set NEMO_RL_SRC=<checkout of NVIDIA-NeMo/RL> "
    "NEMO_RL_WORKERS_PYTHON=<environment>/bin/python, and for Megatron's workers MEGATRON_BRIDGE_SRC and "
    "MEGATRON_LM_SRC=<checkouts of the commits that it names>"
)
LEFT_OUT = LeftOut("tests of NeMo-RL's real workers", HOW)


@pytest.hookimpl(trylast=True)  # after `-m`
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    LEFT_OUT.leave_out(config, items, [item for item in items if HERE in item.path.parents and not _can_run(item)])


def pytest_report_collectionfinish(config: pytest.Config) -> str | None:
    return LEFT_OUT.describe(config)


def _can_run(item: pytest.Item) -> bool:
    needed = [real_run.PYTHON, *(real_run.SOURCES if item.get_closest_marker("megatron") else real_run.SOURCES[:1])]
    return all(os.environ.get(name) for name in needed)
