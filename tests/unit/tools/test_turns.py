"""tools/turns.py: what corrections do, by hand."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

from tests.helpers.sweep_samples import write_run

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))
from turns import kinds  # noqa: E402


def test_what_a_correction_does_by_hand() -> None:
    assert list(kinds("a: 47+38=75\nWait, the carry was forgotten: a: 47+38=85\nb: 85-19=66\n\\boxed{66}")) == [
        "wrong to right"
    ]
    assert list(kinds("a: 47+38=85\nWait, x: a: 47+38=85\nWait, x: a: 47+38=75\nWait, x: a: 47+38=95")) == [
        "right to right", "right to wrong", "wrong to wrong",
    ]  # fmt: skip
    assert list(kinds("a: 47+38=85\nWait, x: b: 85-19=66")) == ["other line"]
    assert list(kinds("Wait, x: a: 47+38=85")) == ["other line"]
    assert list(kinds("b: 75-19=56\nWait, x: b: 75-19=56")) == ["right to right"]  # of its own operands
    assert list(kinds("a: 47+38=85\nWait, then: 47")) == []


def test_of_run_folders(tmp_path: Path) -> None:
    write_run(tmp_path, "tapo", 0, [["right", "turned"], ["wrong", "turned wrong"]])
    tool = [sys.executable, str(ROOT / "tools" / "turns.py")]
    done = subprocess.run([*tool, str(tmp_path / "tapo" / "seed-0")], capture_output=True, text=True, check=True)
    assert [line.strip() for line in done.stdout.splitlines()] == [
        "4 responses",
        "with a correction 50.0%, of them right 50.0%",
        "without a correction 50.0%, of them right 50.0%",
        "wrong to right: 2 (50.0%)",
    ]
    failed = subprocess.run([*tool, str(tmp_path)], capture_output=True, text=True, check=False)
    assert failed.returncode == 1
    assert "holds no evaluation" in failed.stderr
