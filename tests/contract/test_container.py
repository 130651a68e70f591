"""What every node checks before a job starts: one sentence a fault, in one line, and exit code 1."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]


def check(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    merged = {k: v for k, v in os.environ.items() if k != "TORCH_CUDA_ARCH_LIST"} | environment
    merged["PYTHONPATH"] = os.pathsep.join(
        filter(None, (environment.get("FIRST"), merged.get("PYTHONPATH"), str(ROOT)))
    )
    command = [sys.executable, "-P", str(ROOT / "tools" / "check_container.py"), *arguments]
    return subprocess.run(command, check=False, capture_output=True, text=True, env=merged, timeout=180)


def test_without_nemo_rl_it_is_not_its_container() -> None:
    if os.environ.get("NEMO_RL_SRC"):
        pytest.skip("NeMo-RL is importable here")
    done = check()
    assert done.returncode == 1
    assert "NeMo-RL is not importable" in done.stdout
    assert "TORCH_CUDA_ARCH_LIST is not set" in done.stdout
    assert done.stdout.count("\n") == 1


@pytest.mark.nemo_rl
def test_everything_that_is_called_is_there() -> None:
    done = check(TORCH_CUDA_ARCH_LIST="9.0")
    assert done.returncode == 0, done.stdout + done.stderr
    assert done.stdout == "check_container: ready\n"


@pytest.mark.nemo_rl
def test_each_missing_thing_is_named(tmp_path: Path) -> None:
    (tmp_path / "math_verify.py").write_text("raise ImportError('broken on purpose')\n")
    done = check("--gpus", "8", FIRST=str(tmp_path))
    assert done.returncode == 1
    assert "cannot import math_verify." in done.stdout
    assert "TORCH_CUDA_ARCH_LIST is not set" in done.stdout
    assert "GPUs are visible, 8 were asked for" in done.stdout
    assert "broken on purpose" in done.stderr
    assert done.stdout.count("\n") == 1


def test_a_workers_environment_that_lacks_something_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Megatron's workers: no environment (NeMo-RL will build it), then one without torch, without Megatron, whole."""
    spec = importlib.util.spec_from_file_location("check_container", ROOT / "tools" / "check_container.py")
    assert spec is not None and spec.loader is not None
    tool = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(tool)
    monkeypatch.setenv("NEMO_RL_VENV_DIR", str(tmp_path))
    assert list(tool.of_workers()) == [] and "MegatronPolicyWorker" in next(tool.notes())
    environment = tmp_path / "nemo_rl.models.policy.workers.megatron_policy_worker.MegatronPolicyWorker"
    (environment / "bin").mkdir(parents=True)
    (environment / "bin" / "python").write_text(
        f'#!/bin/bash\nPYTHONPATH={environment} exec {sys.executable} -S "$@"\n'
    )
    (environment / "bin" / "python").chmod(0o755)
    told = f"the workers' environment {environment} is not fit to run: "
    assert list(tool.of_workers()) == [f"{told}ModuleNotFoundError: No module named 'torch'."]
    (environment / "torch.py").touch()
    assert list(tool.of_workers()) == [f"{told}no megatron.core."]
    (environment / "megatron").mkdir()
    (environment / "megatron" / "core.py").touch()
    assert list(tool.of_workers()) == []
