"""Tasks and rewards of a user's own file, through the command line on the scripted runtime."""

from __future__ import annotations

import asyncio
import json
from collections import Counter
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import rl_fingerprint, validate
from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.tasks.registry import make_task
from nemo_tapo.types import Grade, Query
from tests.helpers.command import nemo_tapo
from tests.helpers.imports import ROOT

CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SMALL = ("runtime=scripted", "steps=2", "model.max_length=4096", "rollout.max_tokens=300", "tapo.max_tokens=800")

SUMS = """
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Grade, Query

class Sums:
    synthesis_prompt = arithmetic.SYNTHESIS_PROMPT

    def __init__(self, number, seed):
        self.problems = arithmetic.draw_problems(number, seed, 2, 3)

    def train_queries(self):
        return [Query(f"sum-{i}", p.question, p.answer) for i, p in enumerate(self.problems)]

    def benchmarks(self):
        return {"sums": [Query(f"s-{i}", p.question, p.answer) for i, p in enumerate(arithmetic.get_held_out_problems(4))]}

    def grade(self, query, response):
        reward, outcome = arithmetic.verify_response(query.answer, response)
        return Grade(reward, outcome)
"""  # noqa: E501
REWARDS = """
from nemo_tapo.tasks import arithmetic

def answer(response, query):
    return arithmetic.verify_response(query.answer, response)[0]

def box(response, query):
    return "\\\\boxed{" in response

def half(response, query):
    '''1 for a right answer, 0.5 for an even wrong one, 0 for others.'''
    if answer(response, query):
        return 1
    return 0.5 if response.rstrip("}\\n")[-1:] in "02468" else 0

def unsure(response, query):
    '''As `answer`, but odd lengths are not graded, in three ways.'''
    if len(response) % 2:
        return (None, float("nan"), 7)[len(response) % 3]
    return answer(response, query)
"""


@pytest.fixture
def sums(tmp_path: Path) -> str:
    (tmp_path / "sums.py").write_text(SUMS)
    return f"{tmp_path / 'sums.py'}:Sums"


@pytest.fixture
def rewards(tmp_path: Path) -> str:
    (tmp_path / "rewards.py").write_text(REWARDS)
    return str(tmp_path / "rewards.py")


def lines(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def train(output: Path, *settings: str) -> list[dict[str, Any]]:
    done = nemo_tapo("train", "--config", str(CONFIG), *SMALL, f"output={output}", *settings)
    assert done.returncode == 0, done.stderr
    return lines(output / "metrics.jsonl")


def grades(metrics: dict[str, Any]) -> dict[str, int]:
    return {key.removeprefix("grade/"): int(n) for key, n in metrics.items() if key.startswith("grade/")}


NUMBERS = ("loss", "reward/mean", "tapo/pairs", "tapo/correct", "rows", "entropy", "grad_norm")


def test_a_reward_function_of_the_same_verdict_gives_the_same_numbers(tmp_path: Path, rewards: str) -> None:
    own = train(tmp_path / "own")
    asked = train(tmp_path / "asked", f"task.reward={rewards}:answer")
    assert [[step[name] for name in NUMBERS] for step in asked] == [[step[name] for name in NUMBERS] for step in own]
    assert not (tmp_path / "asked" / "ungraded.jsonl").exists()


def test_a_custom_class_trains_evaluates_and_filters(tmp_path: Path, sums: str) -> None:
    task = ("task.name=custom", f"task.target={sums}", "task.arguments.number=16", "rollout.queries_per_step=8")
    metrics = train(tmp_path / "run", *task)
    K = 8
    assert all(sum(grades(step).values()) == 8 * K and set(grades(step)) <= {"right", "wrong"} for step in metrics)
    assert sum(step["tapo/pairs"] for step in metrics) > 0
    data = json.loads((tmp_path / "run" / "data.json").read_text())
    assert (data["train"]["rows"], data["train"]["source"]) == (16, sums)

    done = nemo_tapo("filter", "--config", str(CONFIG), *SMALL, *task, f"output={tmp_path / 'filter'}")
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "filter" / "summary.json").read_text())
    assert summary["rows"] == 16 and "the class of task.target has to read" in summary["train_on_it"]


def test_rewards_between_0_and_1_count_as_correct_from_the_threshold_on(tmp_path: Path, rewards: str) -> None:
    found: dict[str, list[dict[str, int]]] = {}
    for at in ("null", "0.5", "0.6"):
        metrics = train(tmp_path / at, f"task.reward={rewards}:half", f"tapo.correct_at={at}")
        found[at] = [grades(step) for step in metrics]
        records = [row for row in lines(tmp_path / at / "trajectories.jsonl") if row["kind"] == "skipped"]
        assert records
        assert all(row.get("correct_at") == (None if at == "null" else float(at)) for row in records)
    first = {at: each[0] for at, each in found.items()}
    assert first["null"] == first["0.5"]  # 0.5 is above 0
    assert first["0.6"]["right"] < first["0.5"]["right"]
    assert sum(first["0.6"].values()) == sum(first["0.5"].values())


