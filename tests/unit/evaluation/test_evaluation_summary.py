"""Summaries and comparisons of evaluations, by hand."""

from __future__ import annotations

import asyncio
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest

from nemo_tapo.evaluation.accuracy import canonicalise_answer, collect_samples, measure_change, summarise
from nemo_tapo.evaluation.benchmarks import evaluate
from nemo_tapo.evaluation.compare import compare_evaluations
from nemo_tapo.evaluation.results import format_markdown, read_evaluation
from nemo_tapo.evaluation.sample_store import get_evaluation_folder, read_selected
from nemo_tapo.evaluation.tables import format_tables, make_tables
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.types import Grade, Query
from nemo_tapo.utils.jsonl import encode_line
from nemo_tapo.utils.signals import Stop
from tests.helpers.evaluation_samples import Slow, a_sample, config, problems, sampled, target


def test_a_summary_by_hand() -> None:
    """Two problems x two runs x two samples."""
    rows = [
        a_sample("p", 0, 0, 1.0, text="Wait, no"), a_sample("p", 0, 1, tokens=20),
        a_sample("p", 1, 0, outcome="timeout"), a_sample("p", 1, 1, 1.0),
        a_sample("q", 0, 0, outcome="no_answer", answer=None, truncated=True), a_sample("q", 0, 1),
        a_sample("q", 1, 0), a_sample("q", 1, 1, outcome="error"),
    ]  # fmt: skip
    found = summarise(collect_samples("b", rows, runs=2, n=2, problems=2))
    assert found["pass@1"] == found["avg@2"] == 0.25
    assert found["pass@2"] == 0.5
    assert found["first@1"] == 0.25  # right at once: p in run 0, not in run 1; q never
    assert found["first@2"] == 0.5
    assert found["maj@2"] == 0.25  # p: one right and one wrong vote in each run; q: wrong wherever somebody votes
    assert found["pass@1/interval95"] == [0.0, 0.5]  # q twice, or p twice
    assert found["response_length/mean"] == 90 / 8
    assert found["truncated"] == found["no_answer"] == found["with_reflection"] == 1 / 8
    assert found["outcomes"] == {"error": 1, "no_answer": 1, "right": 2, "timeout": 1, "wrong": 3}
    assert (found["problems"], found["responses"]) == (2, 8)
    assert sum(found["outcomes"].values()) == found["responses"]


def test_lengths_that_a_server_does_not_tell_are_not_zero() -> None:
    rows = [a_sample("p", 0, 0, tokens=0), a_sample("p", 0, 1, tokens=0)]
    assert summarise(collect_samples("b", rows, 1, 2, 1))["response_length/mean"] is None
    assert "mean tokens" in format_tables({"x": {"benchmarks": {"b": summarise(collect_samples("b", rows, 1, 2, 1))}}})


def test_missing_samples_are_an_error_and_repeated_ones_count_once() -> None:
    rows = [a_sample("p", 0, 0), a_sample("p", 0, 1, 1.0)]
    with pytest.raises(ValueError, match="b: 2 of 2 problems x 1 runs x 2 samples"):
        collect_samples("b", rows, 1, 2, 2)
    with pytest.raises(ValueError, match="b: 2 of 1 problems x 1 runs x 2 samples"):
        collect_samples("b", [rows[0], a_sample("q", 0, 1)], 1, 2, 1)  # as many as there should be, but of two problems
    again = collect_samples("b", [*rows, a_sample("p", 0, 1, 0.0), a_sample("p", 1, 0), a_sample("p", 0, 2)], 1, 2, 1)
    assert again.right.tolist() == [[[False, True]]]


def test_an_evaluation_s_own_samples_are_read_each_once_and_the_first_counts(tmp_path: Path) -> None:
    """Later runs, later samples and repetitions stay in the files; so does what comes of a benchmark not named."""
    rows = [a_sample("p", 0, 0, text="first"), a_sample("p", 1, 0, text="second run"), a_sample("p", 0, 1, text="more")]
    rows += [a_sample("p", 0, 0, 1.0, text="again")]
    for name in ("a/b", "c"):
        (tmp_path / f"{quote(name, safe='')}.jsonl").write_bytes(b"".join(encode_line(asdict(row)) for row in rows))

    def texts(runs: int, n: int) -> list[str]:
        settings = {"runs": runs, "samples": n, "benchmarks": {"a/b": {"problems": 1}}}
        return [sample.text for sample in read_selected(tmp_path, settings)]

    assert texts(1, 1) == ["first"]
    assert texts(2, 1) == ["first", "second run"]
    assert texts(1, 2) == ["first", "more"]
    with pytest.raises(
        ValueError, match=r"a%2Fb\.jsonl holds 3 of 1 problems x 2 runs x 2 samples: run the evaluation"
    ):
        texts(2, 2)


