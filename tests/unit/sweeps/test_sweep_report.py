"""The report of a sweep: means, intervals and differences by hand, what is missing, the files, the pictures."""

from __future__ import annotations

import csv
import itertools
import json
from dataclasses import replace
from pathlib import Path
from statistics import mean, stdev

import numpy as np
import pytest

from nemo_tapo.cli import main
from nemo_tapo.commands.sweep import parse_request, save_definitions
from nemo_tapo.report import plots
from nemo_tapo.sweeps.expand import expand_sweeps
from nemo_tapo.sweeps.report.csv_file import format_csv
from nemo_tapo.sweeps.report.estimates import (
    compute_estimates,
    compute_seed_interval,
    estimate_difference,
    estimate_row,
    student_t_975,
)
from nemo_tapo.sweeps.report.read_runs import choose_sweeps, is_sweep_folder, read_sweep_results
from nemo_tapo.sweeps.report.table_figure import draw_table_figure, make_difference_heading
from nemo_tapo.sweeps.report.text_report import compute_row_estimates, format_percent_interval
from nemo_tapo.sweeps.report.training_effort import (
    compute_accuracy_at_step,
    compute_accuracy_at_tokens,
    compute_counters,
    compute_effort,
    count_common_tokens,
    find_common_budget,
)
from nemo_tapo.sweeps.report.write_report import write_sweep_report
from tests.helpers.sweep_samples import write_run

BASE = Path(__file__).parents[3] / "examples" / "configs" / "sweep-tiny-1n0g.yaml"
R, W, T, TW = "right", "wrong", "turned", "turned wrong"
# pass@1 of problems p, q, r by seed: cold start .5 0 1 | .5 .5 .5; TAPO 1 .5 1 | .5 1 1 | 1 1 1
COLD = [[[R, W], [W, W], [R, R]], [[R, W], [W, R], [W, R]]]
TAPO = [[[R, R], [R, W], [R, R]], [[W, R], [R, R], [R, R]], [[R, R], [R, R], [R, R]]]


def step(right: int, wrong: int, **more: float) -> dict[str, float]:
    counts = {"grade/right": right, "grade/wrong": wrong, "tokens/generated": 100, "tokens/trained": 90, "rows": 4}
    return {"loss": 0.1, **counts, **more}


