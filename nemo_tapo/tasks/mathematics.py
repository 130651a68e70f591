"""Mathematics with a checkable final answer as a Task: data sets, a prompt template, the verifier's processes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.config.sections import DatasetConfig, MathematicsConfig
from nemo_tapo.datasets import screening
from nemo_tapo.datasets.read import Example, Loaded, read
from nemo_tapo.datasets.sets import TRAIN, benchmark_sets, setting, train_set
from nemo_tapo.grading.verifier import Verifier
from nemo_tapo.tasks.prompts import FULL_PROMPT, PROMPT
from nemo_tapo.types import Grade, Provenance, Query


class MathematicsTask:
    """Sets are read when they are first asked for, screened once, and then kept."""

    synthesis_prompt, full_prompt = PROMPT, FULL_PROMPT

    def __init__(self, cfg: MathematicsConfig) -> None:
        """Raises nothing; starts nothing before there is something to read or to grade."""
        self.cfg = cfg
        self.verifier = Verifier(cfg.verifier)
        self._sets: dict[str, Loaded] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}

    def train_queries(self) -> Sequence[Query]:
        """The training set after screening. Raises ValueError if none is configured or it cannot be read."""
        loaded = self._screened(TRAIN, train_set(self.cfg))
        self._rows = {e.uid: e.row for e in reversed(loaded.examples)}  # of equal uids the first is used
        return self._queries(loaded)

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Each configured benchmark after screening. Raises ValueError if there is none or one cannot be read."""
        return {name: self._queries(self._screened(name, cfg)) for name, cfg in benchmark_sets(self.cfg).items()}

    def provenance(self, name: str) -> Provenance:
        """Of a set that was asked for."""
        return self._sets[name].provenance

    def row(self, query: Query) -> Mapping[str, Any]:
        """The training row as read."""
        return self._rows[query.uid]

    async def grade(self, query: Query, response: str) -> Grade:
        """The verdict of the verifier's processes."""
        return await self.verifier.grade(query.answer, response)

    def close(self) -> None:
        """Ends the verifier's processes."""
        self.verifier.close()

    def _queries(self, loaded: Loaded) -> list[Query]:
        prompt = self.cfg.prompt
        return [
            Query(e.uid, e.question, e.answer, prompt=fill(prompt, e.question), solution=e.solution)
            for e in loaded.examples
        ]

    def _screened(self, name: str, cfg: DatasetConfig) -> Loaded:
        if name not in self._sets:
            loaded = read(cfg, name, setting(name))
            examples, ungradable = screening.drop_ungradable(loaded.examples, self.verifier.gold_faults)
            examples, doubles = screening.drop_duplicates(examples)
            aside = [*loaded.provenance.set_aside, *ungradable, *doubles]
            if name == TRAIN and self.cfg.exclude_benchmarks:
                examples, known = screening.drop_benchmark_problems(examples, self._benchmark_examples())
                aside += known
            self._sets[name] = Loaded(tuple(examples), replace(loaded.provenance, set_aside=tuple(aside)))
        return self._sets[name]

    def _benchmark_examples(self) -> dict[str, Sequence[Example]]:
        return {name: self._screened(name, cfg).examples for name, cfg in benchmark_sets(self.cfg).items()}


def fill(template: str, question: str) -> str:
    """`template` with the question in it. Every other brace is text: LaTeX is full of them."""
    return template.replace("{question}", question)
