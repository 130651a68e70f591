"""The query filter: exact bounds, counts that sum up, a killed filter that ends like an undisturbed one."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from fractions import Fraction
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.load import load_config
from nemo_tapo.stages.filter_queries import (
    FAILED,
    KEPT,
    TOO_EASY,
    TOO_HARD,
    QuerySamples,
    exact_fraction,
    make_result_row,
)
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Query
from tests.helpers.command import nemo_tapo

FILES = ("kept", "too_easy", "too_hard", "failed")
SAMPLES = "samples/train"
QUERY = Query("q", "47+38=?", "85")


def sampled(right: int = 0, wrong: int = 0, timeout: int = 0, error: int = 0) -> QuerySamples:
    outcomes = {"right": right, "wrong": wrong, "timeout": timeout, "error": error}
    return QuerySamples(QUERY, [name for name, count in outcomes.items() for _ in range(count)])


def place(one: QuerySamples, least: float = 0.125, most: float = 0.875) -> str:
    return one.classify(exact_fraction(least), exact_fraction(most))


def test_both_bounds_are_inside() -> None:
    """Section 4.1: accuracy in [0.125, 0.875]; of 8 samples that is 1 to 7 right."""
    assert [place(sampled(right=n, wrong=8 - n)) for n in range(9)] == [TOO_HARD, *[KEPT] * 7, TOO_EASY]


@pytest.mark.parametrize("n", [3, 5, 6, 7, 9, 10, 11, 13, 49, 100])
def test_bounds_are_exact_for_every_number_of_samples(n: int) -> None:
    """0.1 of 10, 0.07 of 100: a bound that is a whole number of samples keeps that number, and not one below."""
    for right in range(1, n):
        as_written = str(round(right / n, 2))
        if Fraction(as_written) == Fraction(right, n):
            one, below = sampled(right=right, wrong=n - right), sampled(right=right - 1, wrong=n - right + 1)
            assert place(one, least=float(as_written), most=1.0) == KEPT
            assert place(one, least=0.0, most=float(as_written)) == KEPT
            assert place(below, least=float(as_written), most=1.0) == TOO_HARD


@pytest.mark.parametrize(
    ("one", "where"),
    [
        (sampled(right=3, wrong=4, timeout=1), KEPT),  # 3 or 4 of 8
        (sampled(right=0, wrong=7, timeout=1), FAILED),  # 0 or 1
        (sampled(right=7, error=1), FAILED),  # 7 or 8
        (sampled(right=1, wrong=1, timeout=3, error=3), KEPT),  # 1 to 7
        (sampled(timeout=8), FAILED),
        (sampled(right=8), TOO_EASY),
    ],
)
def test_what_could_not_be_graded_decides_nothing(one: QuerySamples, where: str) -> None:
    assert place(one) == where


def test_a_kept_row_has_the_default_names_and_loses_nothing() -> None:
    one = QuerySamples(Query("train-3", "2+2?", "4"), ["right", "wrong"], tokens=10, truncated=1)
    assert make_result_row(one, {"question": "2+2?", "answer": "It is #### 4", "level": 2, "id": 7}) == {
        "id": "train-3", "problem": "2+2?", "answer": "4", "question": "2+2?", "answer_as_read": "It is #### 4",
        "level": 2, "id_as_read": 7, "accuracy": 0.5, "outcomes": ["right", "wrong"], "mean_tokens": 5.0,
        "truncated": 1,
    }  # fmt: skip


# ----------------------------------------------------------------------------- the command, on the scripted runtime


def problems(path: Path, count: int) -> Path:
    rows: list[dict[str, Any]] = [
        {"name": f"a{i}", "problem": p.question, "answer": p.answer, "operations": len(p.steps)}
        for i, p in enumerate(arithmetic.draw_problems(count, 7, 2, 4))
    ]
    rows += [
        {"name": "dup", "problem": rows[0]["problem"], "answer": rows[0]["answer"]},
        {"name": "none", "problem": "1"},
    ]
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


def arguments(data: Path | None, output: Path, *more: str) -> list[str]:
    given = ["--data", str(data), "task.mathematics.prompt='{question}'"] if data else []
    return [
        "filter", *given, "runtime=scripted", "rollout.max_tokens=300", "model.max_length=3000",
        "checkpoint.min_free_gib=0", f"output={output}", *more,
    ]  # fmt: skip


def call(data: Path | None, output: Path, *more: str) -> subprocess.CompletedProcess[str]:
    """In this process."""
    return nemo_tapo(*arguments(data, output, *more))


def start(data: Path, output: Path, *more: str) -> subprocess.Popen[str]:
    """In a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_tapo.cli", *arguments(data, output, *more)],
        stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for_lines(path: Path, count: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 60
    while process.poll() is None and time.monotonic() < deadline:
        if path.exists() and path.read_bytes().count(b"\n") > count:
            return
        time.sleep(0.001)
    assert process.poll() is None or path.exists(), process.communicate()[1]


def rows_of(output: Path, name: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (output / f"{name}.jsonl").read_text().splitlines()]


def results(output: Path) -> dict[str, bytes]:
    return {name: (output / f"{name}.jsonl").read_bytes() for name in FILES}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Path]:
    """(data, output) of an undisturbed filter."""
    folder = tmp_path_factory.mktemp("whole")
    data = problems(folder / "data.jsonl", 60)
    done = call(data, folder / "out", "task.mathematics.train.uid=name")
    assert done.returncode == 0, done.stderr
    assert "62 queries: " in done.stdout
    return data, folder / "out"


