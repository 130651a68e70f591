"""The loss in a Ray actor whose environment has NeMo-RL, and nothing of this package."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.nemo_rl
ROOT = Path(__file__).parents[2]


def drive(folder: Path, how: str) -> subprocess.CompletedProcess[str]:
    program = Path(shutil.copy(ROOT / "tests/contract/shipping_driver.py", folder))
    others = [str(ROOT / "tests/contract/shim"), os.path.realpath(os.environ["NEMO_RL_SRC"])]
    environment = os.environ | {
        "PYTHONPATH": os.pathsep.join([*others, str(ROOT)]),
        "WORKERS_PATH": os.pathsep.join(others),
        "NO_VCS_VERSION": "1",
    }
    return subprocess.run(
        [sys.executable, str(program), how], cwd=folder, env=environment, capture_output=True, text=True, timeout=300
    )


def test_by_value_it_runs_where_this_package_is_absent(tmp_path: Path) -> None:
    done = drive(tmp_path, "by value")
    assert done.returncode == 0, done.stderr[-3000:]
    assert "the same in the worker" in done.stdout


def test_by_reference_it_does_not(tmp_path: Path) -> None:
    done = drive(tmp_path, "by reference")
    assert done.returncode != 0 and "No module named 'nemo_tapo'" in done.stderr
