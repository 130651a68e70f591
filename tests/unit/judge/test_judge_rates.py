"""DSR, ERR, boundary subset, kappa and the oracle against numbers worked by hand; the command on real folders."""

from __future__ import annotations

import hashlib
import json
import math
import random
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.cli import main
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.judge import oracle
from nemo_tapo.judge.agreement import compute_kappa, measure_agreement, read_labels
from nemo_tapo.judge.rate_table import find_paper_column, format_markdown_table, make_rows
from nemo_tapo.judge.rates import (
    Counts,
    Difference,
    JudgedResponse,
    Rate,
    count_by_problem,
    estimate_difference,
    estimate_rate,
)
from nemo_tapo.judge.responses import ModelResponses, find_boundary, read_responses
from nemo_tapo.judge.verdict import Verdict
from nemo_tapo.tasks.arithmetic import get_held_out_problems, write_correction, write_solution
from tests.helpers.endpoint_servers import Answer, completion, free_port, scripted

DIRECT = Verdict(False, False, False, False, True)
DOUBTED = Verdict(True, False, False, False, True)  # doubt that ended in "it was right"
CORRECTED = Verdict(True, True, False, False, True)
LOCATED = Verdict(True, True, True, False, True)
EFFECTIVE = Verdict(True, True, True, True, True)


# -------------------------------------------------------------------------------- rates


def test_dsr_and_err_of_a_case_worked_by_hand() -> None:
    marked = [
        JudgedResponse("p", True, DIRECT),  # DSR: 1 of 4 right ones
        JudgedResponse("p", False, DIRECT),  # wrong: in neither
        JudgedResponse("p", True, DOUBTED),  # right, not direct; no correction: not in ERR
        JudgedResponse("q", True, EFFECTIVE),  # ERR: 1 of 4
        JudgedResponse("q", False, EFFECTIVE),  # right diagnosis, wrong answer
        JudgedResponse("q", True, LOCATED),
        JudgedResponse("q", False, CORRECTED),
    ]
    assert count_by_problem(marked, "DSR") == {"p": (1, 2), "q": (0, 2)}
    assert count_by_problem(marked, "ERR") == {"p": (0, 0), "q": (1, 4)}
    assert estimate_rate(count_by_problem(marked, "DSR"), "x").value == 1 / 4
    assert estimate_rate(count_by_problem(marked, "ERR"), "x").value == 1 / 4


def test_right_is_what_the_verifier_says_not_the_judge() -> None:
    thinks_right = Verdict(True, True, True, True, answer_right=True)
    thinks_wrong = Verdict(False, False, False, False, answer_right=False)
    assert count_by_problem([JudgedResponse("p", False, thinks_right)], "ERR") == {"p": (0, 1)}
    assert count_by_problem([JudgedResponse("p", True, thinks_wrong)], "DSR") == {"p": (1, 1)}


def test_a_rate_over_nothing_is_not_defined() -> None:
    assert estimate_rate({}, "x") == estimate_rate({"p": (0, 0), "q": (0, 0)}, "x") == Rate(None, 0, 0, None)
    assert estimate_difference({"p": (0, 0)}, {"p": (1, 2)}, "x") == Difference(None, None)
    assert estimate_rate({"p": (0, 3)}, "x") == Rate(0.0, 0, 3, None)  # a 0 that is one; one problem has no spread


def test_the_interval_is_that_of_a_plain_bootstrap_over_problems() -> None:
    rng = random.Random(1)
    by_problem: Counts = {}
    for i in range(25):
        d = rng.randint(1, 10)
        by_problem[str(i)] = (rng.randint(0, d), d)
    drawn = []
    for _ in range(4000):
        chosen = [by_problem[str(rng.randrange(25))] for _ in range(25)]
        drawn.append(sum(n for n, _ in chosen) / sum(d for _, d in chosen))
    cuts = statistics.quantiles(drawn, n=40)
    interval = estimate_rate(by_problem, "x").interval95
    assert interval is not None
    assert interval == pytest.approx((cuts[0], cuts[-1]), abs=0.015)


