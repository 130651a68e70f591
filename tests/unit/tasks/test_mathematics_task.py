"""The mathematics task: from files to prompts with the verifier's own processes, and what a run tells of its data."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from nemo_tapo.config.load import load_config
from nemo_tapo.config.sections import DatasetConfig, MathematicsConfig, TaskConfig, VerifierConfig
from nemo_tapo.datasets.data_report import DataReport
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.stages.data_preview import check_data, preview_data
from nemo_tapo.tasks.mathematics import MathematicsTask
from nemo_tapo.tasks.prompts import SYNTHESIS_PROMPT
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.types import Provenance, Query, SetAside

MODEL = Path(__file__).parents[3] / "assets" / "tiny-coldstart"
TRAIN = [
    {"id": "sum", "problem": "What is $\\frac{1}{2} + {1 \\over 3}$?", "answer": "\\frac{5}{6}"},
    {"id": "none", "problem": "No answer?", "answer": ""},
    {"id": "bench", "problem": "compute 17+25-3", "answer": "39"},
    {"id": "twice", "problem": "What is  $\\frac{1}{2} + {1 \\over 3}$?", "answer": "\\frac{5}{6}"},
    {"id": "other", "problem": "What is $\\frac{1}{2} + {1 \\over 3}$?", "answer": "1"},
    {"id": "int", "problem": "What is 6 times 7?", "answer": 42},
]
BENCH = [{"problem": "Compute $17 + 25 - 3$.", "answer": "39"}, {"problem": "What is 8 times 8?", "answer": "64"}]


def jsonl(path: Path, rows: list[dict[str, object]]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))
    return path


@pytest.fixture
def task(tmp_path: Path) -> Iterator[MathematicsTask]:
    cfg = MathematicsConfig(
        train=DatasetConfig(path=jsonl(tmp_path / "train.jsonl", TRAIN), uid="id", licence="MIT"),
        benchmarks={"mine": DatasetConfig(path=jsonl(tmp_path / "bench.jsonl", BENCH))},
        prompt="{question}\nSay \\boxed{}, as in \\boxed{7}. {other}",
        exclude_benchmarks=True,
        verifier=VerifierConfig(workers=1),
    )
    made = MathematicsTask(cfg)
    yield made
    made.close()


def test_queries_prompts_and_what_was_set_aside(task: MathematicsTask) -> None:
    queries = task.train_queries()
    assert [(q.uid, q.answer) for q in queries] == [("sum", "\\frac{5}{6}"), ("int", "42")]
    first = queries[0]
    assert first.question == TRAIN[0]["problem"]
    assert first.user_text == f"{TRAIN[0]['problem']}\nSay \\boxed{{}}, as in \\boxed{{7}}. {{other}}"
    assert task.row(first) == TRAIN[0]
    found = task.provenance("train")
    assert (found.rows, found.licence) == (6, "MIT")
    assert {s.uid: s.reason for s in found.set_aside} == {
        "none": "answer_missing", "twice": "duplicate", "other": "duplicate_other_answer", "bench": "in_benchmark",
    }  # fmt: skip
    assert found.rows == len(queries) + len(found.set_aside)


def test_a_reward_function_needs_no_answer_that_the_verifier_understands(tmp_path: Path) -> None:
    rows: list[dict[str, object]] = [{"problem": "Say it.", "answer": "\\frac{", "tests": ["a", "b"]}]
    data = {"train": {"path": str(jsonl(tmp_path / "train.jsonl", rows))}}
    own = make_task(TaskConfig(name="mathematics", mathematics=data), 0)  # type: ignore[arg-type]
    asked = make_task(TaskConfig(name="mathematics", mathematics=data, reward="operator:eq"), 0)  # type: ignore[arg-type]
    assert list(own.train_queries()) == [] and own.provenance("train").set_aside[0].reason == "answer_ungradable"
    (query,) = asked.train_queries()
    assert (query.answer, query.row["tests"]) == ("\\frac{", ["a", "b"])
    own.close(), asked.close()


def test_benchmarks_and_grading(task: MathematicsTask) -> None:
    (name, queries), = task.benchmarks().items()  # fmt: skip
    assert (name, [q.uid for q in queries]) == ("mine", ["mine-0", "mine-1"])
    fraction = Query("f", "", "\\frac{5}{6}")

    async def outcomes() -> list[str]:
        pairs = [(queries[1], "\\boxed{64}"), (queries[1], "\\boxed{65}"), (queries[1], "64"),
                 (fraction, "so \\boxed{\\dfrac{10}{12}}"), (fraction, "\\boxed{5}. Wait, \\boxed{5/6}")]  # fmt: skip
        return [(await task.grade(query, response)).outcome for query, response in pairs]

    assert asyncio.run(outcomes()) == ["right", "wrong", "no_answer", "right", "right"]


def test_the_synthesis_prompt_is_the_papers_and_quotes_the_problem_alone(task: MathematicsTask) -> None:
    assert task.synthesis_prompt is SYNTHESIS_PROMPT


def test_gold_answers_that_do_not_parse_are_set_aside(tmp_path: Path) -> None:
    rows = [{"problem": f"p{i}", "answer": a} for i, a in enumerate(["7", "\\frac{", "x^2+1", "(" * 2000])]
    made = MathematicsTask(MathematicsConfig(train=DatasetConfig(path=jsonl(tmp_path / "a.jsonl", rows))))
    try:
        usable = [q.answer for q in made.train_queries()]
        found = made.provenance("train")
    finally:
        made.close()
    assert usable == ["7", "x^2+1"]
    assert [(s.uid, s.reason) for s in found.set_aside] == [
        ("train-1", "answer_ungradable"),
        ("train-3", "answer_ungradable"),
    ]
    assert all(s.detail for s in found.set_aside)


def test_what_is_not_configured_is_a_sentence() -> None:
    made = MathematicsTask(MathematicsConfig())
    with pytest.raises(ValueError, match=r"task\.mathematics\.train is not set"):
        made.train_queries()
    with pytest.raises(ValueError, match=r"task\.mathematics\.benchmarks\.NAME\.path=FILE"):
        made.benchmarks()
    with pytest.raises(ValueError, match=r"prompt has no \{question\}"):
        MathematicsConfig(prompt="Answer!")


# ------------------------------------------------------------------------------------------ a run's account of its data


def aside(reason: str, count: int) -> tuple[SetAside, ...]:
    return tuple(SetAside(f"{reason}-{i}", reason, "why", "q") for i in range(count))


def test_every_row_is_accounted_for(tmp_path: Path) -> None:
    report = DataReport(tmp_path, 0.01)
    queries = [Query("a", "short", "1"), Query("b", "x" * 50, "1"), Query("a", "again", "1")] + [
        Query(f"q{i}", "short", "1") for i in range(197)
    ]
    usable, unfit = add_prompts(queries, CharacterTokenizer(), 20)
    assert [(s.uid, s.reason) for s in unfit] == [("b", "prompt_too_long"), ("a", "uid_seen_before")]
    found = Provenance("a.jsonl", 203, aside("duplicate", 3), "MIT")
    said = report.add("train", found, len(usable), 0, unfit)
    assert said.startswith("train: 198 of 203 rows of a.jsonl (MIT); set aside: 3 duplicate, 1 prompt_too_long, 1 uid_")
    report.add("bench", Provenance("b.jsonl", 30, aside("duplicate", 2)), 10, 18, [])
    data = json.loads((tmp_path / "data.json").read_text())
    for one in data.values():
        assert one["rows"] == one["usable"] + one["not_asked_for"] + sum(one["set_aside"].values())
    assert data["train"]["set_aside"] == {"duplicate": 3, "prompt_too_long": 1, "uid_seen_before": 1}
    rows = [json.loads(line) for line in (tmp_path / "quarantine.jsonl").read_text().splitlines()]
    assert [row["set"] for row in rows] == ["train"] * 5 + ["bench"] * 2
    assert rows[3] == {"set": "train", "uid": "b", "reason": "prompt_too_long",
                       "detail": "52 tokens, the context leaves 20", "question": "x" * 50}  # fmt: skip


@pytest.mark.parametrize(
    ("name", "reason", "count", "refused"),
    [
        ("train", "duplicate", 90, False),  # rows in order, only not needed
        ("train", "in_benchmark", 90, False),
        ("train", "answer_missing", 5, False),  # public training sets have some
        ("train", "answer_ungradable", 51, True),  # the wrong field
        ("train", "not_json", 2, True),  # 1% at most
        ("train", "not_json", 1, False),
        ("mine", "answer_ungradable", 2, True),  # problems that would be missing from the result
        ("mine", "duplicate", 50, False),
    ],
)
def test_which_share_of_bad_rows_stops_a_run(tmp_path: Path, name: str, reason: str, count: int, refused: bool) -> None:
    found = Provenance("x.jsonl", 100, aside(reason, count))
    report = DataReport(tmp_path, 0.01)
    if refused:
        with pytest.raises(ValueError, match=rf"^{name}: .*{count} {reason}"):
            report.add(name, found, 100 - count, 0, [])
    else:
        assert f"{count} {reason}" in report.add(name, found, 100 - count, 0, [])
    assert len((tmp_path / "quarantine.jsonl").read_text().splitlines()) == count  # also of a refused set


def test_only_faults_are_named_as_what_stops_a_run(tmp_path: Path) -> None:
    """Doubles and missing answers are tolerated, and then not among the reasons either."""
    found = Provenance("x.jsonl", 100, (*aside("duplicate", 40), *aside("answer_missing", 5), *aside("not_json", 2)))
    with pytest.raises(ValueError, match=r"train: 2 of 100 rows of data were set aside \(2 not_json\), more than"):
        DataReport(tmp_path, 0.01).add("train", found, 53, 0, [])


# ------------------------------------------------------------------------------------------------------------ --dry-run


def overrides(tmp_path: Path) -> list[str]:
    train, bench = jsonl(tmp_path / "train.jsonl", TRAIN), jsonl(tmp_path / "bench.jsonl", BENCH)
    return [f"model.path={MODEL}", "task.name=mathematics", f"task.mathematics.train.path={train}",
            "task.mathematics.train.licence=MIT", f"task.mathematics.benchmarks.mine.path={bench}"]  # fmt: skip


def test_dry_run_shows_counts_and_the_prompt_as_tokenized(tmp_path: Path) -> None:
    pytest.importorskip("transformers")
    lines = preview_data(load_config(None, overrides(tmp_path)), "run")
    assert lines[0].startswith(f"task.mathematics.train: 6 rows of {tmp_path / 'train.jsonl'}, 3 of them broken")
    assert lines[0].endswith("licence: MIT; 3 gold answers are still to be parsed")
    assert lines[1].startswith("task.mathematics.benchmarks.mine: 2 rows")
    text = "\n".join(lines[3:])
    assert lines[2].startswith("prompt of the first query, ") and lines[2].endswith(" tokens, thinking off:")
    assert text == (
        "| <|im_start|>user\n| What is $\\frac{1}{2} + {1 \\over 3}$?\n| \n| Please reason step by step, and put your "
        "final answer within \\boxed{}.<|im_end|>\n| <|im_start|>assistant\n| "
    )


def test_a_hub_set_is_not_fetched_by_a_dry_run() -> None:
    cfg = load_config(None, ["task.name=mathematics", "task.mathematics.train.hub=openai/gsm8k", "model.path=nowhere"])
    lines = preview_data(cfg, "filter")
    assert lines[0] == "task.mathematics.train: openai/gsm8k at no revision, not read by --dry-run"
    assert lines[1].startswith("prompt: not shown. model.path: no tokenizer in 'nowhere'")


def test_bad_data_is_told_before_anything_starts(tmp_path: Path) -> None:
    cfg = load_config(None, [*overrides(tmp_path), "task.mathematics.benchmarks.mine.answer=gold"])
    check_data(cfg, "train")  # does not need the benchmarks
    with pytest.raises(ValueError, match=r"^task\.mathematics\.benchmarks\.mine\.answer: no row of"):
        check_data(cfg, "evaluate")
