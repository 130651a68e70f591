"""Programs as answers: which code is taken, what tests look like, and what counts as passed."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import validate
from nemo_tapo.config.sections import CodeRewardConfig, GradingConfig, RewardConfig, TaskConfig
from nemo_tapo.grading import sandbox
from nemo_tapo.grading.code_tests import (
    CodeTests,
    ProgramCase,
    extract_program,
    is_same_output,
    is_same_value,
    parse_tests,
    read_tests,
)
from nemo_tapo.stages.data_preview import describe_reward
from nemo_tapo.tasks.rewarded_task import RewardedTask, make_tester
from nemo_tapo.types import Grade, Query
from tests.helpers.programs import NEEDS_BUBBLEWRAP, block, grade

ADD = "def add(a, b):\n    return a + b"
SUMS = [{"input": "2 3\n", "output": "5\n"}, {"input": "-1 1", "output": "0"}]
METHOD = "class Solution:\n    def add(self, a, b):\n        return a + b"
RAISES = "try:\n    inv(0)\nexcept ZeroDivisionError:\n    pass\nelse:\n    assert False"
PRINT_SUM = "print(sum(map(int, input().split())))"


@pytest.mark.parametrize(
    ("response", "program"),
    [
        ("```python\na\n```\nor better\n```py\nb\n```", "b\n"),
        ("```\na\n```", "a\n"),
        ("```python\na\n```\nprints\n```\n5\n```", "a\n"),
        ("```python\na\n```\n```text\n5\n```", "a\n"),
        ("~~~~python\n```\na\n~~~\n~~~~", "```\na\n~~~\n"),
        ("  ```Python3\r\na\r\n  ```  ", "a\n"),
        ("```python\na", None),
        ("a = 5", None),
        ("`a`", None),
    ],
)
def test_the_last_block_of_python_is_the_answer(response: str, program: str | None) -> None:
    assert extract_program(response) == program


@pytest.mark.parametrize(
    ("printed", "expected", "same"),
    [
        ("1 2\n", "1 2", True),
        ("1  2 \n\n", "1 2", True),
        ("0.50", "0.5", True),
        ("1e3", "1000", False),
        ("1\n2", "1 2", False),
        ("", "0", False),
        ("Yes", "yes", False),
        ("1" * 5000, "1" * 4999 + "2", False),
    ],
)
def test_output_is_compared_word_by_word(printed: str, expected: str, same: bool) -> None:
    assert is_same_output(printed, expected) is same


def test_values_are_compared_by_value_and_kind() -> None:
    assert is_same_value({"a": (1, [2])}, {"a": [1, [2]]}) and not is_same_value({"a": 1, "b": 2}, {"a": 1})
    assert not is_same_value([1, 2, 3], [1, 2]) and not is_same_value("12", ["1", "2"]) and not is_same_value(1, True)


@pytest.mark.parametrize(
    ("tests", "fault"),
    [
        (5, "the tests are no list"),
        ([], "an empty one"),
        ([{"input": 1, "output": "1"}], "have to be texts"),
        ([{"input": "1"}], "neither texts nor"),
        ([{"input": "1", "output": "1", "testtype": "functional"}], "fn_name"),
        ({"inputs": ["1"], "outputs": []}, "the outputs are no list"),
        ({"inputs": ["1"], "outputs": ["1", "2"]}, "1 inputs and 2 outputs"),
        (["assert add(1, 1) =="], "test 1 is no Python"),
        (["assert 1 + 1 == 2"], "call no function of the answer's"),
        (["add(1, 1)"], "no assert"),
    ],
)
def test_tests_that_cannot_be_run_are_named(tests: Any, fault: str) -> None:
    with pytest.raises(ValueError, match=fault):
        parse_tests(tests)


def test_tests_come_from_the_answer_or_from_a_field() -> None:
    query = Query("7", "?", json.dumps(SUMS), row={"test": "def check(f):\n  assert f(1, 1) == 2", "name": "add"})
    assert read_tests(query, None) == [ProgramCase("2 3\n", "5\n"), ProgramCase("-1 1", "0")]
    asserts = read_tests(query, "test", "name")
    assert asserts.names == ("add",) and asserts.tests[0].endswith("\ncheck(add)")  # type: ignore[union-attr]
    with pytest.raises(ValueError, match="the row has no field hidden; it has test, name"):
        read_tests(query, "hidden")
    with pytest.raises(ValueError, match="test 1 is no Python"):
        read_tests(Query("7", "47+38=?", "85 apples"), None)


@NEEDS_BUBBLEWRAP
@pytest.mark.parametrize(
    ("tests", "program", "outcome"),
    [
        (SUMS, PRINT_SUM, "right"),
        (SUMS, "if __name__ == '__main__':\n    print(sum(map(int, open(0).read().split())))\n    exit()", "right"),
        (SUMS, "print(5)", "wrong"),
        (SUMS, "print(5); raise SystemExit(3)", "failed"),
        (SUMS, "import numpy", "failed"),
        (SUMS, "print(", "failed"),
        ({"fn_name": "add", "inputs": [[2, 3], [[1], [2]]], "outputs": [5, [1, 2]]}, ADD, "right"),
        ({"fn_name": "add", "inputs": [[2, 3]], "outputs": [5]}, METHOD, "right"),
        ({"fn_name": "add", "inputs": [[2, 3]], "outputs": [6]}, ADD, "wrong"),
        ({"fn_name": "sub", "inputs": [[2, 3]], "outputs": [6]}, ADD, "failed"),
        (["assert add(2, 3) == 5", "assert add((1,), (2,)) == (1, 2)"], f"print('hello')\n{ADD}", "right"),
        (["assert add(2, 3) == 5", "assert add(2, b=4) == 5"], ADD, "wrong"),
        ([RAISES], "inv = lambda a: 1 / a", "right"),
        ([RAISES], "inv = lambda a: a", "wrong"),
        ({"setup": "import math", "tests": ["assert math.isclose(root(4), 2)"]}, "root = lambda a: a ** .5", "right"),
        (["assert {1, 2} == seen([1, 2, 2])", "assert seen('') == set()"], "seen = set", "right"),
    ],
)  # fmt: skip
def test_a_program_is_right_if_it_passes_every_test(tests: Any, program: str, outcome: str) -> None:
    found = grade(tests, program)
    assert (found.reward, found.outcome) == (float(outcome == "right"), outcome)


@NEEDS_BUBBLEWRAP
def test_a_share_of_the_tests_is_a_share_of_the_reward() -> None:
    three = [*SUMS, {"input": "1 1", "output": "2"}]
    assert grade(three, "print(5)", share=True) == Grade(1 / 3, "wrong", "print(5)\n")
    asserts = grade(["assert add(1, 1) == 2", "assert add(1, 1) == 3"], ADD, share=True)
    assert (asserts.reward, asserts.outcome) == (0.5, "wrong")


def test_a_response_without_code_has_no_answer() -> None:
    grader = CodeTests(**CodeRewardConfig().model_dump())
    assert grader.grade(Query("7", "?", json.dumps(SUMS)), "print(5)") == Grade(0.0, "no_answer")


@NEEDS_BUBBLEWRAP
def test_an_answer_has_a_limit_of_time_for_all_its_cases() -> None:
    assert grade(SUMS, PRINT_SUM, answer_seconds=1e-9).outcome == "timeout"


@NEEDS_BUBBLEWRAP
def test_a_sandbox_that_does_not_start_is_no_reward_and_no_zero(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "make_arguments", lambda: ["bwrap", "--no-such-option"])
    with pytest.raises(OSError, match=r"the sandbox did not start \(exit code 1\)"):
        grade(SUMS, PRINT_SUM)


@NEEDS_BUBBLEWRAP
def test_the_reward_runs_in_a_grader_and_a_fault_of_the_data_is_counted() -> None:
    tester = make_tester(CodeRewardConfig(tests="tests"), GradingConfig(workers=1), "tests")
    queries = [Query("1", "?", "", row={"tests": SUMS}), Query("2", "?", "", row={"tests": "no test"})]

    async def grade_both() -> list[Grade]:
        return [await tester.grade(0, query, block(PRINT_SUM)) for query in queries]

    try:
        right, broken = asyncio.run(grade_both())
    finally:
        tester.close()
    assert (right.reward, right.outcome) == (1.0, "right")
    assert broken.outcome == "no_reward_raised" and "test 1 is no Python" in broken.detail


# ---- settings, and machines that cannot ------------------------------------------------------------------------------


class Numbers:
    """A task whose answers are numbers."""

    synthesis_prompt = full_prompt = quoting_prompt = error_quote = ""

    def train_queries(self) -> list[Query]:
        return [Query("train-0", "47+38=?", "85")]

    def close(self) -> None:
        pass


def test_data_without_tests_is_refused_before_a_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sandbox, "find_isolation_fault", lambda: None)
    task = RewardedTask(Numbers(), TaskConfig(rewards={"t": {"code": {}}}))  # type: ignore[arg-type]
    with pytest.raises(
        ValueError, match=r"no query has tests that can be run; the first, train-0: the tests are no list"
    ):
        task.train_queries()
    task.close()


@pytest.mark.parametrize(
    ("patches", "fault"),
    [
        ({"sys.platform": "darwin"}, "bubblewrap is for Linux, this is "),
        ({"platform.machine": lambda: "riscv64"}, "the system calls of riscv64 are not known"),
        ({"shutil.which": lambda _: None}, r"bubblewrap \(bwrap\) is not installed .*apt-get install bubblewrap"),
        ({"shutil.which": lambda _: "/bin/false"}, "bubblewrap cannot make a sandbox here .*AppArmor"),
    ],
)
def test_a_machine_without_isolation_refuses_by_name(
    patches: dict[str, Any], fault: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name, value in patches.items():
        monkeypatch.setattr(name, value)
    with pytest.raises(ValueError, match=f"cannot isolate them: {fault}.*isolation=limits"):
        RewardedTask(Numbers(), TaskConfig(rewards={"t": {"code": {}}}))  # type: ignore[arg-type]
    RewardedTask(Numbers(), TaskConfig(rewards={"t": {"code": {"isolation": "limits"}}})).close()  # type: ignore[arg-type]


def test_the_settings(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="target and code are both given; make two rewards of them"):
        RewardConfig(target="a.py:f", code=CodeRewardConfig())
    cfg = validate({"task": {"rewards": {"t": {"code": {"tests": "tests"}}, "own": {}}}}).task
    assert not cfg.rewards["t"].own and cfg.own_verdict
    described = "reward t: programs run in bubblewrap, 50% of the reward, 4 s of processor time a case"
    assert describe_reward("t", cfg) == described
    free = TaskConfig(rewards={"t": {"code": {"isolation": "limits"}}})
    assert "WITHOUT isolation" in describe_reward("t", free)
