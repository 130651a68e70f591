"""`nemo-tapo grade`, as a real process: rows in, the same rows with verdicts out, and what happens to bad ones."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.cli import main
from tests.helpers.data_files import data_file

ROWS: list[dict[str, Any]] = [
    {"id": "a", "answer": "5", "responses": [r"\boxed{5}", r"\boxed{6}", "none"], "note": "kept", "other": [1, 0, 1]},
    {"id": 2, "answer": 0.5, "responses": [r"\boxed{\frac12}"], "other": [True]},
    {
        "id": "c",
        "answer": r"\frac{\sqrt3}{3}",
        "responses": [r"\boxed{\frac{1}{\sqrt3}}", "\ud800 \\boxed{9^{9^{9^9}}}"],
    },
    {"id": "d", "answer": "7", "responses": []},
]


LOST_BACKSLASH = r"the answer lost a backslash (in JSON, \frac is written \\frac)"


def call(*arguments: str | Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command(*arguments), check=False, capture_output=True, text=True, timeout=120)


def command(*arguments: str | Path) -> list[str]:
    return [sys.executable, "-m", "nemo_tapo.cli", "grade", *map(str, arguments)]


def write(path: Path, lines: list[Any]) -> Path:
    """Texts and bytes as they are, everything else as JSON."""
    raw = [x if isinstance(x, bytes) else x.encode() if isinstance(x, str) else json.dumps(x).encode() for x in lines]
    path.write_bytes(b"\n".join(raw) + b"\n")
    return path


def read(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def test_rows_come_back_in_order_with_their_verdicts(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", ROWS), tmp_path / "new folder" / "out.jsonl"
    done = call(file, "--out", out, "--agree", "other")
    assert done.returncode == 0, done.stderr
    assert read(out) == [
        {**ROWS[0], "outcomes": ["right", "wrong", "no_answer"], "correct": [True, False, False]},
        {**ROWS[1], "outcomes": ["right"], "correct": [True]},
        {**ROWS[2], "outcomes": ["right", "error"], "correct": [True, False]},
        {**ROWS[3], "outcomes": [], "correct": []},
    ]
    table = [line.split()[1::2] for line in done.stdout.splitlines() if line.startswith("│")]
    assert table[0] == ["right", "3", "50.0%"]
    assert table[-1][:2] == ["all", "6"]
    assert "4 rows graded, 0 not." in done.stdout
    assert "Agreement with other: 3 of 4 (75.00%)" in done.stdout
    assert "a/2: right there, wrong here" in done.stdout
    assert "2 rows have no list of booleans there" in done.stdout
    assert list(out.parent.iterdir()) == [out]


def test_broken_rows_are_named_counted_and_kept(tmp_path: Path) -> None:
    good = {"id": "good", "answer": "5", "responses": [r"\boxed{5}"]}
    broken: list[tuple[Any, str]] = [
        ("{half a row", "not JSON"),
        (b"\xff\xfe", "not JSON"),
        ("[" * 100_000, "not JSON"),
        ([1, 2], "not an object"),
        ({"answer": "5", "responses": []}, "no id"),
        ({"id": "1", "responses": []}, "no answer"),
        ({"id": "2", "answer": None, "responses": []}, "no answer"),
        ({"id": "3", "answer": "5"}, "no responses"),
        ({"id": "4", "answer": ["5"], "responses": []}, "answer is neither text nor number"),
        ({"id": "5", "answer": "5", "responses": "text"}, "responses is not a list of texts"),
        ({"id": "6", "answer": "5", "responses": ["text", 5]}, "responses is not a list of texts"),
        (good, "id seen before"),
        ({"id": "7", "answer": " ", "responses": []}, "the answer is empty"),
        ({"id": "8", "answer": r"\frac{1}{", "responses": ["x"], "more": 1}, "the answer does not parse"),
        ({"id": "9", "answer": "9^{9^{9^9}}", "responses": ["x"]}, "the answer is too large to be worked out"),
        ({"id": "10", "answer": True, "responses": []}, "answer is neither text nor number"),
        ({"id": "11", "answer": float("nan"), "responses": ["x"]}, "no answer (it is the number nan)"),
        ('{"id": "12", "answer": -Infinity, "responses": ["x"]}', "no answer (it is the number -inf)"),
        ('{"id": "13", "answer": 1e400, "responses": ["x"]}', "no answer (it is the number inf)"),
        ({"id": "14", "answer": "nan", "responses": [r"\boxed{a n^2}"]}, "no answer (it is the text 'nan')"),
        ({"id": "15", "answer": "None", "responses": [r"\boxed{None}"]}, "no answer (it is the text 'None')"),
        (r'{"id": "16", "answer": "2\frac{1}{2}", "responses": ["x"]}', LOST_BACKSLASH),
        (r'{"id": "17", "answer": "3\times 10", "responses": ["x"]}', LOST_BACKSLASH),
        ({"id": "18", "answer": "half \ud83d", "responses": []}, "the answer has half a surrogate pair"),
        ('{"id": "19", "answer": ' + "7" * 5000 + ', "responses": []}', "the answer is longer than 500 characters"),
        ('{"id": NaN, "answer": "5", "responses": []}', "no id"),
    ]
    file, out = write(tmp_path / "in.jsonl", [good, "", *(row for row, _ in broken)]), tmp_path / "out.jsonl"
    done = call(file, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = read(out)
    assert rows[0] == {**good, "outcomes": ["right"], "correct": [True]}
    assert [(row["fault"], row["line"]) for row in rows[1:]] == [(fault, i) for i, (_, fault) in enumerate(broken, 3)]
    assert all(row["outcomes"] is None and row["correct"] is None for row in rows[1:])
    assert next(row for row in rows if row.get("id") == "8")["more"] == 1
    assert next(row for row in rows if row.get("id") == "11")["answer"] is None
    assert "NaN" not in out.read_text()
    assert "Infinity" not in out.read_text()
    assert f"1 rows graded, {len(broken)} not." in done.stdout
    assert "not JSON: 3 (line 3, 4, 5)" in done.stdout


def test_gold_numbers_are_read_exactly_and_the_output_is_json(tmp_path: Path) -> None:
    """1e22 is 10^22; a field that is NaN becomes null, at any depth."""
    lines = [
        r'{"id": 1, "answer": 1e22, "responses": ["\\boxed{10^{22}}", "\\boxed{1}"], "s": [NaN, {"a": Infinity}]}',
        r'{"id": 2, "answer": 1e-05, "responses": ["\\boxed{10^{-5}}", "\\boxed{0.00001}", "\\boxed{10^{-6}}"]}',
        r'{"id": 3, "answer": 72.0, "responses": ["\\boxed{72}"]}',
        r'{"id": 4, "answer": "\\frac{1}{2}", "responses": ["\\boxed{0.5}"]}',
    ]
    file, out = write(tmp_path / "in.jsonl", [*lines]), tmp_path / "out.jsonl"
    done = call(file, "--out", out)
    assert done.returncode == 0, done.stderr
    rows = [json.loads(line, parse_constant=pytest.fail) for line in out.read_text().splitlines()]
    assert [row["correct"] for row in rows] == [[True, False], [True, True, False], [True], [True]]
    assert rows[0]["s"] == [None, {"a": None}]
    assert [rows[i]["answer"] for i in (0, 1)] == [1e22, 1e-05]


def test_bad_arguments_are_a_sentence_and_exit_2(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file, empty = write(tmp_path / "in.jsonl", ROWS), write(tmp_path / "empty.jsonl", ["", "  "])
    link = tmp_path / "link.jsonl"
    link.symlink_to(file)
    out = tmp_path / "out.jsonl"
    for arguments, sentence in [
        ((tmp_path / "none.jsonl", "--out", out), "there is no file"),
        ((tmp_path, "--out", out), "is a folder; grade takes a JSONL file"),
        ((empty, "--out", out), "holds no rows"),
        ((file, "--out", file), "is the file that is read"),
        ((file, "--out", link), "is the file that is read"),
        ((file, "--out", tmp_path), "is a folder; name a file"),
        ((file, "--out", out, "--workers", "0"), "--workers 0: at least 1"),
        ((file, "--out", out, "--deadline", "3"), "at most 2 seconds"),
        ((file, "--out", out, "--deadline", "nan"), "at most 2 seconds"),
    ]:
        assert main(["grade", *map(str, arguments)]) == 2
        assert sentence in capsys.readouterr().err
        assert not out.exists()
    assert read(file) == ROWS


def test_a_file_without_one_good_row_ends_with_2(tmp_path: Path) -> None:
    file, out = write(tmp_path / "in.jsonl", ["x", "y"]), tmp_path / "out.jsonl"
    done = call(file, "--out", out)
    assert done.returncode == 2
    assert "0 rows graded, 2 not." in done.stdout
    assert [row["fault"] for row in read(out)] == ["not JSON", "not JSON"]


@pytest.mark.parametrize(("signum", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_interrupted_it_leaves_the_old_result_and_nothing_else(tmp_path: Path, signum: int, code: int) -> None:
    slow = [rf"\boxed{{x^{{100}}+{i}x+1=0}}" for i in range(500)]
    file, out = (
        write(tmp_path / "in.jsonl", [{"id": 1, "answer": "x^3+x=2", "responses": slow}]),
        tmp_path / "out.jsonl",
    )
    out.write_text("old")
    with subprocess.Popen(
        command(file, "--out", out), stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    ) as process:
        for _ in range(400):
            if len(list(tmp_path.iterdir())) == 3:  # the part is there
                break
            time.sleep(0.05)
        time.sleep(0.5)
        os.killpg(process.pid, signum)
        _, errors = process.communicate(timeout=60)
    assert process.returncode == code
    assert "Traceback" not in errors
    assert out.read_text() == "old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["in.jsonl", "out.jsonl"]


def test_real_responses_agree_with_their_published_grades(tmp_path: Path) -> None:
    out = tmp_path / "out.jsonl"
    done = call(data_file("math_rollouts_k8.jsonl"), "--out", out, "--agree", "correct", "--workers", "1")
    assert done.returncode == 0, done.stderr
    assert "Agreement with correct: 479 of 480 (99.79%)" in done.stdout
    assert "math-72/7: wrong there, right here" in done.stdout
    assert len(read(out)) == 60


def test_the_output_may_be_a_pipe_or_a_link_of_ones_own(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"id": "a", "answer": "5", "responses": [r"\boxed{5}"]}])
    target, link, pipe = tmp_path / "target.jsonl", tmp_path / "link.jsonl", tmp_path / "pipe"
    target.write_text("")
    link.symlink_to(target)
    os.mkfifo(pipe)
    reader = subprocess.Popen(["cat", str(pipe)], stdout=subprocess.PIPE, text=True)
    for out in (link, pipe):
        assert call(rows, "--out", out).returncode == 0
    assert link.is_symlink() and read(target)[0]["id"] == "a"
    assert pipe.is_fifo() and json.loads(reader.communicate(timeout=30)[0])["id"] == "a"


def test_an_output_below_a_file_is_a_sentence(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"id": "a", "answer": "5", "responses": [r"\boxed{5}"]}])
    done = call(rows, "--out", rows / "x")
    assert done.returncode == 2 and "Traceback" not in done.stderr and str(rows) in done.stderr


def test_what_is_written_around_standard_output_stays(tmp_path: Path) -> None:
    rows = write(tmp_path / "rows.jsonl", [{"id": "a", "answer": "5", "responses": [r"\boxed{5}"]}])
    out = tmp_path / "out.txt"
    program = f"{sys.executable} -m nemo_tapo.cli grade {rows} --out /dev/stdout 2>/dev/null"
    subprocess.run(f"(echo before; {program}; echo after) > {out}", shell=True, check=True, timeout=120)
    lines = out.read_text().splitlines()
    assert (lines[0], lines[-1]) == ("before", "after") and any('"id": "a"' in line for line in lines)
