r"""Grade answers that are programs: run them against tests in a sandbox, and decide outside of it.

    response -> last code block -> a sandbox for each case -> what it printed, or what its function returned
                     |                                                        |
                 no_answer                          compared here -> right, wrong, failed, timeout, too_much_output

The process with the answer never learns what is expected of it, and has nothing to say but values. Tests that are code
(`assert`) run in a sandbox of their own, which the answer cannot reach: a call that a test makes is passed on, and its
value comes back as plain data (code_host.py). docs/tasks.md shows the forms of tests.
"""

from __future__ import annotations

import ast
import builtins
import json
import re
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from decimal import Decimal
from typing import Any

from nemo_tapo.grading.code_host import decode, encode
from nemo_tapo.grading.sandbox import Isolation, Limits, SandboxedProcess, Stopped
from nemo_tapo.types import RIGHT, WRONG, Grade, Query

LANGUAGES = ("python", "python3", "py")  # tags of a code block; one without a tag counts if there is no other
FREE_OUTPUT = 64 << 10  # bytes that an answer may write beyond twice what is expected
MOST_OUTPUT = 16 << 20
MOST_CALLS = 10_000  # that the tests of one answer may make
_FENCE = re.compile(r" {0,3}(`{3,}|~{3,})[ \t]*([\w+-]*)[^\n`]*")
_NUMBER = re.compile(r"[+-]?\d{1,40}(\.\d{0,40})?|[+-]?\.\d{1,40}")


@dataclass(frozen=True)
class ProgramCase:
    """What a program reads and has to print."""

    given: str
    expected: str


@dataclass(frozen=True)
class CallCase:
    """What a function is called with and has to return."""

    name: str
    arguments: tuple[Any, ...]
    expected: Any


@dataclass(frozen=True)
class AssertTests:
    """Tests that are code. `names` are those of the answer's functions that they use."""

    setup: str
    tests: tuple[str, ...]
    names: tuple[str, ...]


Tests = Sequence[ProgramCase | CallCase] | AssertTests