@pytest.mark.parametrize(
    ("one", "other", "same"),
    [
        ("5", " $5.0$ ", True), ("1,000", "1000", True), ("073", "73", True), ("x+1", "x + 1", True),
        ("\\frac{1}{2}", "\\dfrac{1}{2}", True), ("5", "-5", False), ("1/2", "0.25", False), ("{" * 10**5, "{", False),
    ],
)  # fmt: skip
def test_equal_answers_vote_together(one: str, other: str, same: bool) -> None:
    assert (canonicalise_answer(one) == canonicalise_answer(other)) is same


def test_a_vote_joins_answers_that_are_the_same() -> None:
    """5, 5.0 and 05 outvote two right ones; all ways of writing the right one are one answer."""
    wrong = [a_sample("p", 0, i, answer=a) for i, a in enumerate(["5", "5.0", "05"])]
    right = [a_sample("p", 0, 3 + i, 1.0, answer=a) for i, a in enumerate(["1/2", "0.5"])]
    assert summarise(collect_samples("b", wrong + right, 1, 5, 1))["maj@5"] == 0.0
    more = [replace(wrong[0], outcome="right", reward=1.0, answer="\\frac12"), *wrong[1:], *right]
    assert summarise(collect_samples("b", more, 1, 5, 1))["maj@5"] == 1.0


def grid(rewards: dict[str, list[list[float]]], benchmark: str = "b") -> Any:
    """{uid: [runs][samples]} as GradedSamples."""
    rows = [
        replace(a_sample(uid, run, i, reward), benchmark=benchmark)
        for uid, runs in rewards.items()
        for run, samples in enumerate(runs)
        for i, reward in enumerate(samples)
    ]
    first = next(iter(rewards.values()))
    return collect_samples(benchmark, rows, len(first), len(first[0]), len(rewards))


def test_a_paired_difference_by_hand() -> None:
    before = grid({"p": [[0, 0]], "q": [[1, 0]], "r": [[1, 1]]})
    after = grid({"r": [[1, 0]], "p": [[1, 1]], "q": [[0, 1]]})  # problems are matched by name, not by place
    found = measure_change([before], [after])["benchmarks"]["b"]
    assert found["pass@1"] == pytest.approx((1 + 0 - 0.5) / 3)
    assert found["first@1"] == pytest.approx((1 - 1 + 0) / 3)
    assert found["pass@2"] == pytest.approx((1 + 0 + 0) / 3)
    assert found["problems"] == {"better": 1, "worse": 1, "equal": 1}
    low, high = found["pass@1/interval95"]
    assert low == pytest.approx(-0.5, abs=0.17)
    assert high == pytest.approx(1.0, abs=0.17)
    nothing = measure_change([before], [before])["benchmarks"]["b"]
    assert nothing["pass@1/interval95"] == [0.0, 0.0]
    assert nothing["problems"] == {"better": 0, "worse": 0, "equal": 3}


def test_a_difference_needs_the_same_problems() -> None:
    one, two = grid({"p": [[0, 0]], "q": [[1, 0]], "s": [[1, 0]]}), grid({"p": [[0, 0]], "r": [[1, 0]]})
    with pytest.raises(ValueError, match="b: 2 only in the first, 1 only in the second"):
        measure_change([one], [two])
    with pytest.raises(ValueError, match="the benchmarks differ: b and c"):
        measure_change([one], [grid({"p": [[0, 0]]}, "c")])


def test_several_benchmarks_have_an_average_in_which_each_counts_the_same(tmp_path: Path) -> None:
    sets = {"a": problems(2), "b": problems(6)}
    summary = sampled(config(tmp_path), benchmarks=sets)[0].summary
    parts = [summary["benchmarks"][name] for name in sets]
    for key in ("pass@1", "first@3", "maj@5"):
        assert summary["average"][key] == pytest.approx((parts[0][key] + parts[1][key]) / 2)
    assert parts[0]["pass@1"] != parts[1]["pass@1"]
    low, high = summary["average"]["pass@1/interval95"]
    assert low < summary["average"]["pass@1"] < high


def test_a_single_evaluation_of_several_benchmarks_shows_its_synthesis(tmp_path: Path) -> None:
    summary = sampled(config(tmp_path), benchmarks={"a": problems(2), "b": problems(3)})[0].summary
    counts = {"pairs": 8, "parsed": 6, "correct": 4, "groups": 5, "mixed_groups": 1}
    tables = make_tables({"mine": {**summary, "synthesis": counts}})
    assert [(table.title, table.head) for table in tables] == [
        ("mine", ["a", "b", "average"]),
        ("synthesis on held-out queries", ["mine"]),
    ]
    assert [row[1] for row in tables[1].rows] == ["75.0% (6/8)", "50.0% (4/8)", "20.0% (1/5)"]
    assert [table.title for table in make_tables({"mine": summary})] == ["mine"]


