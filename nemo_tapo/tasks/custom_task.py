"""A user's class as an `interfaces.Task`: `task.name=custom task.target=path/to/file.py:Class` (docs/tasks.md).

The class has `train_queries`, `benchmarks` and `grade`; whatever else a Task has is taken from it where it is there. A
plain `grade` runs in processes that can be killed, each with an object of its own; an `async` one in this process.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping, Sequence
from typing import Any

from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.grading.calls import FunctionSpec, is_asynchronous, make_object, require_two_arguments
from nemo_tapo.grading.user_grader import UserGrader, call_here
from nemo_tapo.tasks.prompts import ERROR_QUOTE, FULL_PROMPT, QUOTING_PROMPT, SYNTHESIS_PROMPT
from nemo_tapo.types import Grade, Provenance, Query
from nemo_tapo.utils.user_code import describe_error, hash_code, load_object

KEY, SEED = "task.target", "seed"
REQUIRED_METHODS = ("train_queries", "benchmarks", "grade")


class CustomTask:
    """The task of a user's class."""

    def __init__(self, cfg: TaskConfig, seed: int) -> None:
        """Make the object; it is given the run's seed where it takes one. Raises ValueError with a sentence."""
        assert cfg.target is not None, "config/sections.py insists"
        self.target = cfg.target
        kind = load_object(cfg.target, KEY)
        require_methods(kind, cfg.target)
        arguments = dict(cfg.arguments)
        if takes_seed(kind):
            arguments.setdefault(SEED, seed)
        spec = FunctionSpec(KEY, cfg.target, True, arguments, hash_code(cfg.target, KEY))
        self.made = make_object(kind, spec)
        require_two_arguments(self.made.grade, spec, "grade(query, response)")
        self.synthesis_prompt = str(getattr(self.made, "synthesis_prompt", SYNTHESIS_PROMPT))
        self.full_prompt = str(getattr(self.made, "full_prompt", FULL_PROMPT))
        self.quoting_prompt = str(getattr(self.made, "quoting_prompt", QUOTING_PROMPT))
        self.error_quote = str(getattr(self.made, "error_quote", ERROR_QUOTE))
        self._deadline = cfg.grading.deadline
        self._grader = None if is_asynchronous(self.made.grade) else UserGrader(cfg.grading, [spec])
        self._sizes: dict[str, int] = {}

    def train_queries(self) -> Sequence[Query]:
        """Return the class's training queries."""
        return self._read_queries("train_queries()", "train", self._call("train_queries"))

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the class's evaluation sets."""
        sets = self._call("benchmarks")
        if not isinstance(sets, Mapping):
            raise ValueError(f"{KEY} = {self.target}: benchmarks() returned no mapping of names to queries.")
        return {str(n): self._read_queries(f"benchmarks()[{n!r}]", str(n), queries) for n, queries in sets.items()}

    def provenance(self, name: str) -> Provenance:
        """Return what the class says of a set; else the target and the number of queries."""
        if hasattr(self.made, "provenance"):
            return self.made.provenance(name)  # type: ignore[no-any-return]
        return Provenance(self.target, self._sizes[name])

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return what the class says of a query's row; else the row that the query carries."""
        return self.made.row(query) if hasattr(self.made, "row") else query.row

    def locate_error(self, query: Query, response: str) -> int | None:
        """Return where the class finds the first error; None if it cannot tell."""
        return self.made.locate_error(query, response) if hasattr(self.made, "locate_error") else None

    async def grade(self, query: Query, response: str) -> Grade:
        """Grade by the class, within the deadline."""
        if self._grader is None:
            return await call_here(self.made.grade, (query, response), self._deadline)
        return await self._grader.grade(0, query, response)

    def close(self) -> None:
        """End the processes, and what the class has started."""
        if self._grader is not None:
            self._grader.close()
        if hasattr(self.made, "close"):
            self.made.close()

    def _call(self, method: str) -> Any:
        try:
            return getattr(self.made, method)()
        except Exception as error:
            raise ValueError(f"{KEY} = {self.target}: {method}() failed: {describe_error(error)}.") from error

    def _read_queries(self, where: str, name: str, found: Any) -> list[Query]:
        """Return a set as a list. Raises ValueError if it is empty or holds something else than queries."""
        queries = list(found) if isinstance(found, Sequence) and not isinstance(found, str) else []
        others = [type(each).__name__ for each in queries if not isinstance(each, Query)]
        if others or not queries:
            what = f"{others[0]} among them" if others else f"{type(found).__name__}, or an empty one"
            raise ValueError(f"{KEY} = {self.target}: {where} has to be a list of nemo_tapo.types.Query ({what}).")
        self._sizes[name] = len(queries)
        return queries


def require_methods(kind: Any, target: str) -> None:
    """Raise ValueError unless `kind` is a class with the methods of a task."""
    if not inspect.isclass(kind):
        raise ValueError(f"{KEY} = {target} is no class.")
    missing = [name for name in REQUIRED_METHODS if not callable(getattr(kind, name, None))]
    if missing:
        raise ValueError(
            f"{KEY} = {target} has no {' and no '.join(missing)}: a task has train_queries(), benchmarks() "
            "and grade(query, response)."
        )


def takes_seed(kind: type) -> bool:
    """Return True if a class can be called with `seed`."""
    try:
        return SEED in inspect.signature(kind).parameters
    except (TypeError, ValueError):
        return False
