"""The wheel works without the repository: configs and models are in it, and the demo and a sweep find them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tests.helpers.imports import ROOT

SOURCES = ("pyproject.toml", "setup.py", "MANIFEST.in", "README.md", "LICENSE", "nemo_tapo", "examples", "assets")


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The unpacked wheel, made by the build backend from a copy of the sources."""
    pytest.importorskip("setuptools")
    source, folder = tmp_path_factory.mktemp("source"), tmp_path_factory.mktemp("wheel")
    for name in SOURCES:
        if (ROOT / name).is_dir():
            shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
        else:
            shutil.copyfile(ROOT / name, source / name)
    code = f"from setuptools import build_meta; build_meta.build_wheel({str(folder)!r})"
    done = subprocess.run([sys.executable, "-c", code], cwd=source, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    (wheel,) = folder.glob("nemo_tapo-*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def call(installed: Path, folder: Path, *arguments: str) -> str:
    done = subprocess.run(
        [sys.executable, "-m", "nemo_tapo.cli", *arguments],
        cwd=folder, env=os.environ | {"PYTHONPATH": str(installed)}, capture_output=True, text=True, timeout=120,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_it_holds_the_configs_and_models(installed: Path) -> None:
    data = installed / "nemo_tapo" / "data"
    for folder in ("examples", "assets"):
        expected = {
            p.relative_to(ROOT) for p in (ROOT / folder).rglob("*") if p.is_file() and "__pycache__" not in p.parts
        }
        assert {p.relative_to(data) for p in (data / folder).rglob("*") if p.is_file()} == expected
    assert {p.name for p in installed.iterdir() if p.is_dir()} == {
        "nemo_tapo",
        *(p.name for p in installed.glob("*.dist-info")),
    }
    assert (installed / "nemo_tapo" / "report" / "page.html").is_file()


def test_the_demo_and_a_project_start_from_it(installed: Path, tmp_path: Path) -> None:
    told = call(installed, tmp_path, "demo", "--dry-run")
    assert f"model: {installed}/nemo_tapo/data/assets/tiny-base: Qwen3ForCausalLM, 853,376 parameters" in told
    assert "tapo: 80 steps of 32 queries" in told
    call(installed, tmp_path, "init", "mine")
    assert (tmp_path / "mine" / "model" / "model.safetensors").is_file()
    assert "no-dae" in call(installed, tmp_path, "sweep", "table4", "--dry-run", "output=runs/sweep")