def test_problems_without_responses_of_the_kind_are_drawn_too() -> None:
    """One problem of two counts: a quarter of the draws hold none and are left out, the rest say 1/2."""
    assert estimate_rate({"p": (1, 2), "q": (0, 0)}, "x") == Rate(0.5, 1, 2, (0.5, 0.5))


def test_a_difference_is_paired() -> None:
    spread: Counts = {"a": (0, 5), "b": (5, 5), "c": (2, 5), "d": (5, 5), "e": (0, 5)}
    alone = estimate_rate(spread, "x").interval95
    assert alone is not None and alone[1] - alone[0] > 0.4
    assert estimate_difference(spread, spread, "x") == Difference(0.0, (0.0, 0.0))
    better = {uid: (min(n + 1, d) if n < d else n, d) for uid, (n, d) in spread.items()}  # +1 for a, c, e
    found = estimate_difference(spread, better, "x")
    assert found.value == pytest.approx(3 / 25) and found.interval95 is not None
    assert 0 <= found.interval95[0] < 3 / 25 < found.interval95[1] <= 1 / 5


# -------------------------------------------------------------------------------- boundary subset


def answered(name: str, sets: dict[str, dict[str, list[int]]]) -> ModelResponses:
    """{benchmark: {uid: rewards}}"""
    samples = tuple(
        Sample(benchmark, uid, 0, i, "", 1, False, "right" if reward else "wrong", float(reward), None)
        for benchmark, of in sets.items()
        for uid, rewards in of.items()
        for i, reward in enumerate(rewards)
    )
    return ModelResponses(name, Path(), {}, samples)


def test_the_boundary_subset_is_where_both_models_are_sometimes_right() -> None:
    first = {"a": [0, 1], "b": [1, 1], "c": [0, 0], "d": [0, 1], "e": [1, 0], "f": [1, 1]}
    second = {"a": [1, 0], "b": [0, 1], "c": [0, 1], "d": [1, 1], "e": [0, 0], "f": [1, 1]}
    a = answered("A", {"aime": first, "hmmt": {"a": [0, 0], "b": [0, 1]}})
    b = answered("B", {"aime": second, "hmmt": {"a": [0, 1], "b": [1, 0]}})
    kept, fates = find_boundary([a, b])
    assert kept == {("aime", "a"), ("hmmt", "b")}  # "b" of hmmt is not that of aime
    assert fates == {
        "aime": {"kept": 1, "A always right": 2, "A never right": 1, "B always right": 1, "B never right": 1},
        "hmmt": {"kept": 1, "A never right": 1},
    }
    assert find_boundary([a])[0] == {("aime", "a"), ("aime", "d"), ("aime", "e"), ("hmmt", "b")}


# -------------------------------------------------------------------------------- the oracle

QUESTION = "47\na: +38\nb: -19"  # 47+38=85, 85-19=66


