"""Grade any task's responses by a user's functions instead of its own verdict: `task.reward`, `task.rewards`."""

from __future__ import annotations

import asyncio
import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.config.sections import CodeRewardConfig, GradingConfig, TaskConfig
from nemo_tapo.grading.calls import FunctionSpec
from nemo_tapo.grading.code_tests import read_tests
from nemo_tapo.grading.sandbox import WALL_FACTOR, require_isolation
from nemo_tapo.grading.user_grader import UserGrader
from nemo_tapo.interfaces import Task
from nemo_tapo.tasks.judge_reward import JudgeReward
from nemo_tapo.types import RIGHT, WRONG, Grade, Provenance, Query, is_correct
from nemo_tapo.utils.user_code import hash_code


class RewardedTask:
    """A task whose responses are graded by the weighted mean of several rewards; everything else is the task's own."""

    def __init__(self, task: Task, cfg: TaskConfig) -> None:
        """Load the functions. Raises ValueError with a sentence for one that cannot be used."""
        self.task, self.rewards = task, cfg.all_rewards
        self.synthesis_prompt, self.full_prompt = task.synthesis_prompt, task.full_prompt
        self.quoting_prompt, self.error_quote = task.quoting_prompt, task.error_quote
        specs = {name: make_spec(cfg, name) for name, each in self.rewards.items() if each.target is not None}
        self._numbers = {name: number for number, name in enumerate(specs)}
        self._grader = UserGrader(cfg.grading, list(specs.values()))
        self.judges = {
            name: JudgeReward(each.judge, f"task.rewards.{name}.judge")
            for name, each in self.rewards.items()
            if each.judge is not None
        }
        self._code = {name: each.code for name, each in self.rewards.items() if each.code is not None}
        for name, code in self._code.items():
            require_isolation(code.isolation, f"task.rewards.{name}.code")
        self._testers = {name: make_tester(code, cfg.grading, name) for name, code in self._code.items()}

    def train_queries(self) -> Sequence[Query]:
        """Return the task's. Raises ValueError if none has tests that a reward can run."""
        return self._require_tests(self.task.train_queries())

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the task's. Raises ValueError if none of a set has tests that a reward can run."""
        return {name: self._require_tests(queries) for name, queries in self.task.benchmarks().items()}

    def provenance(self, name: str) -> Provenance:
        """Return the task's."""
        return self.task.provenance(name)

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return the task's."""
        return self.task.row(query)

    def locate_error(self, query: Query, response: str) -> int | None:
        """Ask the task."""
        return self.task.locate_error(query, response)

    async def grade(self, query: Query, response: str) -> Grade:
        """Return the weighted mean of the rewards; one that gives none leaves the response without a grade."""
        grades = await asyncio.gather(*(self._grade_by(name, query, response) for name in self.rewards))
        weights = [each.weight for each in self.rewards.values()]
        return combine_grades(dict(zip(self.rewards, grades, strict=True)), weights)

    async def check_judges(self) -> None:
        """Raise EndpointError or ValueError with a sentence unless every judge's server answers."""
        for judge in self.judges.values():
            await judge.check_server()

    def close(self) -> None:
        """End the functions' processes and the task's."""
        for tester in self._testers.values():
            tester.close()
        self._grader.close()
        self.task.close()

    def _require_tests(self, queries: Sequence[Query]) -> Sequence[Query]:
        """Return `queries`. Raises ValueError if not one has tests; single ones are `no_reward_raised`."""
        for name, code in self._code.items():
            first = ""
            for query in queries:
                try:
                    read_tests(query, code.tests, code.entry_point)
                    break
                except ValueError as error:
                    first = first or f"{query.uid}: {error}"
            else:
                raise ValueError(f"task.rewards.{name}.code: no query has tests that can be run; the first, {first}.")
        return queries

    async def _grade_by(self, name: str, query: Query, response: str) -> Grade:
        if name in self.judges:
            return await self.judges[name].grade(query, response)
        if name in self._testers:
            return await self._testers[name].grade(0, query, response)
        if name not in self._numbers:
            return await self.task.grade(query, response)
        grade = await self._grader.grade(self._numbers[name], query, response)
        return grade if grade.graded else replace(grade, detail=f"{self.rewards[name].target}: {grade.detail}")


def make_tester(code: CodeRewardConfig, cfg: GradingConfig, name: str) -> UserGrader:
    """Return the grader of programs. It limits each answer itself; its own deadline is for when that does not work."""
    key = f"task.rewards.{name}.code"
    spec = FunctionSpec(key, "nemo_tapo.grading.code_tests:CodeTests", True, code.model_dump())
    deadline = code.answer_seconds + 3 * WALL_FACTOR * code.seconds
    return UserGrader(cfg.model_copy(update={"deadline": deadline}), [spec])


def make_spec(cfg: TaskConfig, name: str) -> FunctionSpec:
    """Return what names the function of a reward."""
    key = "task.reward" if cfg.reward is not None else f"task.rewards.{name}.target"
    target = cfg.all_rewards[name].target
    assert target is not None
    return FunctionSpec(key, target, digest=hash_code(target, key))


def combine_grades(grades: Mapping[str, Grade], weights: Sequence[float]) -> Grade:
    """Return the weighted mean of grades, by the rewards' names. A single one stays what it is.

    The weights are divided by their sum, so that the mean of rewards from 0 to 1 is from 0 to 1.

    >>> parts = {"answer": Grade(1.0, "right", "85"), "format": Grade(0.0, "wrong")}
    >>> combine_grades(parts, [3, 1]).reward
    0.75
    >>> combine_grades(parts | {"format": Grade(0.0, "no_reward_nan", detail="it returned nan")}, [3, 1]).outcome
    'no_reward_nan'
    """
    if len(grades) == 1:
        return next(iter(grades.values()))
    failed = next((grade for grade in grades.values() if not grade.graded), None)
    if failed is not None:
        return failed
    pairs = zip(weights, grades.values(), strict=True)
    reward = min(math.fsum(weight * grade.reward for weight, grade in pairs) / math.fsum(weights), 1.0)
    answer = next((grade.answer for grade in grades.values() if grade.answer is not None), None)
    return Grade(reward, RIGHT if is_correct(reward) else WRONG, answer)