def test_several_rewards_are_their_weighted_mean(rewards: str) -> None:
    """A wrong answer in a box: (3 x 0 + 1 x 1) / 4 = 1/4; a right one: 1. The task's own verdict is a reward too."""
    cfg = TaskConfig(
        rewards={"own": {"weight": 3}, "box": {"target": f"{rewards}:box"}},  # type: ignore[dict-item]
    )
    task = make_task(cfg, 0)
    query = task.train_queries()[0]
    graded = [asyncio.run(task.grade(query, f"\\boxed{{{answer}}}")) for answer in (query.answer, "12345")]
    task.close()
    assert graded == [Grade(1.0, "right", query.answer), Grade(0.25, "right", "12345")]


def test_a_response_without_a_reward_is_counted_named_and_learned_nothing_from(tmp_path: Path, rewards: str) -> None:
    metrics = train(tmp_path / "run", f"task.reward={rewards}:unsure")
    reasons = {"no_reward_none", "no_reward_nan", "no_reward_out_of_range"}
    counted: Counter[str] = Counter()
    for step in metrics:
        assert sum(grades(step).values()) == step["rows"] - step["tapo/rows"]  # a rollout each, none is lost
        assert (
            step["tapo/parsed"] + sum(v for k, v in step.items() if k.startswith("tapo/dropped/")) == step["tapo/pairs"]
        )
        graded = {name: n for name, n in grades(step).items() if name not in reasons}
        assert step["reward/mean"] == pytest.approx(graded["right"] / sum(graded.values()))
        counted.update({name: n for name, n in grades(step).items() if name in reasons})
        counted.update({"ungraded constructions": int(step.get("tapo/dropped/ungraded", 0))})
    logged = lines(tmp_path / "run" / "ungraded.jsonl")
    assert reasons == {row["outcome"] for row in logged}
    assert len(logged) == sum(counted.values())
    assert all(row["query"].startswith("train-") and len(row["response"]) % 2 for row in logged)
    assert {row["detail"] for row in logged if row["outcome"] == "no_reward_nan"} == {
        f"{rewards}:unsure: it returned nan"
    }


def test_an_ungraded_rollout_is_in_no_pair_and_has_advantage_0() -> None:
    """Rewards 1, 0 and none: the mean is 1/2, the deviation 1/2."""
    from nemo_tapo.algorithms.grpo import GRPO
    from nemo_tapo.equations.selection import select_pairs
    from nemo_tapo.types import Completion, Experience, Group, Rollout

    query = Query("7", "47+38=?", "85")
    outcomes = (Grade(1.0, "right"), Grade(0.0, "no_reward_nan"), Grade(0.0, "wrong"))
    rollouts = tuple(Rollout(query, k, Completion((k,), "", False), g) for k, g in enumerate(outcomes))
    group = Group(query, rollouts)
    assert [p.wrong.index for p in select_pairs(group, 1, 1, 4, 0, 0)] == [2]
    algorithm = GRPO(validate({"algorithm": "grpo", "loss": {"advantage_eps": 0}}), None)  # type: ignore[arg-type]
    rows = algorithm.make_rows(Experience((group, Group(query, rollouts[:2]), Group(query, rollouts[1:2]))))
    assert [row.advantage for row in rows] == [1.0, 0.0, -1.0, 0.0, 0.0, 0.0]


def test_a_resumed_run_is_told_that_its_reward_has_changed(tmp_path: Path, rewards: str) -> None:
    settings = (f"task.reward={rewards}:answer", f"output={tmp_path / 'run'}")
    train(tmp_path / "run", *settings, "checkpoint.every=1")
    Path(rewards).write_text(REWARDS + "\n# another version\n")
    again = nemo_tapo("train", "--config", str(CONFIG), *SMALL, *settings, "checkpoint.every=1")
    assert again.returncode == 2
    assert f"belongs to a run with other settings (the code of {rewards}:answer: " in again.stderr


def test_without_rewards_the_settings_that_decide_the_numbers_are_as_they_were() -> None:
    names = rl_fingerprint(validate({}))
    assert not [name for name in names if ("reward" in name and names[name] is not None) or "grading" in name]
    assert validate({}).grading_identity == {}