@pytest.mark.parametrize(
    ("response", "labels"),
    [
        ("a: 47+38=85\nb: 85-19=66\n\\boxed{66}", "00001"),
        ("a: 47+38=75\nb: 75-19=56\n\\boxed{56}", "00000"),
        ("a: 47+38=75\nWait, the carry was forgotten: a: 47+38=85\nb: 85-19=66\n\\boxed{66}", "11111"),
        ("a: 47+38=75\nWait, I forgot the carry: a: 47+38=85\nb: 85-19=56\n\\boxed{56}", "11110"),  # a second mistake
        ("a: 47+38=75\nWait, the borrow was taken twice: a: 47+38=85\nb: 85-19=66\n\\boxed{66}", "11101"),
        ("a: 47+38=85\nWait, the carry was forgotten: a: 47+38=95\nb: 95-19=76\n\\boxed{76}", "11000"),  # it was right
        # the second line is called wrong, the first one is
        ("a: 47+38=75\nb: 75-19=46\nWait, the borrow was taken twice: b: 75-19=56\n\\boxed{56}", "11000"),
        # both mistakes put right, the second with a wrong name
        (
            "a: 47+38=75\nWait, the carry is missing: a: 47+38=85\nb: 85-19=56\nWait, that result is wrong: b: 85-19=66"
            "\n\\boxed{66}",
            "11111",
        ),
        # a correction that is itself wrong and corrected
        (
            "a: 47+38=75\nWait, hm: a: 47+38=86\nWait, the result is wrong: a: 47+38=85\nb: 85-19=66\n\\boxed{66}",
            "11111",
        ),
        ("a: 47+38=85\nb: 85-19=66\n\\boxed{56}\nWait, the answer was copied wrong: \\boxed{66}", "11111"),
        ("a: 47+38=85\nWait, is that so?\nb: 85-19=66\n\\boxed{66}", "10001"),
        ("Wait, the carry was forgotten: a: 47+38=85\nb: 85-19=66\n\\boxed{66}", "10001"),  # nothing stands before it
        ("I do not know.", "00000"),
        ("", "00000"),
    ],
)
def test_the_oracle_on_cases_worked_by_hand(response: str, labels: str) -> None:
    v = oracle.judge_response(QUESTION, response)
    found = (v.reflection, v.correction, v.located, v.diagnosis, v.answer_right)
    assert "".join(str(int(label)) for label in found) == labels


def test_the_task_s_own_corrections_are_effective() -> None:
    rng, seen = random.Random(3), 0
    for problem in get_held_out_problems(60):
        wrong = write_solution(problem, rng, mistake_rate=0.9)
        fixed = write_correction(problem, wrong, seed=rng.randrange(99))
        if fixed is None:
            assert oracle.judge_response(problem.question, wrong) == Verdict(
                False, False, False, False, True, "no reflection"
            )
            continue
        seen += 1
        v = oracle.judge_response(problem.question, fixed.reconstruction)
        assert v.located and v.diagnosis and v.answer_right
    assert seen > 30


# -------------------------------------------------------------------------------- kappa


@pytest.mark.parametrize(
    ("cells", "expected"),
    [
        ((20, 15, 5, 10), 0.4),  # p_o = 35/50, p_e = 1/2
        ((45, 15, 15, 25), 0.06 / 0.46),  # p_o = .60, p_e = .60*.70 + .40*.30
        ((10, 10, 0, 0), 1.0),
        ((0, 0, 10, 10), -1.0),
        ((25, 25, 25, 25), 0.0),
        ((30, 0, 0, 0), None),  # both know one class only
        ((0, 30, 0, 0), None),
        ((30, 0, 2, 0), 0.0),  # the judge knows one class: p_o = p_e
        ((0, 0, 0, 0), None),
    ],
)
def test_kappa_by_hand(cells: tuple[int, int, int, int], expected: float | None) -> None:
    assert compute_kappa(*cells) == (None if expected is None else pytest.approx(expected))


def test_agreement_counts_and_interval() -> None:
    pairs = [(True, True)] * 20 + [(False, False)] * 15 + [(True, False)] * 5 + [(False, True)] * 10
    found = measure_agreement(pairs, "x")
    assert (found.both, found.neither, found.human_only, found.judge_only) == (20, 15, 5, 10)
    assert found.responses == 50 and found.interval95 is not None
    # Large-sample standard error (Cohen 1960): sqrt(p_o (1 - p_o) / n) / (1 - p_e) = 0.1296
    assert found.interval95 == pytest.approx((0.4 - 1.96 * 0.1296, 0.4 + 1.96 * 0.1296), abs=0.05)
    same = measure_agreement([(True, True)] * 9, "x")
    assert same.kappa is None and same.interval95 is None and same.both == 9


