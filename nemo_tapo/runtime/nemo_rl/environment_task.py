"""NeMo-RL's own data sets and environments as a Task: the `data` and `env` sections of its configuration.

A response is graded as the one assistant turn of a conversation of its own, (query, response): NeMo-RL's environments
grade every assistant turn that they are shown, so what stands in a synthesis prompt must not be one.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.colocation import asked
from nemo_tapo.tasks.prompts import FULL_PROMPT, PROMPT
from nemo_tapo.types import Grade, Provenance, Query

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class Datum:
    """What an environment has to be told of a query."""

    task: str  # NeMo-RL's task name: which environment
    prompt: str  # as its data processor wrote it
    info: Mapping[str, Any]  # extra_env_info: the gold answer, and whatever else the environment wants
    row: Mapping[str, Any]


class EnvironmentTask:
    """`Task` over NeMo-RL's processed data sets and its environment actors, by task name."""

    synthesis_prompt, full_prompt = PROMPT, FULL_PROMPT

    def __init__(
        self, train: Any, validation: Any, environments: Mapping[str, Any], tokenizer: Tokenizer, source: str
    ) -> None:
        """`train`, `validation`: AllTaskProcessedDataset (or None); `source` says where they come from."""
        self._sets = {TRAIN: train} | ({VALIDATION: validation} if validation is not None else {})
        self._environments, self._tokenizer, self._source = dict(environments), tokenizer, source
        self._data: dict[str, Datum] = {}

    def train_queries(self) -> Sequence[Query]:
        """The training set. ValueError if NeMo-RL prompts otherwise than this package (see `_check_prompt`)."""
        return self._queries(TRAIN)

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """The validation set, if there is one."""
        return {name: self._queries(name) for name in self._sets if name != TRAIN}

    def provenance(self, name: str) -> Provenance:
        """All rows are queries."""
        return Provenance(self._source, len(self._sets[name]))

    def row(self, query: Query) -> Mapping[str, Any]:
        """As NeMo-RL's data set has it."""
        return self._data[query.uid].row

    async def grade(self, query: Query, response: str) -> Grade:
        """The environment's reward. RuntimeFailure if it is lost; ValueError if it gives several rewards."""
        datum = self._data[query.uid]
        log = [{"role": "user", "content": datum.prompt}, {"role": "assistant", "content": response}]
        step = self._environments[datum.task].step.remote([log], [dict(datum.info)])
        _, _, _, rewards, _, answers = await asked(step, f"the environment of {datum.task}")
        if isinstance(rewards, Mapping):
            raise ValueError(f"the environment of {datum.task} gives several rewards; TAPO needs one, right or wrong.")
        reward = float(rewards[0])
        return Grade(reward, "right" if reward > 0 else "wrong", answers[0] if answers else None)

    def close(self) -> None:
        """Ends the environments with their workers. A second call does nothing."""
        import ray

        environments, self._environments = set(self._environments.values()), {}
        for environment in environments:
            ray.get(environment.shutdown.remote())
            ray.kill(environment)

    def _queries(self, name: str) -> list[Query]:
        queries = []
        for i in range(len(self._sets[name])):
            query, datum, prompt_ids = self._read(name, i)
            if not i:
                self._check_prompt(query, prompt_ids)
            self._data[query.uid] = datum
            queries.append(query)
        return queries

    def _read(self, name: str, i: int) -> tuple[Query, Datum, tuple[int, ...]]:
        """A row twice: as its publisher wrote it, and as NeMo-RL's processor makes a conversation of it."""
        data = self._sets[name]
        raw, made = dict(data.dataset[i]), data[i]
        task = str(made.get("task_name") or raw.get("task_name"))
        asked_for = raw["messages"][0]["content"] if "messages" in raw else raw["problem"]
        template = data.task_data_processors[task][0].prompt
        prompt = template.format(asked_for) if template else asked_for
        said = made["message_log"]
        ids = tuple(int(token) for message in said for token in message["token_ids"])
        gold = str(made["extra_env_info"].get("ground_truth", "")) or "known to the environment"
        query = Query(f"{task}-{name}-{i}", asked_for, gold, prompt="" if prompt == asked_for else prompt)
        return query, Datum(task, said[-1]["content"], made["extra_env_info"], raw), ids

    def _check_prompt(self, query: Query, theirs: tuple[int, ...]) -> None:
        """The loop renders prompts itself: ValueError if NeMo-RL's processor renders them otherwise."""
        if self._tokenizer.chat(query.user_text) != theirs:
            raise ValueError(
                f"data.{TRAIN}: NeMo-RL's processor renders {query.uid} otherwise than this package, which knows the "
                "question, `prompt_file` and the chat template. Without a `system_prompt_file`, with a processor for "
                "mathematics, and with a prompt shorter than data.max_input_seq_length it does not."
            )


def environment_task(master: Mapping[str, Any], nemo_tokenizer: Any, tokenizer: Tokenizer) -> EnvironmentTask:
    """Reads the data and starts the environments that `data` and `env` name. Ray has to run."""
    data = copy.deepcopy(dict(master["data"]))
    train, validation, environments, more = compat.load("setup_response_data")(
        nemo_tokenizer, data, copy.deepcopy(dict(master["env"]))
    )
    return EnvironmentTask(train, validation, {**environments, **more}, tokenizer, "NeMo-RL's data section")
