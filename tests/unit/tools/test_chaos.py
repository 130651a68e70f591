"""tools/chaos.py: a seeded dozen of faults is survived, and a run of the tool goes on where it was stopped."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).parents[3]
sys.path.insert(0, str(ROOT / "tools"))
from faults.table import BEGIN, END, make_tables, write_table  # noqa: E402
from faults.trial import remove_as_told  # noqa: E402


def chaos(work: Path, *arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, str(ROOT / "tools" / "chaos.py"), "--work", str(work), *arguments],
        check=False, capture_output=True, text=True, timeout=500, env={**os.environ, "OMP_NUM_THREADS": "1"}, cwd=ROOT,
    )  # fmt: skip


def results(work: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (work / "results.jsonl").read_text().splitlines()]


DOZEN = ("--tries", "12", "--seed", "1", "--command", "^(run|coldstart|evaluate|filter|judge)$")


def test_a_dozen_faults_are_survived(tmp_path: Path) -> None:
    done = chaos(tmp_path, *DOZEN)
    assert done.returncode == 0, done.stdout + done.stderr
    found = results(tmp_path)
    assert len(found) >= 8  # a full disk is left out where none can be mounted
    assert all(row["fault_found"] is None and row["repeats"][-1] == 0 for row in found)
    with (tmp_path / "results.jsonl").open("a") as file:
        file.write('{"name": "half-wri')  # as a kill of the tool leaves it
    again = chaos(tmp_path, *DOZEN)
    assert again.returncode == 0 and "survived" not in again.stdout
    assert results(tmp_path) == found


@pytest.mark.parametrize(
    ("said", "removed"),
    [
        ("broken-run/a.jsonl: line 2 is no sample; remove that line: its sample is taken again.", "a.jsonl, line 2"),
        ("broken-run/b is damaged; remove broken-run/a.jsonl to make it anew.", "a.jsonl"),
        ("broken-run/a.jsonl is damaged: remove it. If you changed it, remove broken-run/b instead.", "a.jsonl"),
        ("every checkpoint under broken-run/c is damaged; remove the folder to start over", "c"),
        ("broken-run/a.jsonl is damaged.", None),
        ("something is damaged; remove it.", None),
    ],
)
def test_what_a_refusal_tells_to_remove(tmp_path: Path, said: str, removed: str | None) -> None:
    output = tmp_path / "broken-run"
    (output / "c").mkdir(parents=True)
    (output / "b").touch()
    (output / "a.jsonl").write_text("1\n2\n3\n")
    assert remove_as_told(said, tmp_path) == removed
    if removed == "a.jsonl, line 2":
        assert (output / "a.jsonl").read_text() == "1\n3\n"
    elif removed is not None:
        assert not (output / removed).exists()


def test_the_table_is_written_between_its_markers(tmp_path: Path) -> None:
    row = {"level": "scripted", "fault": "SIGKILL to the driver", "command": "run", "seconds": 2.4, "code": -9}
    rows = [{**row, "fault_found": None}, {**row, "seconds": 5.6, "command": "filter", "fault_found": "it hung"}]
    page = tmp_path / "page.md"
    page.write_text(f"before\n{BEGIN}\nold\n{END}\nafter\n")
    write_table(page, rows)
    assert page.read_text() == f"before\n{BEGIN}\n{make_tables(rows)}{END}\nafter\n"
    assert "2 tries, 1 survived." in page.read_text()
    assert "| SIGKILL to the driver | `filter`, `run` | 2 | 1 | 2 killed | 4, 6 |" in page.read_text()
    first = page.read_text()
    write_table(page, [{**rows[0], "level": "local"}])
    assert "1 tries, 1 survived." in page.read_text() and "2 tries, 1 survived." in page.read_text()
    write_table(page, [{**rows[0], "level": "local"}])
    assert page.read_text().count("### ") == 2, "a level that was not tried now keeps its table"
    assert make_tables(rows).strip() in page.read_text() and make_tables(rows).strip() in first
    assert "| 1 queued again | 2, 2 |" in make_tables([{**rows[0], "level": "slurm", "code": None}])
    page.write_text("no markers")
    with pytest.raises(ValueError, match="no place for the table"):
        write_table(page, rows)