@pytest.mark.parametrize(
    ("row", "sentence"),
    [
        ({"id": 1, "question": "q", "answer": "a"}, "row 2 has no response"),
        ({"id": 1, "question": "q", "answer": "a", "response": "r"}, "row 2 has no label"),
        ({"id": 1, "question": "q", "answer": "a", "response": "r", "located": "yes"}, "located is 'yes'"),
        ({"id": 1, "question": "q", "answer": "a", "response": None, "located": True}, "response is None, not text"),
        ({"id": 1, "question": "q", "answer": True, "response": "r", "located": True}, "answer is True, not text"),
        ({"id": 1, "question": "q", "answer": math.nan, "response": "r", "located": True}, "it is the number nan"),
        ({"id": 1, "question": "q", "answer": "None", "response": "r", "located": True}, "it is the text 'None'"),
        ({"id": 1, "question": "q", "answer": "\frac12", "response": "r", "located": True}, "a form feed and 'rac'"),
    ],
)
def test_a_label_file_that_lacks_something(row: dict[str, Any], sentence: str, tmp_path: Path) -> None:
    good = {"id": 0, "question": "q", "answer": "a", "response": "r", "located": True, "note": "kept apart"}
    path = tmp_path / "labels.jsonl"
    path.write_text(json.dumps(good) + "\n" + json.dumps(row) + "\n")
    with pytest.raises(ValueError, match=sentence):
        read_labels(path)
    path.write_text(json.dumps(good) + "\n" + json.dumps(good)[:-1])
    with pytest.raises(ValueError, match=r"the last line \(2\) is half-written"):
        read_labels(path)
    for answer, text in ((7, "7"), (1e-05, "0.00001"), (1e22, "1" + "0" * 22), ("\\frac{1}{2}", "\\frac{1}{2}")):
        path.write_text(json.dumps(good | {"answer": answer}) + "\n")
        (labelled,) = read_labels(path)
        assert labelled.labels == {"located": True} and labelled.item.answer == text


# -------------------------------------------------------------------------------- table


def test_the_paper_stands_beside_its_own_benchmarks() -> None:
    names = ("AIME 2024", "aime24", "aime_2025", "HMMT February 2025", "hmmt_feb25")
    assert [find_paper_column(name) for name in names] == [0, 0, 1, 2, 2]
    assert find_paper_column("arithmetic") is find_paper_column("gsm8k") is find_paper_column("aime") is None
    nothing = {"value": None, "numerator": 0, "denominator": 0, "interval95": None}
    some = {"value": 0.5, "numerator": 3, "denominator": 6, "interval95": (0.25, 0.75)}
    of_one = {"DSR": some, "ERR": nothing}
    differences = {"DSR": {"value": -0.125, "interval95": (-0.25, 0.0)}, "ERR": {"value": None, "interval95": None}}
    bench = {"models": {"A": of_one, "B": of_one}, "difference": differences}
    header, body = make_rows({"models": ["A", "B"], "benchmarks": {"aime24": bench, "gsm8k": bench}})
    assert header == ["Method", "DSR, aime24", "DSR, gsm8k", "ERR, aime24", "ERR, gsm8k"]
    dsr, err = "50.0 (25.0 to 75.0), 3/6", "not defined (0/0)"
    assert body[:2] == [[name, dsr, dsr, err, err] for name in "AB"]
    assert body[2] == ["Δ (B - A)", *["-12.5 (-25.0 to +0.0)"] * 2, *["not defined"] * 2]
    assert body[3:] == [  # Table 2's column AIME 24
        ["paper: Cold-start + GRPO", "34.0", "", "52.0", ""],
        ["paper: Cold-start + TAPO", "47.5", "", "63.4", ""],
        ["paper: Δ", "+13.5", "", "+11.4", ""],
    ]
    assert format_markdown_table(["a|b", "c"], [["1", "2"]]) == "| a\\|b | c |\n| --- | --- |\n| 1 | 2 |\n"


# -------------------------------------------------------------------------------- the command