def test_counts_sum_up_and_rows_are_where_their_accuracy_says(whole: tuple[Path, Path]) -> None:
    data, output = whole
    summary = json.loads((output / "summary.json").read_text())
    rows = {name: rows_of(output, name) for name in FILES}
    assert summary["rows"] == 62 == sum(summary[name] for name in FILES)
    assert {name: summary[name] for name in FILES} == {name: len(found) for name, found in rows.items()}
    assert summary["failed_for"] == {"answer_missing": 1, "duplicate": 1}
    assert {row["id"]: row["reason"] for row in rows["failed"]} == {"dup": "duplicate", "none": "answer_missing"}
    originals = {row["name"]: row for row in map(json.loads, data.read_text().splitlines())}
    for name, inside in (("kept", range(1, 8)), ("too_easy", [8]), ("too_hard", [0])):
        assert rows[name]
        for row in rows[name]:
            assert row["outcomes"].count("right") in inside
            assert row["accuracy"] == row["outcomes"].count("right") / 8
            assert originals[row["id"]].items() <= row.items()
    order = list(originals)
    for name in FILES[:3]:  # as in the data
        assert [row["id"] for row in rows[name]] == sorted((row["id"] for row in rows[name]), key=order.index)
    # the scripted policy writes each sample by its own seed, so nothing but the samples themselves can say this:
    samples = rows_of(output, SAMPLES)
    assert len({(row["uid"], row["index"]) for row in samples}) == 60 * 8 == len(samples)
    assert Counter(row["outcome"] for row in samples) == summary["outcomes"]


def test_the_kept_file_is_a_training_set(whole: tuple[Path, Path]) -> None:
    _, output = whole
    summary = json.loads((output / "summary.json").read_text())
    assert summary["train_on_it"] == f"task.mathematics.train.path={output}/kept.jsonl task.mathematics.train.uid=id"
    cfg = load_config(output / "config.yaml", summary["train_on_it"].split())
    again = call(Path(str(cfg.task.mathematics.train.path)), output.parent / "again", "task.mathematics.train.uid=id")  # type: ignore[union-attr]
    assert again.returncode == 0, again.stderr
    assert json.loads((output.parent / "again" / "summary.json").read_text())["rows"] == summary["kept"]
    assert rows_of(output.parent / "again", "kept")[0]["operations"] in (2, 3, 4)


