"""Countdown as an `interfaces.Task`: problems drawn by reasoning-gym (Apache-2.0), in the short form of countdown.py.

The benchmark is drawn from a seed of its own. A problem of it, whatever the order of its numbers, is in no training
data and not in the corpus of the tiny base model.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

from nemo_tapo.config.sections import CountdownConfig
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.tasks import countdown
from nemo_tapo.tasks.countdown_corpus import CountdownCorpus
from nemo_tapo.tasks.reasoning_gym_task import HELD_OUT_SEED, DrawnSets, create_dataset
from nemo_tapo.types import Grade, Provenance, Query

NAME = "countdown"


class CountdownTask:
    """Reach a target with given numbers; only an expression that is exactly the target is right."""

    synthesis_prompt = countdown.SYNTHESIS_PROMPT
    full_prompt = countdown.FULL_PROMPT
    quoting_prompt, error_quote = synthesis_prompt, countdown.ERROR_QUOTE

    def __init__(self, cfg: CountdownConfig, seed: int) -> None:
        """Check the settings. Raises ValueError with a sentence if reasoning-gym is not there or refuses them."""
        self.cfg, self.seed = cfg, seed
        draw_items(cfg, 0, 1)
        sizes = cfg.train_queries, cfg.held_out_queries
        self._sets = DrawnSets(NAME, seed, sizes, "{question}", partial(draw_items, cfg))

    def train_queries(self) -> Sequence[Query]:
        """Return the training problems, which differ from each other and from the benchmark's."""
        return self._sets.train_queries()

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        """Return the held-out problems, the same for every seed."""
        return self._sets.benchmarks()

    def provenance(self, name: str) -> Provenance:
        """Return the package's version, the seed, and the problems that are there twice."""
        return self._sets.provenance(name)

    def row(self, query: Query) -> Mapping[str, Any]:
        """Return seed and index of the item in reasoning-gym's data set."""
        return query.row

    def locate_error(self, query: Query, response: str) -> int | None:
        """Ask the oracle (`countdown.diagnose`); None for a response in another format."""
        found = countdown.diagnose(countdown.parse_question(query.question), response)
        return None if found is None else len("\n".join(response.split("\n")[: found.line + 1]))

    def write_correction(self, query: Query, wrong: str, reference: str, full: bool, seed: int) -> str | None:
        """Write the oracle's answer to the synthesis prompt; None if it finds no mistake."""
        write = countdown.write_full_correction if full else countdown.write_correction
        return write(countdown.parse_question(query.question), wrong, reference)

    async def grade(self, query: Query, response: str) -> Grade:
        """Evaluate the expression in the last box exactly. This takes microseconds, so it runs in this process."""
        reward, outcome = countdown.verify_response(countdown.parse_question(query.question), response)
        return Grade(reward, outcome, find_last_boxed(response))

    def close(self) -> None:
        """Do nothing: no process was started."""


def draw_items(cfg: CountdownConfig, seed: int, size: int) -> list[dict[str, str]]:
    """Return items of reasoning-gym's data set as {question, answer}, the numbers in ascending order."""
    settings = {
        "min_numbers": cfg.numbers,
        "max_numbers": cfg.numbers,
        "min_value": cfg.min_value,
        "max_value": cfg.max_value,
        "min_target": cfg.min_target,
        "max_target": cfg.max_target,
        "operators": tuple(cfg.operators),
    }
    dataset = create_dataset(NAME, settings, seed, size)
    try:
        drawn = [dataset[i] for i in range(size)]
    except ValueError as error:
        raise ValueError(f"task.countdown: {error}; widen the numbers or the targets.") from None
    problems = [countdown.Problem(tuple(sorted(d["metadata"]["numbers"])), d["metadata"]["target"]) for d in drawn]
    return [{"question": p.question, "answer": str(d["answer"])} for p, d in zip(problems, drawn, strict=True)]


def open_corpus(cfg: CountdownConfig) -> CountdownCorpus:
    """Return the corpus that a base model of these settings is trained on, without the held-out problems."""
    items = draw_items(cfg, HELD_OUT_SEED, cfg.held_out_queries)
    held_out = frozenset(countdown.parse_question(item["question"]) for item in items)
    return CountdownCorpus(cfg.numbers, (cfg.min_value, cfg.max_value), (cfg.min_target, cfg.max_target), held_out)