class CodeTests:
    """A grader of programs; grading/calls.py makes it in a process that can be killed, with the section's settings."""

    def __init__(
        self,
        tests: str | None,
        entry_point: str | None,
        share: bool,
        seconds: int,
        answer_seconds: float,
        memory_mib: int,
        isolation: Isolation,
    ) -> None:
        self.tests, self.entry_point, self.share = tests, entry_point, share
        self.seconds, self.answer_seconds, self.memory = seconds, answer_seconds, memory_mib << 20
        self.isolation: Isolation = isolation

    def grade(self, query: Query, response: str) -> Grade:
        """Grade one response. Raises ValueError with a sentence if the query's tests cannot be read.

        Outcomes: `right`; `wrong`: a test is not passed; `failed`: it ended with an exception or an exit code;
        `timeout`: it took too long; `too_much_output`; `no_answer`: no code block. The reward is 1 for `right`, or
        with `share` the share of the tests that are passed, and else 0.
        """
        tests = read_tests(query, self.tests, self.entry_point)
        program = extract_program(response)
        if program is None:
            return Grade(0.0, "no_answer")
        until = time.monotonic() + self.answer_seconds
        results: list[str] = []
        for result in self._run_tests(tests, program):
            results.append(result)
            if result != RIGHT and not self.share:
                break
            if time.monotonic() > until:
                results.append("timeout")
                break
        total = len(tests.tests if isinstance(tests, AssertTests) else tests)
        passed = results.count(RIGHT)
        if passed == total:
            return Grade(1.0, RIGHT, program)
        first = next((result for result in results if result != RIGHT), "timeout")
        return Grade(passed / total if self.share else 0.0, first, program)

    def _run_tests(self, tests: Tests, program: str) -> Iterator[str]:
        """Yield the outcome of each test as it is run."""
        if isinstance(tests, AssertTests):
            yield from self._run_asserts(tests, program)
        else:
            yield from (self._run_case(case, program) for case in tests)

    def _run_case(self, case: ProgramCase | CallCase, program: str) -> str:
        """Run the answer on one case and return the outcome."""
        try:
            if isinstance(case, ProgramCase):
                with self._start("program", program, len(case.expected.encode())) as process:
                    printed = process.run(case.given.encode("utf-8", "replace"))
                return RIGHT if is_same_output(printed.decode("utf-8", "replace"), case.expected) else WRONG
            with self._start("answer", program, len(json.dumps(encode(case.expected)))) as process:
                reply = json.loads(process.ask(_make_call(case.name, case.arguments, {})))
        except Stopped as stopped:
            return stopped.reason
        except (ValueError, RecursionError):  # no JSON: the answer wrote it itself
            return "failed"
        if not isinstance(reply, dict) or "value" not in reply:
            return "failed"
        try:
            return RIGHT if is_same_value(decode(reply["value"]), case.expected) else WRONG
        except Exception:  # whatever it is, it concerns this answer only
            return "failed"

    def _run_asserts(self, tests: AssertTests, program: str) -> Iterator[str]:
        """Run tests that are code in one sandbox and the answer in another; yield the outcome of each test."""
        asked = {"setup": tests.setup, "tests": tests.tests, "names": tests.names}
        try:
            with self._start("tests", None) as judge, self._start("answer", program) as answer:
                line = judge.ask(json.dumps(asked).encode() + b"\n")
                for _ in range(MOST_CALLS):
                    message = json.loads(line)
                    if "results" in message:
                        yield from (WRONG if why else RIGHT for why in message["results"])
                        return
                    reply = answer.ask(_make_line(message["name"], message["args"], message["kwargs"]))
                    line = judge.ask(reply + b"\n")
        except Stopped as stopped:
            yield stopped.reason
        except (ValueError, KeyError, TypeError, RecursionError):  # one of the two wrote something of its own
            yield "failed"
        else:
            yield "timeout"

    def _start(self, role: str, program: str | None, expected: int = MOST_OUTPUT // 4) -> SandboxedProcess:
        """Start a process that may write twice as much as is expected, and a bit more."""
        output = min(2 * expected + FREE_OUTPUT, MOST_OUTPUT)
        return SandboxedProcess(role, program, Limits(self.seconds, self.memory, output), self.isolation)


def _make_call(name: str, args: tuple[Any, ...], kwargs: Mapping[str, Any]) -> bytes:
    return _make_line(name, encode(args), encode(dict(kwargs)))


def _make_line(name: str, args: Any, kwargs: Any) -> bytes:
    return json.dumps({"name": name, "args": args, "kwargs": kwargs}).encode() + b"\n"


# ---- the answer ------------------------------------------------------------------------------------------------------


def extract_program(response: str) -> str | None:
    r"""Return the last fenced block of Python in a response; the last block without a tag if none is Python's.

    >>> extract_program("So:\n```python\nprint(1)\n```\nIt prints\n```\n1\n```\n")
    'print(1)\n'
    >>> extract_program("print(1)") is None
    True
    """
    found: dict[bool, str] = {}
    fence, tag, lines = "", "", list[str]()
    for line in response.splitlines():
        opened = _FENCE.fullmatch(line)
        if not fence:
            if opened:
                fence, tag, lines = opened[1], opened[2].lower(), []
        elif opened and not opened[2] and opened[1].startswith(fence):
            if tag in LANGUAGES or not tag:
                found[bool(tag)] = "".join(f"{each}\n" for each in lines)
            fence = ""
        else:
            lines.append(line)
    return found.get(True, found.get(False))


# ---- the tests -------------------------------------------------------------------------------------------------------


def read_tests(query: Query, field: str | None, entry_point: str | None = None) -> Tests:
    """Return a query's tests, from a field of its row or, without one, from its answer. Raises ValueError."""
    if field is not None and field not in query.row:
        raise ValueError(f"the row has no field {field}; it has {', '.join(query.row) or 'none'}")
    if entry_point is not None and entry_point not in query.row:
        raise ValueError(f"the row has no field {entry_point}; it has {', '.join(query.row) or 'none'}")
    value: Any = query.answer if field is None else query.row[field]
    if entry_point is not None:
        return make_assert_tests("", [f"{value}\ncheck({query.row[entry_point]})"])
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError:
            return make_assert_tests("", [value])
    return parse_tests(value)


def parse_tests(value: Any) -> Tests:
    """Return the tests that a value of JSON describes. Raises ValueError for one that describes none.

    >>> parse_tests([{"input": "2 3", "output": "5"}])
    [ProgramCase(given='2 3', expected='5')]
    >>> parse_tests({"fn_name": "add", "inputs": [[2, 3]], "outputs": [5]})
    [CallCase(name='add', arguments=(2, 3), expected=5)]
    >>> parse_tests(["assert add(2, 3) == 5"]).names
    ('add',)
    """
    if isinstance(value, Mapping) and "tests" in value:
        return make_assert_tests(str(value.get("setup") or ""), _require_list(value["tests"], "tests"))
    if isinstance(value, Mapping):
        inputs, outputs = (_require_list(value.get(name), name) for name in ("inputs", "outputs"))
        if len(inputs) != len(outputs):
            raise ValueError(f"the tests have {len(inputs)} inputs and {len(outputs)} outputs")
        name = value.get("fn_name")
        if name:
            return [
                CallCase(str(name), tuple(_require_list(args, "inputs")), expected)
                for args, expected in zip(inputs, outputs, strict=True)
            ]
        return [_make_program_case(given, expected) for given, expected in zip(inputs, outputs, strict=True)]
    tests = _require_list(value, "tests")
    if all(isinstance(each, str) for each in tests):
        return make_assert_tests("", tests)
    if not all(isinstance(each, Mapping) and {"input", "output"} <= each.keys() for each in tests):
        raise ValueError('the tests are neither texts nor {"input": ..., "output": ...}')
    if any(each.get("testtype") == "functional" for each in tests):
        raise ValueError('tests of a function have to be {"fn_name": ..., "inputs": ..., "outputs": ...}')
    return [_make_program_case(each["input"], each["output"]) for each in tests]


def make_assert_tests(setup: str, tests: Sequence[Any]) -> AssertTests:
    """Return tests that are code, with the names that they take from the answer. Raises ValueError for no Python."""
    used: set[str] = set()
    own: set[str] = set(dir(builtins))
    asserts = 0
    for number, code in enumerate((setup, *tests)):
        try:
            tree = ast.parse(code)
        except (SyntaxError, TypeError, ValueError, RecursionError, MemoryError) as error:
            raise ValueError(f"test {number} is no Python: {error}") from None
        for node in ast.walk(tree):
            asserts += isinstance(node, ast.Assert)
            if isinstance(node, ast.Name):
                (used if isinstance(node.ctx, ast.Load) else own).add(node.id)
            elif isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef)):
                own.add(node.name)
            elif isinstance(node, ast.arg):
                own.add(node.arg)
            elif isinstance(node, ast.alias):
                own.add((node.asname or node.name).partition(".")[0])
            elif isinstance(node, ast.ExceptHandler) and node.name:
                own.add(node.name)
    names = tuple(sorted(used - own))
    if not names or not asserts:
        raise ValueError("the tests have no assert" if names else "the tests call no function of the answer's")
    return AssertTests(setup, tuple(tests), names)


