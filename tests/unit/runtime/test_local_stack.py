"""A machine that cannot have the local runtime says so in one sentence, and does everything else."""

from __future__ import annotations

import platform
from pathlib import Path

import pytest
import torch

from nemo_tapo.config.load import load_config
from nemo_tapo.runtime import local_stack
from nemo_tapo.stages.dry_run import describe_command
from tests.helpers.command import nemo_tapo
from tests.helpers.imports import ROOT

assert torch.__version__  # imported before a test says that this is a Mac: it looks for its libraries by that name
CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"


def on_machine(monkeypatch: pytest.MonkeyPatch, system: str, machine: str, *missing: str) -> None:
    monkeypatch.setattr(platform, "system", lambda: system)
    monkeypatch.setattr(platform, "machine", lambda: machine)
    monkeypatch.setattr(local_stack, "is_installed", lambda name: name not in missing)
    monkeypatch.setattr(local_stack, "NUMA", "libc.so.6")


@pytest.mark.parametrize(
    ("machine", "missing", "words"),
    [
        (("Darwin", "arm64"), ("vllm",), ["needs vllm, and for Darwin arm64 not all of these", "Dockerfile.cpu"]),
        (("Linux", "aarch64"), ("ray", "vllm"), ["needs ray, vllm. Tested is Linux x86_64 alone", "there are wheels"]),
        (("Linux", "x86_64"), ("megatron.core",), ["needs megatron.core: pip install 'nemo-tapo[local]'"]),
    ],
)
def test_a_command_that_trains_is_refused_with_a_sentence(
    machine: tuple[str, str],
    missing: tuple[str, ...],
    words: list[str],
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
) -> None:
    on_machine(monkeypatch, *machine, *missing)
    done = nemo_tapo("run", "--config", str(CONFIG), f"output={tmp_path / 'run'}")
    assert done.returncode == 2 and done.stderr.count("\n") == 1 and all(word in done.stderr for word in words)
    assert not (tmp_path / "run").exists()
    plan = describe_command(load_config(CONFIG, []), "run")
    assert "cannot start here" in plan and words[0] in plan
    assert "cannot start here" not in describe_command(load_config(CONFIG, ["runtime=scripted"]), "run")


def test_where_all_is_installed_nothing_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    for machine in (("Linux", "x86_64"), ("Linux", "aarch64")):
        on_machine(monkeypatch, *machine)
        assert local_stack.find_local_fault() is None


def test_a_library_that_is_missing_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    on_machine(monkeypatch, "Linux", "x86_64")
    monkeypatch.setattr(local_stack, "NUMA", "libno-such.so.1")
    assert "apt-get install libnuma1" in str(local_stack.find_local_fault())
