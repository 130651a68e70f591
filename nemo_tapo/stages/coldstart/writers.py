"""Who writes the corrections of the cold start: the model itself, a served one, or a generated task's own oracle.

All three give the text of an answer to the synthesis prompt; what becomes of it is decided by RL's own code,
`algorithms.tapo.Synthesis`: parsing, anchoring of the kept prefix, grading.
"""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import TYPE_CHECKING, Any, Protocol

from nemo_tapo.algorithms.reflection import render
from nemo_tapo.algorithms.synthesis import Synthesis
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.endpoint.client import Endpoint, EndpointDown, EndpointError, EndpointRefused
from nemo_tapo.stages.coldstart.base_samples import STEP
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Completion, Construction, Pair
from nemo_tapo.utils.seeding import seed_from

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session

# Why a pair got no answer, beside reflection.DROP_REASONS.
NO_ERROR, SERVER_REFUSED, UNANSWERED = "no_locatable_error", "refused_by_server", "unanswered"
SECTION = "coldstart.endpoint"
HOPELESS = 10  # requests refused, none accepted: it is not the pairs


class Writer(Protocol):
    """Answers synthesis prompts. Many calls run at once, at most `at_once`."""

    at_once: int

    async def correct(self, pair: Pair) -> Construction:
        """A graded construction, or one that was dropped for a reason of reflection.DROP_REASONS or of this module."""


class ModelWriter:
    """The model itself, through the runtime's engine: what RL does, before any training."""

    def __init__(self, synthesis: Synthesis, at_once: int) -> None:
        self.synthesis, self.at_once = synthesis, at_once

    async def correct(self, pair: Pair) -> Construction:
        """Raises what Generator.generate raises."""
        return await self.synthesis.construct(pair, STEP)


class EndpointWriter:
    """Another model, by chat messages; the server applies its own template and has its own limit of length.

    A request that the server refuses is a drop; one that it did not answer after all attempts is asked again by the
    next run. Raises EndpointDown when nothing gets through, and EndpointRefused when everything is refused.
    """

    def __init__(self, synthesis: Synthesis, endpoint: Endpoint, cfg: RunConfig) -> None:
        self.synthesis, self.endpoint, self.cfg = synthesis, endpoint, cfg
        self.at_once = endpoint.cfg.concurrency
        self._accepted = self._refused = 0

    async def correct(self, pair: Pair) -> Construction:
        prompt = render(self.synthesis.template, pair)
        try:
            reply = await self.endpoint.chat(
                [{"role": "user", "content": prompt}],
                temperature=self.cfg.tapo.temperature,
                max_tokens=self.cfg.tapo.max_tokens,
                seed=seed_from(self.cfg.seed, "synthesis", STEP, pair.uid) % 2**31,  # some servers take no more bits
            )
        except EndpointDown:
            raise
        except EndpointRefused:
            self._refused += 1
            if self._refused >= HOPELESS and not self._accepted:
                raise
            return Construction(pair, SERVER_REFUSED)
        except EndpointError:
            return Construction(pair, UNANSWERED)
        self._accepted += 1
        return await self.synthesis.judged(pair, Completion((), without_thinking(reply.text), reply.truncated))


class OracleWriter:
    """The generated task's own oracle: it finds the first wrong line and knows the right ones."""

    at_once = 64

    def __init__(self, synthesis: Synthesis, seed: int) -> None:
        self.synthesis, self.seed = synthesis, seed

    async def correct(self, pair: Pair) -> Construction:
        problem, wrong = arithmetic.parse_question(pair.wrong.query.question), pair.wrong.text
        if self.synthesis.rules.full_reconstruction:
            fixed = arithmetic.full_correction(problem, wrong)
        else:
            fixed = arithmetic.correction(problem, wrong, seed_from(self.seed, "wording", pair.uid))
        if fixed is None:
            return Construction(pair, NO_ERROR)
        return await self.synthesis.judged(pair, Completion((), fixed.text, False))


def without_thinking(text: str) -> str:
    """An answer without the reasoning that some servers leave before it, closed by </think>."""
    return text.rpartition("</think>")[2]


def check_writer(cfg: RunConfig) -> None:
    """Raises ValueError for a writer that cannot be: asked before engines are started."""
    if cfg.coldstart.writer == "oracle" and cfg.task.name != "arithmetic":
        raise ValueError(
            f"coldstart.writer = oracle, but the task {cfg.task.name} has no oracle that corrects responses: choose "
            "model (the base itself) or endpoint (another one, coldstart.endpoint.url)."
        )
    if cfg.coldstart.writer == "endpoint":
        Endpoint(cfg.coldstart.endpoint, SECTION)  # for its refusals


@asynccontextmanager
async def open_writer(session: Session) -> AsyncIterator[Writer]:
    """The writer that the config names. An endpoint that is down is found out on entering."""
    cfg, synthesis = session.cfg, Synthesis(session.cfg, session.tools)
    if cfg.coldstart.writer == "model":
        yield ModelWriter(synthesis, 2 * cfg.local.max_num_seqs)
    elif cfg.coldstart.writer == "oracle":
        yield OracleWriter(synthesis, cfg.seed)
    else:
        async with Endpoint(cfg.coldstart.endpoint, SECTION) as endpoint:
            yield EndpointWriter(synthesis, endpoint, cfg)


def identity_of(cfg: RunConfig) -> dict[str, Any]:
    """What tells a writer from others, as far as the config knows."""
    c = cfg.coldstart
    served = {"model": c.endpoint.model, "extra_body": c.endpoint.extra_body} if c.writer == "endpoint" else {}
    return {"writer": c.writer, **served}
