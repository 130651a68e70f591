"""Call a user's reward functions: what a grader does with a question, and what a value that is no reward is counted as.

A function takes (response, query) and returns a number from 0 to 1, or a `Grade` with such a reward. Anything else is
no reward: one of REASONS, never 0.
"""

from __future__ import annotations

import asyncio
import inspect
import json
import math
import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from typing import Any

from nemo_tapo.types import NO_REWARD, RIGHT, WRONG, Grade, Query, is_correct
from nemo_tapo.utils.user_code import describe_error, hash_code, load_object

REASONS = ("raised", "timeout", "died", "none", "nan", "out_of_range", "not_a_number")  # each after NO_REWARD
SHOWN_CHARACTERS = 200  # of a value or an answer that a Grade carries


@dataclass(frozen=True)
class FunctionSpec:
    """What a grader has to call: a function, or the method `grade` of an object that a class makes.

    >>> FunctionSpec("task.reward", "rewards.py:score").is_class
    False
    """

    key: str  # the setting that names it
    target: str  # path/to/file.py:name or package.module:name
    is_class: bool = False
    arguments: Mapping[str, Any] = field(default_factory=dict)  # of the class
    digest: str = ""  # of its file, as it was when the run began; "": not compared


def load_function(spec: FunctionSpec) -> Callable[..., Any]:
    """Import what a spec names and return what is called with (response, query).

    Raises ValueError with a sentence if it is not there, not of the right kind, or has changed since the run began.
    """
    if spec.digest and hash_code(spec.target, spec.key) != spec.digest:
        raise ValueError(f"{spec.key} = {spec.target}: the file has changed since the run began")
    found = load_object(spec.target, spec.key)
    if spec.is_class:
        grade = make_object(found, spec).grade
        return lambda response, query: grade(query, response)
    if not callable(found) or inspect.isclass(found):
        raise ValueError(f"{spec.key} = {spec.target} is no function.")
    require_two_arguments(found, spec, "(response, query)")
    return found  # type: ignore[no-any-return]


def make_object(kind: Any, spec: FunctionSpec) -> Any:
    """Call a class with the arguments of the config. Raises ValueError if it is no class or does not take them."""
    if not inspect.isclass(kind):
        raise ValueError(f"{spec.key} = {spec.target} is no class.")
    try:
        return kind(**spec.arguments)
    except Exception as error:
        given = ", ".join(f"{name}={value!r}" for name, value in spec.arguments.items())
        raise ValueError(
            f"{spec.key} = {spec.target}: {kind.__name__}({given}) failed: {describe_error(error)}."
        ) from None


def require_two_arguments(function: Callable[..., Any], spec: FunctionSpec, wanted: str) -> None:
    """Raise ValueError if a function cannot be called with two arguments."""
    try:
        signature = inspect.signature(function)
    except (TypeError, ValueError):  # built in: it does not say
        return
    try:
        signature.bind("", "")
    except TypeError:
        raise ValueError(f"{spec.key} = {spec.target} takes {signature}; it is called with {wanted}.") from None


def is_asynchronous(function: Callable[..., Any]) -> bool:
    """Return True if calling it gives something to be awaited.

    >>> is_asynchronous(len), is_asynchronous(asyncio.sleep)
    (False, True)
    """
    return inspect.iscoroutinefunction(function) or inspect.iscoroutinefunction(type(function).__call__)


# ---- what a value means ----------------------------------------------------------------------------------------------


def read_grade(value: Any) -> Grade:
    """Make a Grade of what a function returned.

    >>> read_grade(0.5).reward, read_grade(True).reward, read_grade(Grade(0.0, "no_answer")).outcome
    (0.5, 1.0, 'no_answer')
    >>> [read_grade(bad).outcome for bad in (None, float("nan"), 2, "good")]
    ['no_reward_none', 'no_reward_nan', 'no_reward_out_of_range', 'no_reward_not_a_number']
    """
    raw = value.reward if isinstance(value, Grade) else value
    if raw is None:
        return make_failure("none", "it returned None")
    if isinstance(raw, (str, bytes)) or not hasattr(type(raw), "__float__"):
        return make_failure("not_a_number", f"it returned {_show(raw)}")
    try:
        reward = float(raw)
    except Exception:  # an array of several numbers
        return make_failure("not_a_number", f"it returned {_show(raw)}")
    if math.isnan(reward):
        return make_failure("nan", "it returned nan")
    if not 0 <= reward <= 1:
        return make_failure("out_of_range", f"it returned {_show(raw)}, which is not from 0 to 1")
    if not isinstance(value, Grade):
        return Grade(reward, RIGHT if is_correct(reward) else WRONG)
    answer = value.answer if value.answer is None else str(value.answer)[:SHOWN_CHARACTERS]
    return Grade(reward, str(value.outcome), answer, detail=str(value.detail))


def make_failure(reason: str, detail: str) -> Grade:
    """Return the Grade of a response that got no reward.

    >>> make_failure("timeout", "no answer in 5 s").outcome
    'no_reward_timeout'
    """
    assert reason in REASONS, reason
    return Grade(0.0, NO_REWARD + reason, detail=detail)


def _show(value: Any) -> str:
    try:
        text = repr(value)
    except Exception:
        text = type(value).__name__
    text = " ".join(text.split())
    return text if len(text) <= SHOWN_CHARACTERS else text[:SHOWN_CHARACTERS] + "…"


# ---- in a grader -----------------------------------------------------------------------------------------------------

_FUNCTIONS: list[Callable[..., Any]] = []  # of this process, by number


def encode_functions(specs: Sequence[FunctionSpec]) -> str:
    """Write specs as an argument of the grader's command line."""
    return json.dumps([asdict(spec) for spec in specs])


def load_functions(text: str) -> None:
    """Load in a grader's fork server what `encode_functions` wrote."""
    _FUNCTIONS[:] = [load_function(FunctionSpec(**spec)) for spec in json.loads(text)]


def encode_call(query: Query, response: str) -> str:
    """Write the arguments of a call. Values that JSON does not have (dates, bytes) become text."""
    shown = ("uid", "question", "answer", "prompt", "solution", "row")
    return json.dumps({"query": {name: getattr(query, name) for name in shown}, "response": response}, default=str)


def answer_call(number: str, call: str) -> str:
    """Call function `number` in a grader and return the grade as JSON. Whatever is raised is the grade's reason."""
    read = json.loads(call)
    random.seed(call)  # the same response has the same reward, in whichever grader
    try:
        value = _FUNCTIONS[int(number)](read["response"], Query(**read["query"]))
        grade = read_grade(asyncio.run(value) if inspect.iscoroutine(value) else value)
    except BaseException as error:
        grade = make_failure("raised", describe_error(error))
    return json.dumps(asdict(grade))
