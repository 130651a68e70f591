"""tools/setup.sh: which Python it takes, and what it says where there is none. Nothing is installed here."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest

from tests.helpers.imports import ROOT

NEEDED = ("bash", "cat", "dirname", "sha256sum")


@pytest.fixture
def tools(tmp_path: Path) -> Path:
    """A PATH with what the script needs before it installs, and no Python."""
    folder = tmp_path / "bin"
    folder.mkdir()
    for name in NEEDED:
        found = shutil.which(name)
        assert found is not None
        (folder / name).symlink_to(found)
    (folder / "uname").write_text("#!/bin/bash\necho Plan9 vax\n")  # where the script stops, if a Python suits it
    (folder / "uname").chmod(0o755)
    return folder


def add_python(tools: Path, name: str, version: str) -> None:
    """An interpreter that knows its version alone."""
    code = f'#!/bin/bash\nif [ "$1" = -V ]; then echo Python {version}.1; exit; fi\n'
    code += f'shift 2\nif [ $# = 0 ]; then echo {version}; exit; fi\n[[ " $* " = *" {version} "* ]]\n'
    (tools / name).write_text(code)
    (tools / name).chmod(0o755)


def setup(tools: Path, **settings: str) -> str:
    environment = {"PATH": str(tools), "VENV": str(tools.parent / "venv"), **settings}
    done = subprocess.run(
        [str(tools / "bash"), str(ROOT / "tools" / "setup.sh")],
        env=environment, capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and not (tools.parent / "venv" / "lib").exists()
    return done.stderr


def test_without_a_suitable_python_it_says_the_command_that_brings_one(tools: Path) -> None:
    add_python(tools, "python3", "3.9")
    told = setup(tools)
    assert "no Python 3.11, 3.12 or 3.13 is installed" in told and "uv python install 3.12" in told


def test_on_linux_for_arm_it_goes_on_and_says_that_nobody_has_run_it(tools: Path) -> None:
    add_python(tools, "python3", "3.12")
    (tools / "uname").write_text("#!/bin/bash\necho Linux aarch64\n")
    told = setup(tools)  # which fails later: this Python makes no environment
    assert "Linux arm64, but nobody has told of a run there" in told and "this is" not in told


@pytest.mark.parametrize("version", ["3.11", "3.12", "3.13"])
def test_a_suitable_python_is_found(tools: Path, version: str) -> None:
    add_python(tools, "python3", "3.10")
    add_python(tools, f"python{version}", version)
    assert "this is Plan9 vax" in setup(tools)


def test_a_python_that_is_named_has_to_suit(tools: Path) -> None:
    add_python(tools, "python3", "3.12")
    add_python(tools, "mine", "3.14")
    told = setup(tools, PYTHON="mine")
    assert "for Python 3.11, 3.12, 3.13, and mine is Python 3.14.1" in told


def test_an_environment_of_another_python_is_not_mixed(tools: Path) -> None:
    (tools.parent / "venv" / "bin").mkdir(parents=True)
    add_python(tools.parent / "venv" / "bin", "python", "3.11")
    add_python(tools, "python3", "3.13")
    assert "this is Plan9 vax" in setup(tools)  # it stays with 3.11
    told = setup(tools, PYTHON="python3")
    assert "venv is of Python 3.11, and python3 is another: remove" in told