def _make_program_case(given: Any, expected: Any) -> ProgramCase:
    if not isinstance(given, str) or not isinstance(expected, str):
        raise ValueError("input and output of a program have to be texts")
    return ProgramCase(given, expected)


def _require_list(value: Any, name: str) -> list[Any]:
    if not isinstance(value, list) or not value:
        raise ValueError(f"the {name} are no list, or an empty one")
    return value


# ---- to compare ------------------------------------------------------------------------------------------------------


def is_same_output(printed: str, expected: str) -> bool:
    r"""Compare line by line, word by word, without blank lines at the end; 0.50 and 0.5 are the same number.

    >>> is_same_output("1 2 \n0.50\n\n", "1 2\n0.5"), is_same_output("1\n2", "1 2")
    (True, False)
    """
    ours, theirs = ([line.split() for line in text.rstrip().splitlines()] for text in (printed, expected))
    return len(ours) == len(theirs) and all(map(_is_same_line, ours, theirs))


def _is_same_line(ours: list[str], theirs: list[str]) -> bool:
    return len(ours) == len(theirs) and all(a == b or _is_same_number(a, b) for a, b in zip(ours, theirs, strict=True))


def _is_same_number(ours: str, theirs: str) -> bool:
    return bool(_NUMBER.fullmatch(ours) and _NUMBER.fullmatch(theirs)) and Decimal(ours) == Decimal(theirs)


def is_same_value(value: Any, expected: Any) -> bool:
    """Compare what a function returned with a value of JSON, which has no tuples: they count as lists.

    >>> is_same_value([(1, 2)], [[1, 2]]), is_same_value(True, 1), is_same_value(2.0, 2)
    (True, False, True)
    """
    if isinstance(expected, list):
        fits = isinstance(value, (list, tuple)) and len(value) == len(expected)
        return fits and all(map(is_same_value, value, expected))
    if isinstance(expected, dict):
        fits = isinstance(value, dict) and value.keys() == expected.keys()
        return fits and all(is_same_value(value[key], each) for key, each in expected.items())
    return bool(isinstance(value, bool) == isinstance(expected, bool) and value == expected)
