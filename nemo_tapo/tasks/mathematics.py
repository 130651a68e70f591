"""Mathematics with a checkable final answer as an `interfaces.Task`: data sets, prompt template, verifier."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.config.sections import DatasetConfig, MathematicsConfig
from nemo_tapo.datasets import screening
from nemo_tapo.datasets.read import DataRow, LoadedDataset, read_dataset
from nemo_tapo.datasets.sets import TRAIN, get_benchmark_sets, get_config_key, get_train_set
from nemo_tapo.grading.verifier import Verifier
from nemo_tapo.tasks.prompts import ERROR_QUOTE, FULL_PROMPT, QUOTING_PROMPT, SYNTHESIS_PROMPT
from nemo_tapo.types import Grade, Provenance, Query, SetAside


class MathematicsTask:
    """Mathematics problems from data sets. Each set is read and screened at its first use, and then kept."""

    synthesis_prompt, full_prompt = SYNTHESIS_PROMPT, FULL_PROMPT
    quoting_prompt, error_quote = QUOTING_PROMPT, ERROR_QUOTE

    def __init__(self, cfg: MathematicsConfig, screen_answers: bool = True) -> None:
        """Store the settings. Nothing is read and no process starts before the first use.

        `screen_answers`: set rows aside whose answer the verifier cannot work with.
        """
        self.cfg, self.screen_answers = cfg, screen_answers
        self.verifier = Verifier(cfg.verifier)
        self._sets: dict[str, LoadedDataset] = {}
        self._rows: dict[str, Mapping[str, Any]] = {}

    def train_queries(self) -> Sequence[Query]:
        """Return the training set after screening. Raises ValueError if none is configured or it cannot be read."""
        loaded = self._load_screened(TRAIN, get_train_set(self.cfg))
        self._rows = {e.uid: e.raw for e in reversed(loaded.rows)}  # of several equal uids the first is used
        return self._make_queries(loaded)

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return each configured benchmark after screening.

        Raises ValueError if none is configured or one cannot be read.
        """
        return {
            name: self._make_queries(self._load_screened(name, cfg))
            for name, cfg in get_benchmark_sets(self.cfg).items()
        }

    def provenance(self, name: str) -> Provenance:
        """Return the provenance of a set that `train_queries` or `benchmarks` has read before."""
        return self._sets[name].provenance

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return the training row as it was read."""
        return self._rows[query.uid]

    def locate_error(self, query: Query, response: str) -> int | None:
        """Return None: nothing but the final answer is checked."""
        return None

    async def grade(self, query: Query, response: str) -> Grade:
        """Grade `response` in the verifier's processes."""
        return await self.verifier.grade(query.answer, response)

    def close(self) -> None:
        """End the verifier's processes."""
        self.verifier.close()

    def _make_queries(self, loaded: LoadedDataset) -> list[Query]:
        prompt = self.cfg.prompt
        return [
            Query(e.uid, e.question, e.answer, prompt=fill_template(prompt, e.question), solution=e.solution, row=e.raw)
            for e in loaded.rows
        ]

    def _load_screened(self, name: str, cfg: DatasetConfig) -> LoadedDataset:
        if name not in self._sets:
            loaded = read_dataset(cfg, name, get_config_key(name))
            examples: Sequence[DataRow] = loaded.rows
            ungradable: Sequence[SetAside] = ()
            if self.screen_answers:
                examples, ungradable = screening.drop_ungradable(examples, self.verifier.find_gold_faults)
            examples, doubles = screening.drop_duplicates(examples)
            set_aside = [*loaded.provenance.set_aside, *ungradable, *doubles]
            if name == TRAIN and self.cfg.exclude_benchmarks:
                examples, known = screening.drop_benchmark_problems(examples, self._benchmark_examples())
                set_aside += known
            self._sets[name] = LoadedDataset(tuple(examples), replace(loaded.provenance, set_aside=tuple(set_aside)))
        return self._sets[name]

    def _benchmark_examples(self) -> dict[str, Sequence[DataRow]]:
        return {name: self._load_screened(name, cfg).rows for name, cfg in get_benchmark_sets(self.cfg).items()}


def fill_template(template: str, question: str) -> str:
    r"""Return `template` with the question filled in. All other braces are left as they are; LaTeX has many.

    >>> fill_template(r"{question} Answer in \boxed{}.", "What is 1+1?")
    'What is 1+1? Answer in \\boxed{}.'
    """
    return template.replace("{question}", question)
