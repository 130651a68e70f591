"""NeMo-RL's own data sets and environments as a Task: the `data` and `env` sections of its configuration.

Each response is graded as the only assistant turn of a separate conversation, (query, response). NeMo-RL's environments
grade every assistant turn that they receive, so the responses quoted in a synthesis prompt must not become turns.
"""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.config.translate import Timeouts
from nemo_tapo.runtime.nemo_rl.nemo_calls import CALL_TIMEOUT, CLOSE_TIMEOUT, await_ray, run_in_time
from nemo_tapo.tasks.prompts import ERROR_QUOTE, FULL_PROMPT, QUOTING_PROMPT, SYNTHESIS_PROMPT
from nemo_tapo.types import RIGHT, WRONG, Grade, Provenance, Query, is_correct

TRAIN, VALIDATION = "train", "validation"


@dataclass(frozen=True)
class EnvironmentDatum:
    """What an environment needs to grade responses to one query.

    >>> EnvironmentDatum("math", "47+38=?", {"ground_truth": "85"}, {"problem": "47+38=?"}).info["ground_truth"]
    '85'
    """

    task: str  # NeMo-RL's task name, which selects the environment
    prompt: str  # as its data processor wrote it
    info: Mapping[str, Any]  # extra_env_info: the gold answer and whatever else the environment needs
    row: Mapping[str, Any]  # the row of the data set


class EnvironmentTask:
    """`Task` over NeMo-RL's processed data sets and its environment actors, by task name."""

    synthesis_prompt, full_prompt = SYNTHESIS_PROMPT, FULL_PROMPT
    quoting_prompt, error_quote = QUOTING_PROMPT, ERROR_QUOTE

    def __init__(
        self,
        train: Any,
        validation: Any,
        environments: Mapping[str, Any],
        tokenizer: Tokenizer,
        source: str,
        timeout: float = CALL_TIMEOUT,
    ) -> None:
        """Wrap NeMo-RL's data sets (AllTaskProcessedDataset; `validation` may be None) and its environment actors.

        `source` says where the data comes from; `timeout` is the deadline of a grade, seconds.
        """
        self._timeout = timeout
        self._sets = {TRAIN: train} | ({VALIDATION: validation} if validation is not None else {})
        self._environments, self._tokenizer, self._source = dict(environments), tokenizer, source
        self._data: dict[str, EnvironmentDatum] = {}

    def train_queries(self) -> Sequence[Query]:
        """Return the training set.

        Raises ValueError if NeMo-RL renders prompts differently from this package (see `_check_prompt`).
        """
        return self._queries(TRAIN)

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the validation set, if there is one."""
        return {name: self._queries(name) for name in self._sets if name != TRAIN}

    def provenance(self, name: str) -> Provenance:
        """Return where a set comes from; all its rows are queries."""
        return Provenance(self._source, len(self._sets[name]))

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return a query's row as NeMo-RL's data set has it."""
        return self._data[query.uid].row

    def locate_error(self, query: Query, response: str) -> int | None:
        """Return None: nothing but the final answer is checked."""
        return None

    async def grade(self, query: Query, response: str) -> Grade:
        """Return the environment's grade of one response.

        Raises RuntimeFailure if the environment is lost, ValueError if it gives several rewards.
        """
        datum = self._data[query.uid]
        log = [{"role": "user", "content": datum.prompt}, {"role": "assistant", "content": response}]
        step = self._environments[datum.task].step.remote([log], [dict(datum.info)])
        _, _, _, rewards, _, answers = await await_ray(step, f"the environment of {datum.task}", self._timeout)
        if isinstance(rewards, Mapping):
            raise ValueError(f"the environment of {datum.task} gives several rewards; TAPO needs one, right or wrong.")
        reward = float(rewards[0])
        return Grade(reward, RIGHT if is_correct(reward) else WRONG, answers[0] if answers else None)

    def close(self) -> None:
        """Stop the environments and their workers, those that hang by force. A second call does nothing."""
        import ray

        environments, self._environments = set(self._environments.values()), {}
        for environment in environments:
            with suppress(ray.exceptions.RayError):  # it hangs or is gone: what remains of it ends here
                ray.get(environment.shutdown.remote(), timeout=CLOSE_TIMEOUT)
            ray.kill(environment)

    def _queries(self, name: str) -> list[Query]:
        queries = []
        for i in range(len(self._sets[name])):
            query, datum, prompt_ids = self._read_row(name, i)
            if not i:
                self._check_prompt(query, prompt_ids)
            self._data[query.uid] = datum
            queries.append(query)
        return queries

    def _read_row(self, name: str, i: int) -> tuple[Query, EnvironmentDatum, tuple[int, ...]]:
        """Read row `i` as its publisher wrote it and as NeMo-RL's processor converts it to a conversation.

        Return the query, what the environment needs, and the prompt ids that NeMo-RL's processor made.
        """
        data = self._sets[name]
        raw, processed = dict(data.dataset[i]), data[i]
        task = str(processed.get("task_name") or raw.get("task_name"))
        question = raw["messages"][0]["content"] if "messages" in raw else raw["problem"]
        template = data.task_data_processors[task][0].prompt
        prompt = template.format(question) if template else question
        messages = processed["message_log"]
        ids = tuple(int(token) for message in messages for token in message["token_ids"])
        gold = str(processed["extra_env_info"].get("ground_truth", "")) or "known to the environment"
        query = Query(f"{task}-{name}-{i}", question, gold, prompt="" if prompt == question else prompt, row=raw)
        return query, EnvironmentDatum(task, messages[-1]["content"], processed["extra_env_info"], raw), ids

    def _check_prompt(self, query: Query, nemo_ids: tuple[int, ...]) -> None:
        """Raise ValueError if NeMo-RL's processor renders a prompt differently: the loop renders prompts itself."""
        if self._tokenizer.chat(query.user_text) != nemo_ids:
            raise ValueError(
                f"data.{TRAIN}: NeMo-RL's processor renders {query.uid} otherwise than this package, which knows the "
                "question, `prompt_file` and the chat template. Without a `system_prompt_file`, with a processor for "
                "mathematics, and with a prompt shorter than data.max_input_seq_length it does not."
            )


def make_environment_task(
    master: Mapping[str, Any], nemo_tokenizer: Any, tokenizer: Tokenizer, limits: Timeouts
) -> EnvironmentTask:
    """Read the data and start the environments that the sections `data` and `env` name. Ray must be running."""
    data, environment = (copy.deepcopy(dict(master[section])) for section in ("data", "env"))
    train, validation, train_environments, validation_environments = run_in_time(
        partial(compat.load("setup_response_data"), nemo_tokenizer, data, environment),
        "NeMo-RL's data and environments",
        limits.start_timeout,
        "start_timeout",
    )
    environments = {**train_environments, **validation_environments}
    source = "NeMo-RL's data section"
    return EnvironmentTask(train, validation, environments, tokenizer, source, limits.call_timeout)