def test_markdown_rows_are_those_of_table_1(tmp_path: Path) -> None:
    evaluated, _ = sampled(config(tmp_path), benchmarks={"aime|24": problems(3), "b": problems(4)})
    settings = {"samples": 5, "runs": 2, "temperature": 0.6, "top_p": 0.9, "max_tokens": 300, "seed": 0}
    text = format_markdown({"my model": {"settings": settings, **evaluated.summary}})
    table = [line for line in text.splitlines() if line.startswith("|")]
    assert table[0] == "| Method | Pass@1 | Pass@2 | Pass@3 | Pass@4 | Pass@5 |"
    assert table[2] == "| **aime\\|24** |" + " |" * 5
    assert [row.split(" | ")[0] for row in table[3:5]] == ["| my model", "| my model, unbiased"]
    first = evaluated.summary["benchmarks"]["aime|24"]["first@1"]
    assert table[3].startswith(f"| my model | {100 * first:.2f} (")
    assert all(row.replace("\\|", "").count("|") == 7 for row in table)
    assert len(table) == 2 + 3 * 3  # two benchmarks and their average


# ------------------------------------------------------------------------------------------------ comparing


def two_runs(tmp_path: Path, **settings: Any) -> tuple[Path, Path]:
    sampled(config(tmp_path / "a"))
    sampled(config(tmp_path / "b", **settings), benchmarks=settings.pop("benchmarks", None))
    return tmp_path / "a", tmp_path / "b"


def test_compare_prints_both_and_their_difference(tmp_path: Path) -> None:
    sampled(config(tmp_path / "a"))
    other = config(tmp_path / "b", runs=3).model_copy(update={"seed": 5})
    sampled(other)
    text = compare_evaluations(tmp_path / "a", tmp_path / "b", width=120)
    one, two = (
        read_evaluation(get_evaluation_folder(tmp_path / run, "x")).summary["benchmarks"]["arithmetic"] for run in "ab"
    )
    row = next(line for line in text.splitlines() if line.startswith("pass@1"))
    assert f"{one['pass@1']:.1%}" in row
    assert f"{two['pass@1']:.1%}" in row
    assert f"{100 * (two['pass@1'] - one['pass@1']):+.1f} (" in row
    assert row.rstrip().endswith(("yes", "no"))
    assert "a: x" in text
    assert "b: x" in text
    assert "excludes 0" in text


def test_a_clear_difference_is_called_one(tmp_path: Path) -> None:
    """A verifier that takes everything against one that takes nothing, on the same problems."""
    for name, reward in (("a", 0.0), ("b", 1.0)):

        async def verify(query: Query, text: str, reward: float = reward) -> Grade:
            return Grade(reward, "right" if reward else "wrong", "1")

        cfg = config(tmp_path / name)
        work = evaluate(cfg, target(), Slow(3, 0, lambda: None), verify, Progress(), Stop())
        asyncio.run(work)
    text = compare_evaluations(tmp_path / "a", tmp_path / "b", width=120)
    assert "the interval of the difference excludes 0 for pass@1, pass@2" in text
    assert "6 / 0" in text
    assert "every interval of a difference holds 0" in compare_evaluations(tmp_path / "a", tmp_path / "a", width=120)


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        ({"temperature": 1.0}, r"evaluation\.temperature: 0\.6 -> 1\.0"),
        ({"samples": 4}, r"evaluation\.samples: 5 -> 4"),
    ],
)
def test_other_settings_cannot_be_compared(tmp_path: Path, settings: dict[str, Any], sentence: str) -> None:
    a, b = two_runs(tmp_path, **settings)
    with pytest.raises(ValueError, match=sentence):
        compare_evaluations(a, b)


def test_other_problems_cannot_be_compared(tmp_path: Path) -> None:
    sampled(config(tmp_path / "a"))
    sampled(config(tmp_path / "b"), benchmarks={"arithmetic": problems(4)})
    sampled(config(tmp_path / "c"), benchmarks={"arithmetic": [replace(q, question="1+1=?") for q in problems()]})
    with pytest.raises(ValueError, match="arithmetic: 2 only in the first, 0 only in the second"):
        compare_evaluations(tmp_path / "a", tmp_path / "b")
    with pytest.raises(ValueError, match="arithmetic: the problems have the same names but other questions"):
        compare_evaluations(tmp_path / "a", tmp_path / "c")


def test_which_evaluation_a_folder_means(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="holds no evaluation"):
        compare_evaluations(tmp_path, tmp_path)
    cfg = config(tmp_path)
    for name in ("one", "two"):
        sampled(cfg, name)
    with pytest.raises(ValueError, match="holds several evaluations; name one of"):
        compare_evaluations(tmp_path, tmp_path)
    assert "one" in compare_evaluations(tmp_path / "evaluation" / "one", tmp_path / "evaluation" / "two")
    sampled(cfg, "after")
    assert "after" in compare_evaluations(tmp_path, tmp_path / "evaluation" / "one")
