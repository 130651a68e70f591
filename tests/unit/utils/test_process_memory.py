"""Memory of processes, against psutil, and of the processes that grade."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import psutil
import pytest

from nemo_tapo.grading.calls import FunctionSpec, encode_functions
from nemo_tapo.grading.pool import GraderPool, list_grader_processes
from nemo_tapo.utils.process_memory import add_up_memory, list_children, read_resident_mib

HOLD = "import sys; held = b'x' * (80 << 20); print('ready', flush=True); sys.stdin.read()"


def test_a_process_that_holds_80_mib(tmp_path: Path) -> None:
    with subprocess.Popen([sys.executable, "-c", HOLD], stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None and process.stdin is not None
        process.stdout.readline()
        assert process.pid in list_children(os.getpid())
        held = read_resident_mib(process.pid)
        assert held == pytest.approx(psutil.Process(process.pid).memory_info().rss / 2**20, abs=1)
        assert held is not None and held > 80
        alone = read_resident_mib(os.getpid())
        both = add_up_memory({"driver": [os.getpid(), process.pid], "engine": []})
        assert alone is not None and both == {"driver": pytest.approx(alone + held, abs=5)}
        process.stdin.close()
    assert read_resident_mib(process.pid) is None
    assert list_children(process.pid) == []


def test_graders_are_found_while_they_run(tmp_path: Path) -> None:
    (tmp_path / "rewards.py").write_text("def score(response, query):\n    return 1.0\n")
    spec = FunctionSpec("task.reward", f"{tmp_path / 'rewards.py'}:score")
    before = set(list_grader_processes())
    pool = GraderPool(2, 5.0, 5.0, encode_functions([spec]))
    try:
        pool.submit(("call", "0", "{}")).result(timeout=120)  # starts them
        mine = set(list_grader_processes()) - before
        assert len(mine) == 3  # the fork server and two graders
        assert all(psutil.pid_exists(pid) for pid in mine)
    finally:
        pool.close()
    assert set(list_grader_processes()) == before