@pytest.fixture
def output(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    for seed, kinds in enumerate(COLD):
        write_run(out, "coldstart", seed, kinds, name="before")
    for seed, kinds in enumerate(TAPO):
        pairs = {"tapo/pairs": 4, "tapo/groups": 2, "tokens/synthesised": 50, "time/step": 2.0}
        metrics = [step(1, 3, **pairs, **{"tapo/correct": 1, "tapo/mixed_groups": 2})] * 5
        metrics += [step(3, 1, **pairs, **{"tapo/correct": 3, "tapo/mixed_groups": 1})] * 5
        write_run(out, "tapo", seed, kinds, metrics)
    return out


def test_students_t() -> None:
    """Quantiles from any table; far out, from the normal."""
    assert [student_t_975(n) for n in (1, 2, 4, 30)] == [12.7062, 4.3027, 2.7764, 2.0423]
    assert student_t_975(40) == pytest.approx(2.0211, abs=1e-4)
    assert student_t_975(1000) == pytest.approx(1.9623, abs=1e-4)
    assert compute_seed_interval([0.4]) is None
    assert compute_seed_interval([0.4, 0.6]) == pytest.approx(
        (0.5 - 1.27062, 0.5 + 1.27062)
    )  # t(1) * sd / sqrt 2 = 12.7062 * 0.1


def test_means_and_intervals_by_hand(output: Path) -> None:
    [sweep] = choose_sweeps(output, ["table1"])
    cold, _, _, tapo = read_sweep_results(output, sweep).outcomes
    assert (cold.seeds, tapo.seeds) == ((0, 1), (0, 1, 2))
    [(benchmark, of)] = estimate_row(tapo).items()
    first = of["pass@1"]
    by_seed = [mean([1, 0.5, 1]), mean([0.5, 1, 1]), 1.0]
    assert benchmark == "arithmetic"
    assert first.by_seed == pytest.approx(by_seed)
    assert first.value == pytest.approx(mean(by_seed))
    half = 4.3027 * stdev(by_seed) / 3**0.5
    assert first.over_seeds == pytest.approx((mean(by_seed) - half, mean(by_seed) + half))
    # problems, seeds averaged: 5/6, 5/6, 1. All three draws the same problem: 1/27 each, more than 2.5%.
    assert first.over_problems == pytest.approx((5 / 6, 1.0))
    assert of["pass@2"].value == 1.0
    cold_first = estimate_row(cold)["arithmetic"]["pass@1"]
    assert (cold_first.value, cold_first.over_seeds) == (0.5, (0.5, 0.5))


def test_an_interval_of_percentages_ends_at_0_and_100() -> None:
    assert format_percent_interval((-0.05, 1.079)) == "0.00 to 100.00"
    assert format_percent_interval((-0.05, 0.2), signed=True) == "-5.00 to +20.00"
    assert format_percent_interval((-1.5, 0.123), signed=True, digits=1) == "-100.0 to +12.3"


def test_a_paired_difference_is_over_the_common_seeds(output: Path) -> None:
    [sweep] = choose_sweeps(output, ["table1"])
    cold, _, _, tapo = read_sweep_results(output, sweep).outcomes
    gain, common = estimate_difference(cold, tapo)
    assert common == (0, 1)
    d = gain["arithmetic"]["pass@1"]
    by_problem = np.array([[0.5, 0.5, 0.0], [0.0, 0.5, 0.5]])  # [seed, problem]
    assert d.by_seed == pytest.approx((1 / 3, 1 / 3))
    assert d.over_seeds == pytest.approx((1 / 3, 1 / 3))
    assert d.over_problems == pytest.approx((0.25, 0.5))
    # Every draw of two seeds and three problems, equally likely.
    draws = [
        by_problem[list(seeds)][:, list(problems)].mean()
        for seeds in itertools.product(range(2), repeat=2)
        for problems in itertools.product(range(3), repeat=3)
    ]
    exact = np.percentile(draws, [2.5, 97.5])
    assert d.over_both == pytest.approx(tuple(exact))


def test_the_average_of_benchmarks_gives_each_the_same_weight() -> None:
    """One of a single problem, one of three; two seeds."""
    sets = {"a": np.array([[[1.0]], [[0.0]]]), "b": np.array([[[1.0], [0.0], [0.0]], [[1.0], [1.0], [1.0]]])}
    found = compute_estimates(sets, ["pass@1"])
    assert {name: of["pass@1"].value for name, of in found.items()} == pytest.approx(
        {"a": 1 / 2, "b": 2 / 3, "average": 7 / 12}
    )
    assert found["average"]["pass@1"].by_seed == pytest.approx((2 / 3, 1 / 2))


def test_a_row_is_compared_with_the_row_above_or_the_first(output: Path) -> None:
    write_run(output, "grpo", 0, COLD[0])
    [sweep] = choose_sweeps(output, ["table1"])
    above = compute_row_estimates(read_sweep_results(output, sweep))
    assert [n.baseline.row.name if n.baseline else None for n in above] == [None, "coldstart", "coldstart", "grpo"]
    assert [bool(n.gain) for n in above] == [False, False, True, True]  # opsd has no run, and grpo looks past it
    first = compute_row_estimates(read_sweep_results(output, sweep.model_copy(update={"against": "first"})))
    assert [n.baseline.row.name if n.baseline else None for n in first] == [None, "coldstart", "coldstart", "coldstart"]
    assert first[2].gain["arithmetic"]["pass@1"].value == 0.0
    assert (first[3].common_seeds, above[3].common_seeds) == ((0, 1), (0,))


def test_compute_and_counters_by_hand(output: Path) -> None:
    [sweep] = choose_sweeps(output, ["table1"])
    cold, _, _, tapo = read_sweep_results(output, sweep).outcomes
    spent = compute_effort(tapo)
    assert (spent.steps, spent.sampled, spent.synthesised, spent.trained) == (10, 1000, 500, 900)
    assert (spent.rows, spent.seconds) == (40, 20)
    assert compute_effort(cold).steps is None
    told = compute_counters(tapo)
    assert (told.correct, told.mixed, told.accuracy) == ((0.25, 0.75), (1.0, 0.5), (0.25, 0.75))
    assert (told.reflection, told.tokens) == (0.0, 10.0)
    assert count_common_tokens(tapo) == 1500
    # A step samples 150 tokens: 800 are reached in the sixth step, 5 are whole; the tenth before that is one step.
    assert [compute_accuracy_at_tokens(tapo, tokens) for tokens in (800, 900, 1500)] == [0.25, 0.75, 0.75]
    assert [compute_accuracy_at_step(tapo, steps) for steps in (5, 6)] == [0.25, 0.75]


def test_what_does_not_count_is_named(output: Path) -> None:
    """Failed, half-way, not started, evaluated otherwise, trained otherwise, damaged."""
    failed = output / "tapo" / "seed-3"
    failed.mkdir()
    (failed / "failed.json").write_text('{"code": 3, "reason": "the engine was lost"}')
    half = write_run(output, "tapo", 4, TAPO[0], [step(1, 1)] * 7)
    (half / "evaluation.json").unlink()
    (output / "tapo" / "seed-5").mkdir()
    other = write_run(output, "tapo", 6, TAPO[0])
    settings = json.loads((other / "evaluation" / "after" / "settings.json").read_text())
    settings["evaluation"]["temperature"] = 1.0
    (other / "evaluation" / "after" / "settings.json").write_text(json.dumps(settings))
    write_run(output, "tapo", 7, TAPO[0], steps=17)
    damaged = write_run(output, "tapo", 8, TAPO[0])
    (damaged / "evaluation" / "after" / "arithmetic.jsonl").write_text("{}\n")
    write_run(output, "tapo", 9, TAPO[0][:2])
    [sweep] = choose_sweeps(output, ["table1"])
    found = read_sweep_results(output, sweep)
    assert found.outcomes[-1].seeds == (0, 1, 2)
    why_not = {run.seed: run.missing for run in found.excluded}
    assert why_not[3] == "failed with exit code 3: the engine was lost"
    assert why_not[4] == "half-way: 7 of 100 steps"
    assert why_not[5] == "not started"
    assert "evaluation.temperature: 0.6 -> 1.0" in why_not[6]
    assert "(steps: 100 -> 17)" in why_not[7]
    assert "is no sample" in why_not[8]
    assert "1 only in the first" in why_not[9]
    assert sorted(why_not) == [3, 4, 5, 6, 7, 8, 9]
    text = write_sweep_report(output, ["table1"])
    for place, reason in why_not.items():
        assert f"{output / 'tapo' / f'seed-{place}'}: does not count: {reason}" in text
    assert "“Cold-start + GRPO”: no run that counts." in text
    assert ".." not in text


def test_seeds_that_differ_are_told(output: Path) -> None:
    text = write_sweep_report(output, ["table4"])
    assert "no run that counts" in text
    [sweep] = choose_sweeps(output, ["table4"])
    bare = sweep.model_copy(update={"rows": tuple(row for row in sweep.rows if row.name in ("coldstart", "tapo"))})
    from nemo_tapo.sweeps.report.text_report import make_notes

    found = read_sweep_results(output, bare)
    assert make_notes(found, compute_row_estimates(found)) == [
        "“+ TAPO” has seeds 0, 1, 2, “Cold-start” has seeds 0, 1: the difference is over seeds 0, 1."
    ]


def test_dsr_and_err_by_hand(tmp_path: Path) -> None:
    """Of the first problem both rows are partly right, of the second one of them always, of the third neither ever.

    GRPO on the first: two right without reflection, two wrong: DSR 2/2, ERR over nothing. TAPO: one right without, one
    turned and right, one turned and wrong, one wrong: DSR 1/2, ERR 1/2. The other seed, nothing without: 0 and 2/3.
    """
    grpo = [[R, W, R, W], [R, R, R, R], [W, W, W, W]]
    for seed, first in enumerate(([R, T, TW, W], [T, TW, T, W])):
        write_run(tmp_path, "grpo", seed, grpo)
        write_run(tmp_path, "tapo", seed, [first, [R, W, W, W], [W, W, W, W]])
    text = write_sweep_report(tmp_path, ["table2"])
    rows = csv_of(tmp_path / "report" / "table2.csv")
    dsr, err = rows["tapo", "", "DSR"], rows["tapo", "", "ERR"]
    assert (rows["grpo", "", "DSR"]["mean"], rows["grpo", "", "DSR"]["seeds"]) == ("1.0", "0 1")
    assert (rows["grpo", "", "ERR"]["mean"], rows["grpo", "", "ERR"]["seeds"]) == ("", "")  # over no response
    assert [float(dsr[name]) for name in ("mean", "difference")] == [0.25, -0.75]
    assert float(dsr["seeds_high"]) == pytest.approx(0.25 + 12.7062 * 0.25)  # t(1) * sd / sqrt 2; sd = 0.5 / sqrt 2
    assert float(dsr["difference_seeds_low"]) == pytest.approx(-0.75 - 12.7062 * 0.25)
    assert (dsr["from"], dsr["difference_seeds"]) == ("grpo", "0 1")
    assert float(err["mean"]) == pytest.approx(7 / 12)
    assert (err["difference"], err["difference_seeds"]) == ("", "")
    lines = {line.split("  ")[0]: line for line in text[text.index("DSR and ERR") :].splitlines()}
    assert "100.0 (100.0 to 100.0), 2 seeds" in lines["Cold-start + GRPO"]
    assert "not defined" in lines["Cold-start + GRPO"]
    assert "25.0" in lines["Cold-start + TAPO"]
    assert "58.3" in lines["Cold-start + TAPO"]
    assert "-75.0" in lines["Δ"]
    assert "+13.5" not in lines["Cold-start + TAPO"]
    assert "seed 0: arithmetic: 1 kept, 1 Cold-start + GRPO always right, 1 Cold-start + GRPO never right" in text


def csv_of(path: Path) -> dict[tuple[str, str, str], dict[str, str]]:
    """{(row, benchmark, measure): line}."""
    with path.open() as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    found = {(row["row"], row["benchmark"], row["measure"]): row for row in rows}
    assert len(found) == len(rows)
    return found


def test_the_csv_has_every_table_and_every_row(output: Path) -> None:
    """A row without a run too, with empty numbers and the paper's; what is spent and counted as the report shows it."""
    write_sweep_report(output, ["table1"])
    rows = csv_of(output / "report" / "table1.csv")
    assert {row for row, _, _ in rows} == {"coldstart", "opsd", "grpo", "tapo"}
    bare = rows["opsd", "arithmetic", "pass@1"]
    assert (bare["label"], bare["seeds"], bare["mean"], bare["difference"]) == ("Cold-start + OPSD", "", "", "")
    assert bare["paper_AIME2024_percent"] == "57.71"
    told = {measure: row["mean"] for (row, benchmark, measure), row in named(rows, "tapo") if benchmark == ""}
    assert {name: float(value) for name, value in told.items()} == {
        "steps": 10, "sampled": 1000, "synthesised": 500, "trained": 900, "rows": 40, "seconds": 20,
        "accuracy_at_equal_steps": 0.75, "accuracy_at_equal_tokens": 0.75, "constructions_right_first": 0.25,
        "constructions_right_last": 0.75, "mixed_groups_first": 1, "mixed_groups_last": 0.5,
        "training_accuracy_first": 0.25, "training_accuracy_last": 0.75, "with_reflection": 0, "response_tokens": 10,
    }  # fmt: skip
    assert {measure for (_, benchmark, measure), _ in named(rows, "coldstart") if benchmark == ""} == {
        "with_reflection", "response_tokens",
    }  # fmt: skip


def test_a_label_is_no_formula(output: Path) -> None:
    results = read_sweep_results(output, choose_sweeps(output, ["table1"])[0])
    tapo = next(n for n in compute_row_estimates(results) if n.outcome.row.name == "tapo")
    row = tapo.outcome.row.model_copy(update={"label": '=HYPERLINK("http://elsewhere")'})
    text = format_csv(results, [replace(tapo, outcome=replace(tapo.outcome, row=row))], [])
    labels = {line["label"] for line in csv.DictReader(text.splitlines())}
    assert labels == {'\'=HYPERLINK("http://elsewhere")'}


def named(
    rows: dict[tuple[str, str, str], dict[str, str]], name: str
) -> list[tuple[tuple[str, str, str], dict[str, str]]]:
    return [(key, row) for key, row in rows.items() if key[0] == name]


def test_equal_tokens_are_those_that_every_run_has(tmp_path: Path) -> None:
    """GRPO's seeds sample 300 and 700 tokens: 300, not their mean of 500, which the first never comes to."""
    write_run(tmp_path, "grpo", 0, COLD[0], [step(1, 3)] * 2 + [step(3, 1)])
    write_run(tmp_path, "grpo", 1, COLD[0], [step(1, 3)] * 3 + [step(3, 1)] * 4)
    write_run(tmp_path, "tapo", 0, COLD[0], [step(2, 2)] * 2 + [step(4, 0)] * 7)
    [sweep] = choose_sweeps(tmp_path, ["table2"])
    grpo, tapo = read_sweep_results(tmp_path, sweep).outcomes
    assert (count_common_tokens(grpo), count_common_tokens(tapo)) == (300, 900)
    assert find_common_budget([grpo, tapo]) == (3, 300)
    write_sweep_report(tmp_path, ["table2"])
    rows = csv_of(tmp_path / "report" / "table2.csv")
    assert float(rows["grpo", "", "accuracy_at_equal_tokens"]["mean"]) == mean([0.75, 0.25])  # of the third steps
    assert float(rows["tapo", "", "accuracy_at_equal_tokens"]["mean"]) == 1.0
    assert "as the cheapest run of all samples" in (tmp_path / "report" / "table2.md").read_text()


def test_swept_values_are_compared_within_themselves(tmp_path: Path) -> None:
    """All rows of a value before those of the next; each difference and Table 2 within a value."""
    kinds = [[R, W, T, W], [R, R, W, W]]
    expanded = expand_sweeps(parse_request(["table2", "steps=3,4", f"output={tmp_path}"], BASE))
    save_definitions(tmp_path, expanded)
    for job in expanded.jobs:
        write_run(tmp_path, job.row.name, 0, kinds, [step(1, 1)] * 3)
    [sweep] = choose_sweeps(tmp_path)
    found = read_sweep_results(tmp_path, sweep)
    for against in ("above", "first"):
        numbers = compute_row_estimates(replace(found, sweep=sweep.model_copy(update={"against": against})))
        assert [(n.outcome.row.name, n.baseline.row.name if n.baseline else None) for n in numbers] == [
            ("grpo--steps-3", None), ("tapo--steps-3", "grpo--steps-3"),
            ("grpo--steps-4", None), ("tapo--steps-4", "grpo--steps-4"),
        ]  # fmt: skip
    text = write_sweep_report(tmp_path)
    assert "DSR and ERR (Table 2), steps-3" in text
    assert "DSR and ERR (Table 2), steps-4" in text
    rows = csv_of(tmp_path / "report" / "table2.csv")
    assert rows["tapo--steps-4", "", "DSR"]["from"] == "grpo--steps-4"


def test_the_papers_figures_stand_beside_swept_values(tmp_path: Path) -> None:
    expanded = expand_sweeps(parse_request(["table4", "optimizer.lr=1e-4,3e-4", f"output={tmp_path}"], BASE))
    save_definitions(tmp_path, expanded)
    write_run(tmp_path, "tapo--optimizer.lr-0.0003", 0, TAPO[0])
    write_sweep_report(tmp_path)
    text = (tmp_path / "report" / "table4.md").read_text()
    assert "| + TAPO, optimizer.lr=0.0003 | 1 | 83.33 | 100.00 | 62.50 | 80.21 |" in text
    rows = csv_of(tmp_path / "report" / "table4.csv")
    assert rows["no-ots--optimizer.lr-0.0001", "arithmetic", "pass@1"]["paper_AIME2024_percent"] == "57.29"


def test_the_pictures_heading_says_what_the_differences_are_to(output: Path) -> None:
    write_run(output, "grpo", 0, COLD[0])
    [sweep] = choose_sweeps(output, ["conditions"])
    a, b, c = read_sweep_results(output, sweep).outcomes
    assert make_difference_heading([a, b, c], [None, a, b]) == "minus the row above"
    assert make_difference_heading([a, b], [None, a]) == "minus the row above"
    assert make_difference_heading([a, b, c], [None, a, a]) == "minus Cold start"
    assert (
        make_difference_heading([a, c], [None, b]) == "minus GRPO"
    )  # which has nothing of this benchmark and is not shown
    assert make_difference_heading([a, b, c, b], [None, a, a, c]) == "minus the row named"
    for against in ("above", "first"):
        numbers = compute_row_estimates(read_sweep_results(output, sweep.model_copy(update={"against": against})))
        draw_table_figure("x", [numbers[0], *reversed(numbers)], "arithmetic", output / f"{against}.png")
        assert (output / f"{against}.png").read_bytes()[:4] == b"\x89PNG"


def test_files_and_terminal(output: Path, capfd: pytest.CaptureFixture[str]) -> None:
    assert is_sweep_folder(output)
    assert main(["report", str(output), "--table", "table1"]) == 0
    printed = capfd.readouterr().out
    assert "88.89 ± 23.90" in printed
    assert "+33.33" in printed
    assert "62.50" in printed  # the paper's, beside
    report = output / "report"
    assert {path.name for path in report.iterdir()} == {"table1.md", "table1.csv", "table1.png", "table1-figure3.png"}
    for picture in report.glob("*.png"):
        assert picture.read_bytes()[:8] == b"\x89PNG\r\n\x1a\n"
    text = (report / "table1.md").read_text()
    assert (
        "| Cold-start + TAPO | 3 | 88.89 ± 23.90 | 100.00 ± 0.00 | 62.50 | 80.21 | 46.88 | 67.92 | 31.46 | 50.00 |"
        in text
    )
    with (report / "table1.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert all(None not in row and None not in row.values() for row in rows)
    [tapo] = [row for row in rows if (row["row"], row["measure"]) == ("tapo", "pass@1")]
    assert float(tapo["mean"]) == pytest.approx(8 / 9)
    assert (tapo["from"], tapo["difference_seeds"]) == ("coldstart", "0 1")
    assert float(tapo["difference"]) == pytest.approx(1 / 3)
    assert (tapo["seeds"], tapo["paper_AIME2024_percent"]) == ("0 1 2", "62.5")
    [tokens] = [row for row in rows if (row["row"], row["measure"]) == ("tapo", "trained")]
    assert float(tokens["mean"]) == 900


def test_a_name_that_there_is_not_and_a_folder_without_rows(tmp_path: Path, output: Path) -> None:
    with pytest.raises(ValueError, match="no sweep 'tabel4'; did you mean 'table4'"):
        write_sweep_report(output, ["tabel4"])
    (tmp_path / "x" / "mine" / "seed-0").mkdir(parents=True)
    with pytest.raises(ValueError, match="has rows of no sweep"):
        write_sweep_report(tmp_path / "x")
    assert main(["report", str(tmp_path), "--table", "table4"]) == 2  # a folder of no sweep
    run = write_run(tmp_path, "a", 0, TAPO[0], [step(1, 1)])
    assert not is_sweep_folder(run)


def test_the_band_over_seeds_by_hand() -> None:
    """Steps that all seeds have; the mean, the lowest and the highest."""
    one = [{"step": 1, "loss": 1.0, "reward/mean": 0.5}, {"step": 2, "loss": 3.0}]
    two = [{"step": 1, "loss": 2.0}, {"step": 2, "loss": 5.0}, {"step": 3, "loss": 9.0}]
    assert plots.merge_seeds([one, two]) == [
        {"step": 1, "loss": 1.5, "loss/low": 1.0, "loss/high": 2.0},
        {"step": 2, "loss": 4.0, "loss/low": 3.0, "loss/high": 5.0},
    ]
    assert plots.merge_seeds([one])[0] == {"step": 1, "loss": 1.0, "reward/mean": 0.5}
    assert plots.merge_seeds([]) == []
