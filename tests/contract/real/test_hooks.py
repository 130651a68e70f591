"""The hooks that let the workers run here find what they patch, in the versions that this environment has."""

from __future__ import annotations

from pathlib import Path

import pytest
from real_run import RealRun

IMPORT_ALL = """
import importlib, sys, cpu_for_cuda
for name in cpu_for_cuda.hooks():
    if name.startswith("megatron.") == (sys.argv[1] == "megatron"):
        importlib.import_module(name)
"""


@pytest.mark.parametrize("part", ["workers", pytest.param("megatron", marks=pytest.mark.megatron)])
def test_every_hook_finds_what_it_patches(part: str, tmp_path: Path) -> None:
    assert RealRun(tmp_path, "dtensor").run_python("-c", IMPORT_ALL, part) == 0


def test_a_hook_that_finds_nothing_says_so(tmp_path: Path) -> None:
    program = "import cpu_for_cuda.after_import as a, types; a.replace(types.ModuleType('vllm.moved'), 'load', print)"
    run = RealRun(tmp_path, "dtensor")
    assert run.run_python("-c", program) == 1 and "has no attribute 'load'" in run.tail()
