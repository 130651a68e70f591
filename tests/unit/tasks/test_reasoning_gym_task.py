"""Data sets of reasoning-gym as a task: queries by seed, a benchmark apart from them, their own scores."""

from __future__ import annotations

import asyncio
from dataclasses import replace
from typing import Any

import pytest

from nemo_tapo.config.run_config import validate
from nemo_tapo.config.sections import GradingConfig, ReasoningGymConfig, TaskConfig
from nemo_tapo.tasks.reasoning_gym_task import create_dataset, make_queries, redraw_item
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.types import Grade
from tests.helpers.command import nemo_tapo

pytest.importorskip("reasoning_gym")
SMALL = {"min_terms": 2, "max_terms": 2, "min_digits": 1, "max_digits": 1}


def config(dataset: str = "chain_sum", **settings: Any) -> TaskConfig:
    gym = ReasoningGymConfig(dataset=dataset, settings=settings, train_queries=60, held_out_queries=20)
    return TaskConfig(name="reasoning_gym", reasoning_gym=gym, grading=GradingConfig(workers=1, deadline=20))


def questions(task: Any, name: str) -> list[str]:
    queries = task.train_queries() if name == "train" else task.benchmarks()["chain_sum"]
    return [query.question for query in queries]


def test_training_follows_the_seed_and_the_benchmark_does_not() -> None:
    zero, again, one = (make_task(config(), seed) for seed in (0, 0, 1))
    assert questions(zero, "train") == questions(again, "train")
    assert not {*questions(zero, "train")} & {*questions(one, "train")}
    assert questions(zero, "test") == questions(one, "test")
    assert len(questions(zero, "train")) == 60 and len(questions(zero, "test")) == 20
    assert zero.train_queries()[0].user_text.endswith("within \\boxed{}.")


def test_what_is_there_twice_or_in_the_benchmark_is_set_aside() -> None:
    """Sums of two digits: a hundred at most, or two hundred with differences, so that many come twice."""
    task = make_task(config(**SMALL), 0)
    train, test = questions(task, "train"), questions(task, "test")
    assert len(set(train)) == len(train) and not {*train} & {*test}
    found = task.provenance("train")
    reasons = {aside.reason for aside in found.set_aside}
    assert reasons == {"duplicate", "in_benchmark"} and found.rows == 60 == len(train) + len(found.set_aside)
    assert found.source.startswith("reasoning-gym ") and found.licence == "Apache-2.0"


def test_the_data_sets_own_score_counts() -> None:
    task = make_task(config(), 0)
    query = task.train_queries()[0]
    right = f"So it is \\boxed{{{query.answer}}}."
    graded = [asyncio.run(task.grade(query, text)) for text in (right, "\\boxed{no idea}", "no box", "\\boxed{ }")]
    task.close()
    assert graded[0] == Grade(1.0, "right", query.answer)
    assert [g.outcome for g in graded[1:]] == ["wrong", "no_answer", "no_answer"]
    assert "expression" in task.row(query)["metadata"]


@pytest.mark.parametrize("dataset", ["countdown", "chain_sum", "graph_color", "word_sorting", "rush_hour"])
def test_the_scorer_draws_the_same_item_again(dataset: str) -> None:
    """A query carries seed and index of its item: as JSON, an item would lose its tuples and whole-number keys."""
    items = create_dataset(dataset, {}, 7000, 4)
    queries, _ = make_queries(items, 7000, "train", ReasoningGymConfig(dataset=dataset).prompt, frozenset())
    for query in queries:
        assert redraw_item(dataset, {}, query) == dict(items[query.row["index"]])
    with pytest.raises(ValueError, match="draws another question"):
        redraw_item(dataset, {}, replace(queries[0], row={"seed": 1, "index": 0}))


def test_equal_questions_are_one_query() -> None:
    items = [{"question": "a  b", "answer": None}, {"question": "a b", "answer": "x"}]
    (query,), (aside,) = make_queries(items, 5, "train", ReasoningGymConfig().prompt, frozenset())
    assert (query.answer, query.row) == ("(scored by the data set)", {"seed": 5, "index": 0})
    assert (aside.uid, aside.reason) == ("train-1", "duplicate")


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["task.reasoning_gym.dataset=chain_sums"], "the data set chain_sums cannot be made: ValueError: Dataset"),
        (["task.reasoning_gym.settings.terms=3"], "the data set chain_sum cannot be made: TypeError: "),
    ],
)
def test_a_data_set_that_is_not_there_is_one_sentence(tmp_path: Any, settings: list[str], sentence: str) -> None:
    done = nemo_tapo("train", "runtime=scripted", "task.name=reasoning_gym", "tapo.correct_at=1", *settings,
                     f"output={tmp_path / 'run'}")  # fmt: skip
    assert done.returncode == 2
    assert done.stderr.startswith(f"nemo-tapo: task.reasoning_gym: {sentence}") and done.stderr.count("\n") == 1


def test_a_threshold_is_asked_for() -> None:
    with pytest.raises(ValueError, match=r"set tapo\.correct_at, to 1 for exactly right answers alone"):
        validate({"task": {"name": "reasoning_gym"}})