def test_sigkill_and_resume_give_the_same_files(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = whole
    samples = tmp_path / "out" / "samples" / "train.jsonl"
    one_by_one = ("task.mathematics.train.uid=name", "local.max_num_seqs=1")  # slower, so that it is killed on its way
    counts: list[int] = []
    for least in (20, 200):
        process = start(data, tmp_path / "out", *one_by_one)
        wait_for_lines(samples, least, process)
        process.send_signal(signal.SIGKILL)
        process.communicate()
        counts.append(samples.read_bytes().count(b"\n"))
    assert counts[0] < 60 * 8  # killed on its way indeed
    before = samples.read_bytes()
    done = call(data, tmp_path / "out", *one_by_one)
    assert done.returncode == 0, done.stderr
    assert results(tmp_path / "out") == results(output)
    assert samples.read_bytes().startswith(before[: before.rindex(b"\n") + 1])  # nothing was sampled twice


def test_other_bounds_sort_the_same_samples_anew(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = whole
    shutil.copytree(output / "samples", tmp_path / "out" / "samples")
    named = "task.mathematics.train.uid=name"
    done = call(data, tmp_path / "out", named, "filter.min_accuracy=0.25", "filter.max_accuracy=0.75")
    assert done.returncode == 0, done.stderr
    assert rows_of(tmp_path / "out", SAMPLES) == rows_of(output, SAMPLES)
    expected = [row["id"] for row in rows_of(output, "kept") if row["outcomes"].count("right") in range(2, 7)]
    assert [row["id"] for row in rows_of(tmp_path / "out", "kept")] == expected
    for change, what in (
        ("seed=1", "seed: 0 -> 1"),
        ("filter.top_p=0.9", "filter.top_p: 1.0 -> 0.9"),
        ("filter.keep_responses=true", "filter.keep_responses: false -> true"),
        ("model.path=assets/tiny-coldstart", "model.weights: "),
    ):
        refused = call(data, tmp_path / "out", named, change)
        assert refused.returncode == 2
        assert f"holds samples of other settings ({what}" in refused.stderr
    problems(tmp_path / "other.jsonl", 59)
    refused = call(tmp_path / "other.jsonl", tmp_path / "out", named)
    assert (refused.returncode, "settings (queries: " in refused.stderr) == (2, True)


def test_fewer_samples_are_the_first_and_more_go_on(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, output = whole
    shutil.copytree(output / "samples", tmp_path / "out" / "samples")
    named = "task.mathematics.train.uid=name"
    eight = {row["id"]: row["outcomes"] for name in FILES[:3] for row in rows_of(output, name)}
    for count in (4, 10):
        done = call(data, tmp_path / "out", named, f"filter.samples={count}")
        assert done.returncode == 0, done.stderr
        found = {row["id"]: row["outcomes"] for name in FILES[:3] for row in rows_of(tmp_path / "out", name)}
        assert all(len(found[uid]) == count and found[uid][:8] == eight[uid][:count] for uid in eight)
    assert len(rows_of(tmp_path / "out", SAMPLES)) == 60 * 10
    call(data, tmp_path / "ten", named, "filter.samples=10")
    assert results(tmp_path / "out") == results(tmp_path / "ten")


def test_many_responses_cut_off_and_nothing_kept_are_told(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = whole
    done = call(data, tmp_path, "rollout.max_tokens=4")
    assert (done.returncode, (tmp_path / "kept.jsonl").read_text()) == (0, "")
    assert "480 of 480 responses were cut off at 4 tokens" in done.stdout
    assert "no query was kept" in done.stdout and "to train on" not in done.stdout


def test_sigterm_keeps_the_samples(whole: tuple[Path, Path], tmp_path: Path) -> None:
    data, _ = whole
    samples = tmp_path / "out" / "samples" / "train.jsonl"
    process = start(data, tmp_path / "out", "local.max_num_seqs=1")
    wait_for_lines(samples, 3, process)
    process.send_signal(signal.SIGTERM)
    _, errors = process.communicate(timeout=60)
    assert process.returncode == 143, errors
    held = len(samples.read_text().splitlines())
    told = f"stopped by SIGTERM; {held} of 480 samples are in {samples.parent}. The same command goes on from there."
    assert told in errors


def test_the_generated_task_is_filtered_too(tmp_path: Path) -> None:
    done = call(None, tmp_path / "out", "task.arithmetic.train_queries=12", "filter.keep_responses=true")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert summary["rows"] == 12 == sum(summary[name] for name in FILES)
    assert "task.name=mathematics" in summary["train_on_it"]
    problem = rows_of(tmp_path / "out", "kept")[0]
    assert str(arithmetic.parse_question(problem["problem"]).answer) == problem["answer"]
    assert "\\boxed{" in rows_of(tmp_path / "out", SAMPLES)[0]["text"]


def test_bad_data_ends_before_anything_starts(tmp_path: Path) -> None:
    done = call(tmp_path / "nothing.jsonl", tmp_path / "out")
    assert (done.returncode, (tmp_path / "out").exists()) == (2, False)
    assert done.stderr == f"nemo-tapo: task.mathematics.train.path: no file {tmp_path / 'nothing.jsonl'}.\n"
