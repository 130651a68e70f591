"""Writers of the cold start's corrections: the model itself, a served model, or the oracle of a generated task.

All three answer the synthesis prompt with a text. The code of RL, `algorithms.synthesis.Synthesis`, then parses it,
anchors the kept prefix and grades it.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from nemo_tapo.algorithms.reflection import render_prompt
from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.endpoint.client import Endpoint, EndpointDown, EndpointError, EndpointRefused
from nemo_tapo.interfaces import Oracle, Task
from nemo_tapo.stages.coldstart.base_samples import SEED_STEP
from nemo_tapo.tasks.generated import GENERATED_TASKS
from nemo_tapo.tasks.rewarded_task import RewardedTask
from nemo_tapo.types import Completion, Construction, Pair
from nemo_tapo.utils.seeding import seed_from

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

# Reasons why a pair got no answer, in addition to reflection.DROP_REASONS.
NO_ERROR, SERVER_REFUSED, UNANSWERED = "no_locatable_error", "refused_by_server", "unanswered"
SECTION = "coldstart.endpoint"
MAX_REFUSALS = 10  # if so many requests are refused and none is accepted, the pairs are not the cause


class Writer(Protocol):
    """A writer that answers synthesis prompts. At most `at_once` calls run at the same time."""

    at_once: int

    async def correct(self, pair: Pair) -> Construction:
        """Return a graded construction, or one dropped for a reason of reflection.DROP_REASONS or of this module."""


class ModelWriter:
    """The model itself, through the runtime's engine, as in RL but before any training."""

    def __init__(self, synthesis: Synthesis, at_once: int) -> None:
        self.synthesis, self.at_once = synthesis, at_once

    async def correct(self, pair: Pair) -> Construction:
        """Correct one pair. Raises what Generator.generate raises."""
        return await self.synthesis.construct(pair, SEED_STEP)


class EndpointWriter:
    """Another model behind an endpoint. The server applies its chat template and its own length limit.

    A pair whose request the server refuses is dropped. A request without an answer after all attempts is sent again by
    the next run.
    """

    def __init__(self, synthesis: Synthesis, endpoint: Endpoint, cfg: RunConfig) -> None:
        self.synthesis, self.endpoint, self.cfg = synthesis, endpoint, cfg
        self.at_once = endpoint.cfg.concurrency
        self._accepted = self._refused = 0

    async def correct(self, pair: Pair) -> Construction:
        """Correct one pair.

        Raises EndpointDown if the server cannot be reached, and EndpointRefused if every request is refused.
        """
        prompt = render_prompt(self.synthesis.template, pair)
        try:
            reply = await self.endpoint.chat(
                [{"role": "user", "content": prompt}],
                temperature=self.cfg.tapo.temperature,
                max_tokens=self.cfg.tapo.max_tokens,
                seed=seed_from(self.cfg.seed, "synthesis", SEED_STEP, pair.uid)
                % 2**31,  # some servers accept no more bits
            )
        except EndpointDown:
            raise
        except EndpointRefused:
            self._refused += 1
            if self._refused >= MAX_REFUSALS and not self._accepted:
                raise
            return Construction(pair, SERVER_REFUSED)
        except EndpointError:
            return Construction(pair, UNANSWERED)
        self._accepted += 1
        return await self.synthesis.grade_answer(pair, Completion((), remove_thinking(reply.text), reply.truncated))


class OracleWriter:
    """The oracle of a generated task: it finds the first wrong line and knows how to go on."""

    at_once = 64

    def __init__(self, synthesis: Synthesis, oracle: Oracle, seed: int) -> None:
        self.synthesis, self.oracle, self.seed = synthesis, oracle, seed

    async def correct(self, pair: Pair) -> Construction:
        """Correct one pair, or drop it if the oracle finds no wrong line in the response."""
        query, full = pair.wrong.query, self.synthesis.rules.full_reconstruction
        seed = seed_from(self.seed, "wording", pair.uid)
        text = self.oracle.write_correction(query, pair.wrong.text, pair.right.text, full, seed)
        if text is None:
            return Construction(pair, NO_ERROR)
        return await self.synthesis.grade_answer(pair, Completion((), text, False))


def find_oracle(task: Task) -> Oracle | None:
    """Return the oracle of a task, or of the task whose rewards were replaced; None if it has none."""
    bare = task.task if isinstance(task, RewardedTask) else task
    return bare if isinstance(bare, Oracle) else None


def remove_thinking(text: str) -> str:
    """Return an answer without the reasoning, closed by </think>, that some servers leave in front of it.

    >>> remove_thinking("The carry is missing.</think>47+38=85")
    '47+38=85'
    """
    return text.rpartition("</think>")[2]


def check_writer(cfg: RunConfig) -> None:
    """Raise ValueError if the configured writer cannot work. Called before engines are started."""
    if cfg.coldstart.writer == "oracle" and cfg.task.name not in GENERATED_TASKS:
        raise ValueError(
            f"coldstart.writer = oracle, but the task {cfg.task.name} has no oracle that corrects responses: choose "
            "model (the base itself) or endpoint (another one, coldstart.endpoint.url)."
        )
    if cfg.coldstart.writer == "endpoint":
        Endpoint(cfg.coldstart.endpoint, SECTION)  # raises ValueError for bad settings


@asynccontextmanager
async def open_writer(session: Session) -> AsyncIterator[Writer]:
    """Open the writer that the config names. An endpoint that is down raises on entering."""
    cfg, synthesis = session.cfg, Synthesis(session.cfg, session.tools)
    if cfg.coldstart.writer == "model":
        yield ModelWriter(synthesis, 2 * cfg.local.max_num_seqs)
    elif cfg.coldstart.writer == "oracle":
        oracle = find_oracle(session.task)
        assert oracle is not None, "check_writer lets no other task pass"
        yield OracleWriter(synthesis, oracle, cfg.seed)
    else:
        async with Endpoint(cfg.coldstart.endpoint, SECTION) as endpoint:
            yield EndpointWriter(synthesis, endpoint, cfg)


def get_writer_identity(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that identify the writer, as far as the config knows them."""
    c = cfg.coldstart
    served = {"model": c.endpoint.model, "extra_body": c.endpoint.extra_body} if c.writer == "endpoint" else {}
    return {"writer": c.writer, **served}
