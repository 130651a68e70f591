"""tools/soak.py: growth by hand, and a run that grows is told from one that does not."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))
import soak as tool  # noqa: E402


def write_run(folder: Path, gain: float) -> Path:
    """Twenty steps: the first ten gain 9 MiB each (caches fill), the others `gain`; one step holds 50 more."""
    folder.mkdir()
    sizes = [100 + 9 * min(step, 10) + gain * max(step - 10, 0) + 50 * (step == 15) for step in range(20)]
    lines = [{"step": step + 1, "memory/driver": size, "memory/ranks": 300.0} for step, size in enumerate(sizes)]
    (folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    return folder


def test_growth_is_that_of_the_second_half(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert tool.main(["--read", str(write_run(tmp_path / "steady", gain=0.0))]) == 0
    assert tool.main(["--read", str(write_run(tmp_path / "grows", gain=0.25))]) == 1
    shown = capsys.readouterr().out
    assert "| driver | 100 | 190 | 190 | 0.0 |" in shown
    assert "| driver | 100 | 190 | 192 | 256.0 |" in shown
    assert "| ranks | 300 | 300 | 300 | 0.0 |" in shown