def write_evaluation(folder: Path, texts: dict[str, list[tuple[str, float]]]) -> None:
    """One benchmark as `nemo-tapo evaluate` leaves it: {uid: [(text, reward)]}."""
    folder.mkdir(parents=True)
    rows = [
        {"benchmark": "arithmetic", "uid": uid, "run": 0, "index": i, "text": text, "tokens": 9, "truncated": False}
        | {"outcome": "right" if reward else "wrong", "reward": reward, "answer": "0"}
        for uid, samples in texts.items()
        for i, (text, reward) in enumerate(samples)
    ]
    (folder / "arithmetic.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    data = [[f"test-{i}", p.question, p.answer] for i, p in enumerate(get_held_out_problems(len(texts)))]
    digest = hashlib.sha256(json.dumps(data).encode()).hexdigest()
    settings = {"runs": 1, "samples": 3, "benchmarks": {"arithmetic": {"problems": len(texts), "data": digest}}}
    (folder / "settings.json").write_text(json.dumps(settings))


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """Two evaluations of three held-out problems: test-0 and test-1 on the boundary, test-2 always right."""
    problems = get_held_out_problems(3)
    right = ["\n".join(p.lines) for p in problems]
    box = "\\boxed{0}"
    doubted = [f"{p.lines[0]}\nWait, let me look again.\n" + "\n".join(p.lines[1:]) for p in problems]
    run = tmp_path / "run"
    for name, second in (("before", doubted), ("after", right)):
        write_evaluation(
            run / "evaluation" / name,
            {f"test-{i}": [(second[i], 1.0), (right[i], 1.0), (box if i < 2 else right[i], 0.0 if i < 2 else 1.0)]
             for i in range(3)},
        )  # fmt: skip
    (run / "config.yaml").write_text("task: {name: arithmetic, arithmetic: {held_out_queries: 3}}\n")
    return run


def test_the_oracle_judges_two_evaluations(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    folders = [str(run_folder / "evaluation" / name) for name in ("before", "after")]
    assert main(["judge", "--samples", *folders, "--out", str(out), "--oracle"]) == 0
    result = json.loads((out / "judge.json").read_text())
    assert result["problems"] == {"arithmetic": {"kept": 2, "before always right": 1}}
    found = result["benchmarks"]["arithmetic"]
    dsr = {name: found["models"][name]["DSR"] for name in ("before", "after")}
    assert (dsr["before"]["numerator"], dsr["before"]["denominator"]) == (2, 4)  # doubt in every other right one
    assert (dsr["after"]["numerator"], dsr["after"]["denominator"]) == (4, 4)
    assert found["difference"]["DSR"]["value"] == 0.5
    assert found["models"]["after"]["ERR"]["value"] is None
    assert result["counts"]["outcomes"]["judged"] == result["counts"]["responses"] == 12
    assert len((out / "verdicts.jsonl").read_text().splitlines()) == 12
    assert "+50.0" in (out / "table.md").read_text()
    assert "not defined" in capsys.readouterr().out


def test_a_served_judge_and_settings_behind_the_folders(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """The judge finds nothing direct and every answer wrong; one reply in twelve is garbage for good."""

    def script(number: int, body: dict[str, Any]) -> Answer:
        if "Wait" in body["messages"][1]["content"] and "test" not in seen:
            seen.add("test")
            stubborn.add(body["messages"][1]["content"])
        if body["messages"][1]["content"] in stubborn:
            return completion("I would rather not say.")
        labels = {"reflection": True, "correction": False, "located": False, "diagnosis": False, "answer_right": False}
        return completion(json.dumps({"evidence": "none", **labels}))

    seen: set[str] = set()
    stubborn: set[str] = set()
    with scripted(script) as server:
        arguments = ["judge", "--out", str(tmp_path / "out"), "--samples", str(run_folder / "evaluation" / "before")]
        arguments += [f"judge.endpoint.url={server.url}", f"judge.cache={tmp_path / 'cache'}"]
        assert main(arguments) == 0
        asked = len(server.requests)
        assert main(arguments) == 0  # all from the cache but the one without a verdict
        assert len(server.requests) == asked + 3
    result = json.loads((tmp_path / "out" / "judge.json").read_text())
    assert result["counts"]["outcomes"] == {"judged": 5, "unparsable": 1, "too_long": 0, "refused": 0, "failed": 0}
    model = result["benchmarks"]["arithmetic"]["models"]["before"]
    assert model["DSR"]["value"] == 0 and model["DSR"]["denominator"] == 3  # the fourth right one has no verdict
    assert model["contradictions"] == 3 and result["judge"] == "tiny"
    printed = capsys.readouterr().out
    assert "judged 5, unparsable 1; from the cache 5" in printed and "WARNING: 17%" in printed


def test_agreement_with_labels_by_hand(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Ten responses; the judge says "reflection" of those with "Wait": 20/15/5/10 of kappa 0.4, fivefold fewer."""
    rows = [(True, True)] * 4 + [(False, False)] * 3 + [(True, False)] * 1 + [(False, True)] * 2
    labels = [
        {"id": i, "question": "q", "answer": "a", "response": f"{'Wait' if judge else 'So'} {i}", "reflection": human}
        | {"diagnosis": False}
        for i, (human, judge) in enumerate(rows)
    ]
    path = tmp_path / "labels.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in labels))

    def script(number: int, body: dict[str, Any]) -> Answer:
        says = "Wait " in body["messages"][1]["content"]
        none = {"correction": False, "located": False, "diagnosis": False, "answer_right": False}
        return completion(json.dumps({"evidence": "", "reflection": says, **none}))

    with scripted(script) as server:
        arguments = ["judge", "--agreement", str(path), "--out", str(tmp_path / "out")]
        arguments += [f"judge.endpoint.url={server.url}", f"judge.cache={tmp_path / 'cache'}"]
        assert main(arguments) == 0
    found = json.loads((tmp_path / "out" / "agreement.json").read_text())["labels"]
    assert set(found) == {"reflection", "diagnosis"}
    assert found["reflection"]["kappa"] == pytest.approx(0.4)
    assert [found["reflection"][name] for name in ("both", "neither", "human_only", "judge_only")] == [4, 3, 1, 2]
    assert found["diagnosis"]["kappa"] is None
    assert "no kappa of diagnosis: human and judge know only one" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("arguments", "code", "sentence"),
    [
        (["--samples", "RUN/evaluation/before"], 2, "judge.json, table.md and verdicts.jsonl shall go"),
        (["--samples", "RUN/evaluation/before", "--out", "RUN/config.yaml"], 2, "cannot be a folder for results"),
        (["--samples", "RUN/nothing", "--out", "OUT"], 2, "holds no evaluation"),
        (["--samples", "RUN/evaluation/before", "--out", "OUT"], 2, "judge.endpoint.url is not set"),
        (["--samples", "RUN/evaluation/before", "RUN/evaluation/before", "--out", "OUT"], 2, "twice"),
        (["--samples", "EMPTY", "--out", "OUT"], 2, "holds no evaluation"),
        (["--samples", "a", "b", "c", "--out", "OUT"], 2, "one evaluation or two, not 3"),
        (["--agreement", "nothing.jsonl"], 2, "there is no such file"),
        (["--agreement", "nothing.jsonl", "--oracle"], 2, "leave --oracle out"),
        (["--samples", "RUN/evaluation/before", "--out", "OUT", "judge.endpoint.url=DOWN"], 3, "start the server"),
        (["--samples", "RUN/evaluation/before", "--out", "OUT", "judge.endpoint.urll=x"], 2, "did you mean"),
    ],
)
def test_bad_input_is_a_sentence(
    arguments: list[str], code: int, sentence: str, run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "empty").mkdir()
    words = {"RUN": run_folder, "OUT": tmp_path / "out", "EMPTY": tmp_path / "empty"}
    for name, path in words.items():
        arguments = [word.replace(name, str(path)) for word in arguments]
    arguments = [word.replace("DOWN", f"http://127.0.0.1:{free_port()}") for word in arguments]
    assert main(["judge", *arguments]) == code
    said = capsys.readouterr().err
    assert sentence in said and "Traceback" not in said


def test_other_problems_than_those_that_were_answered_are_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Too few, another prompt, another gold answer: a judge would be shown a question that was not asked."""
    file = tmp_path / "problems.jsonl"
    rows = [
        {"id": f"test-{i}", "problem": p.question, "answer": p.answer} for i, p in enumerate(get_held_out_problems(3))
    ]
    folder = str(run_folder / "evaluation" / "before")

    def code(rows: list[dict[str, str]], prompt: str) -> int:
        file.write_text("".join(json.dumps(row) + "\n" for row in rows))
        data = {"benchmarks": {"arithmetic": {"path": str(file), "uid": "id"}}, "prompt": prompt}
        (run_folder / "config.yaml").write_text(json.dumps({"task": {"name": "mathematics", "mathematics": data}}))
        return main(["judge", "--samples", folder, "--out", str(tmp_path / "out"), "--oracle"])

    assert code([*rows, {"id": "more", "problem": "1+1", "answer": "2"}], "{question}") == 0
    for changed, prompt in (
        (rows[:1], "{question}"),
        (rows, "{question}!"),
        ([rows[0] | {"answer": "1"}, *rows[1:]], "{question}"),
    ):
        assert code(changed, prompt) == 2
        said = capsys.readouterr().err
        assert "arithmetic: the task's problems are not those of" in said and "bring back the data" in said
    (run_folder / "config.yaml").write_text("task: {nmae: arithmetic}\n")
    assert main(["judge", "--samples", folder, "--out", str(tmp_path / "out"), "--oracle"]) == 2
    assert f"{run_folder / 'config.yaml'}: unknown key 'task.nmae'" in capsys.readouterr().err


def test_a_run_folder_stands_for_its_model_after_training(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """As `nemo-tapo compare` takes it."""
    assert main(["judge", "--samples", str(run_folder), "--out", str(tmp_path / "out"), "--oracle"]) == 0
    assert json.loads((tmp_path / "out" / "judge.json").read_text())["models"] == ["after"]


def test_an_evaluation_that_is_not_at_its_end_is_refused(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = run_folder / "evaluation" / "before" / "arithmetic.jsonl"
    file.write_text("".join(file.read_text().splitlines(keepends=True)[:-1]))
    assert main(["judge", "--samples", str(file.parent), "--out", str(tmp_path / "out"), "--oracle"]) == 2
    assert "holds 8 of 3 problems x 1 runs x 3 samples" in capsys.readouterr().err


def test_of_a_sample_that_is_there_twice_the_first_counts(run_folder: Path) -> None:
    """As in the evaluation's own results."""
    file = run_folder / "evaluation" / "before" / "arithmetic.jsonl"
    first = json.loads(file.read_text().splitlines()[0])
    with file.open("a") as stream:
        stream.write(json.dumps({**first, "reward": 0.0, "outcome": "wrong", "text": "again"}) + "\n")
    samples = read_responses(file.parent).samples
    assert len(samples) == 9 and samples[0].reward == first["reward"] == 1.0


def test_responses_are_read_without_loading_the_algorithms() -> None:
    program = "import sys, nemo_tapo.judge.responses, nemo_tapo.judge.measure\nprint(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True, timeout=60)
    assert not {name for name in done.stdout.split() if name.startswith("nemo_tapo.algorithms") or name == "torch"}


def test_evaluations_of_different_problems_have_no_common_subset(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folders = [run_folder / "evaluation" / name for name in ("before", "after")]
    settings = folders[1] / "settings.json"
    settings.write_text(settings.read_text().replace('"data": "', '"data": "0'))
    assert main(["judge", "--samples", *map(str, folders), "--out", str(tmp_path / "out"), "--oracle"]) == 2
    assert "before and after answered different problems (arithmetic)" in capsys.readouterr().err


def test_a_dry_run_says_what_would_be_asked_and_asks_nothing(
    run_folder: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = str(run_folder / "evaluation" / "before")
    with scripted([completion("never")]) as server:
        arguments = ["--samples", folder, "--out", str(tmp_path / "out"), f"judge.endpoint.url={server.url}"]
        assert main(["judge", "--dry-run", *arguments]) == 0
        assert not server.requests
    printed = capsys.readouterr().out
    assert "arithmetic: 3 problems: kept 2, before always right 1" in printed
    assert "responses to be judged: 6, of which 6 differ" in printed and f"judged by: {server.url}" in printed
    assert not (tmp_path / "out").exists()
