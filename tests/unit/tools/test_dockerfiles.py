"""The Dockerfiles copy what their commands read. No image is built here."""

from __future__ import annotations

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.helpers.imports import ROOT

CPU = (ROOT / "Dockerfile.cpu").read_text(encoding="utf-8")
SETUP = (ROOT / "tools" / "setup.sh").read_text(encoding="utf-8")


def copied(text: str) -> list[str]:
    """The files and folders that COPY takes."""
    return [name for line in re.findall(r"^COPY (.*)$", text, re.MULTILINE) for name in line.split()[:-1]]


@pytest.mark.parametrize("name", ["Dockerfile", "Dockerfile.cpu"])
def test_what_is_copied_is_in_the_repository(name: str) -> None:
    sources = copied((ROOT / name).read_text(encoding="utf-8"))
    assert sources and all((ROOT / source).exists() for source in sources)


def test_the_set_up_finds_every_file_that_it_reads(tmp_path: Path) -> None:
    """It runs in a copy of the image's folder, up to the first thing that it would install."""
    for name in copied(CPU):
        if (ROOT / name).is_file():
            shutil.copyfile(ROOT / name, tmp_path / name)
        elif name in ("tools", "requirements"):
            shutil.copytree(ROOT / name, tmp_path / name)
        else:
            (tmp_path / name).symlink_to(ROOT / name)
    read = re.findall(r"requirements/\w+\.txt|pyproject\.toml|setup\.py", SETUP)
    assert read and all((tmp_path / name).is_file() for name in read)
    folder = tmp_path / "bin"
    folder.mkdir()
    for tool in ("bash", "cat", "dirname", "sha256sum"):
        found = shutil.which(tool)
        assert found is not None
        (folder / tool).symlink_to(found)
    (folder / "python3").symlink_to(sys.executable)
    (folder / "uname").write_text("#!/bin/bash\necho Plan9 vax\n")
    (folder / "uname").chmod(0o755)
    done = subprocess.run(
        [str(tmp_path / "tools" / "setup.sh")],
        env={"PATH": str(folder), "VENV": str(tmp_path / "venv")}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 1 and "this is Plan9 vax" in done.stderr and "No such file" not in done.stderr


def test_its_python_is_one_of_the_set_ups() -> None:
    (version,) = re.findall(r"^ARG PYTHON=(.*)$", CPU, re.MULTILINE)
    (versions,) = re.findall(r'^VERSIONS="(.*)"', SETUP, re.MULTILINE)
    assert version in versions.split()


def test_the_package_data_is_copied() -> None:
    """What MANIFEST.in and setup.py put into a wheel, an editable install reads from the folder."""
    manifest = (ROOT / "MANIFEST.in").read_text(encoding="utf-8")
    assert {line.split()[1] for line in manifest.splitlines()} <= set(copied(CPU))