@pytest.mark.parametrize(
    ("settings", "sentence"),
    [
        (["task.name=custom"], "task: name = custom needs a class: set target"),
        (["task.target=x.py:Kind"], "task: target and arguments are of a custom task, but name = arithmetic"),
        (["task.name=custom", "task.target=gone.py:Kind"], "task.target = gone.py:Kind: there is no file gone.py."),
        (["task.name=custom", "task.target=FILE:Gone"], "task.target = FILE:Gone: FILE has no Gone."),
        (["task.name=custom", "task.target=FILE:NUMBER"], "task.target = FILE:NUMBER is no class."),
        (
            ["task.name=custom", "task.target=FILE:Half"],
            "task.target = FILE:Half has no benchmarks and no grade: a task has train_queries(), benchmarks() and",
        ),
        (["task.name=custom", "task.target=FILE:Fussy"], "task.target = FILE:Fussy: Fussy() failed: TypeError: "),
        (["task.name=custom", "task.target=FILE:Broken"], "task.target = FILE:Broken: train_queries() failed: "),
        (
            ["task.name=custom", "task.target=FILE:Texts"],
            "task.target = FILE:Texts: train_queries() has to be a list of nemo_tapo.types.Query (str among them).",
        ),
        (["task.reward=FILE:gone"], "task.reward = FILE:gone: FILE has no gone."),
        (["task.reward=FILE:one"], "task.reward = FILE:one takes (response); it is called with (response, query)."),
        (["task.reward=FILE"], "task.reward = FILE names no function or class"),
        (["task.reward=a.py:f", "task.rewards.b.target=a.py:f"], "task: reward and rewards are both set"),
        (["task.rewards.a.weight=0"], "task.rewards.a.weight: Input should be greater than 0"),
    ],
)  # fmt: skip
def test_what_cannot_work_is_one_sentence_before_anything_starts(
    tmp_path: Path, settings: list[str], sentence: str
) -> None:
    file = tmp_path / "file.py"
    file.write_text(
        "NUMBER = 5\ndef one(response): return 1\n"
        "class Half:\n    def train_queries(self): return []\n"
        "class Whole(Half):\n    def benchmarks(self): return {}\n    def grade(self, query, response): return 1\n"
        "class Fussy(Whole):\n    def __init__(self, size): pass\n"
        "class Broken(Whole):\n    def train_queries(self): raise OSError('gone')\n"
        "class Texts(Whole):\n    def train_queries(self): return ['a', 'b']\n"
    )
    given = [each.replace("FILE", str(file)) for each in settings]
    done = nemo_tapo("train", "--config", str(CONFIG), *SMALL, f"output={tmp_path / 'run'}", *given)
    assert done.returncode == 2
    assert done.stderr.startswith(f"nemo-tapo: {sentence.replace('FILE', str(file))}"), done.stderr
    assert done.stderr.count("\n") == 1 and not (tmp_path / "run").exists()


@pytest.mark.parametrize("how", ["async ", ""])
def test_an_own_grade_may_be_asynchronous_and_may_fail(tmp_path: Path, how: str) -> None:
    file = tmp_path / "own.py"
    file.write_text(
        "from nemo_tapo.types import Query\n"
        "class Own:\n"
        "    def train_queries(self): return [Query('a', 'Say a.', 'a')]\n"
        "    def benchmarks(self): return {}\n"
        f"    {how}def grade(self, query, response):\n"
        "        if response == 'x': raise ValueError('no x, please')\n"
        "        return 0.5 * (query.answer in response)\n"
    )
    task = make_task(TaskConfig(name="custom", target=f"{file}:Own"), seed=0)
    query, = task.train_queries()  # fmt: skip
    found = [asyncio.run(task.grade(query, response)) for response in ("a", "b", "x")]
    task.close()
    assert [(g.reward, g.outcome, g.detail) for g in found] == [
        (0.5, "right", ""), (0.0, "wrong", ""), (0.0, "no_reward_raised", "ValueError: no x, please"),
    ]  # fmt: skip
    assert (task.provenance("train").source, task.row(query), task.locate_error(query, "b")) == (
        f"{file}:Own",
        {},
        None,
    )


def test_a_dry_run_shows_what_grades(tmp_path: Path, rewards: str, sums: str) -> None:
    settings = (f"task.rewards.answer.target={rewards}:answer", "task.rewards.own.weight=3",
                "task.name=custom", f"task.target={sums}", "task.arguments.number=16")  # fmt: skip
    done = nemo_tapo("train", "--config", str(CONFIG), *SMALL, *settings, "--dry-run")
    assert done.returncode == 0, done.stderr
    assert f"train: 16 queries of {sums}" in done.stdout
    assert f"reward answer: {rewards}:answer, 25% of the reward, at most 5 s" in done.stdout
    assert "reward own: the task's own verdict, 75% of the reward" in done.stdout
