"""Sampling an evaluation: who answers, how many requests are under way, and how it stops."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import EvaluationConfig
from nemo_tapo.endpoint.client import Endpoint
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.interfaces import Generator
from nemo_tapo.types import Grade, Query, Request
from nemo_tapo.utils.concurrency import at_once
from nemo_tapo.utils.seeding import seed_from
from nemo_tapo.utils.signals import Stop

Verify = Callable[[Query, str], Awaitable[Grade]]


@dataclass(frozen=True)
class Response:
    """What was sampled for one prompt."""

    text: str
    tokens: int  # 0: not known
    truncated: bool


class Sampler(Protocol):
    """Answers prompts. Many calls run at once, at most `in_flight`."""

    in_flight: int

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """One response to the query's prompt."""


class EngineSampler:
    """The runtime's engine, by token ids."""

    def __init__(self, generator: Generator, cfg: RunConfig) -> None:
        self.generator, self.settings = generator, cfg.evaluation
        self.in_flight = 2 * cfg.local.max_num_seqs  # one half runs; of the other, each waits to take a free place

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """Raises what Generator.generate raises."""
        s = self.settings
        request = Request(uid, query.prompt_ids, seed, s.max_tokens, s.temperature, s.top_p)
        completion = await self.generator.generate(request)
        return Response(completion.text, len(completion.token_ids), completion.truncated)


class EndpointSampler:
    """A served model, by chat messages.

    The server applies its chat template, thinking mode included: `model.enable_thinking` reaches it only as
    evaluation.endpoint.extra_body.chat_template_kwargs.enable_thinking. Whether it heeds the seed is its own affair.
    """

    def __init__(self, endpoint: Endpoint, settings: EvaluationConfig) -> None:
        self.endpoint, self.settings = endpoint, settings
        self.in_flight = endpoint.cfg.concurrency

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """Raises EndpointError, ValueError: see endpoint.py."""
        s = self.settings
        reply = await self.endpoint.chat(
            [{"role": "user", "content": query.user_text}],
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=s.max_tokens,
            seed=seed % 2**31,  # some servers take no more bits
        )
        return Response(reply.text, reply.tokens, reply.truncated)


@dataclass(frozen=True)
class Job:
    """One sample that is to be taken."""

    benchmark: str
    query: Query
    run: int
    index: int


def missing(
    benchmarks: Mapping[str, Sequence[Query]],
    settings: EvaluationConfig,
    done: Mapping[str, set[tuple[str, int, int]]],
) -> list[Job]:
    """The samples that are not there yet, a run after the other; a problem's stand together and share its prefix."""
    return [
        Job(benchmark, query, run, index)
        for benchmark, queries in benchmarks.items()
        for run in range(settings.runs)
        for query in queries
        for index in range(settings.samples)
        if (query.uid, run, index) not in done[benchmark]
    ]


async def take(
    jobs: Iterable[Job], sampler: Sampler, verify: Verify, seed: int, keep: Callable[[Sample], None], stop: Stop
) -> None:
    """Samples and grades every job; `keep` gets each as soon as it is graded, in no particular order.

    The seed of each is made of names, so neither order nor company changes what is sampled. Returns early when `stop`
    is requested: what is under way then is dropped, and sampled again the next time. The first failure ends all and is
    raised.
    """

    async def work(job: Job) -> None:
        keep(await _one(job, sampler, verify, seed))

    await at_once(jobs, work, sampler.in_flight, stop)


async def _one(job: Job, sampler: Sampler, verify: Verify, seed: int) -> Sample:
    own = seed_from(seed, "evaluate", job.benchmark, job.run, job.query.uid, job.index)
    response = await sampler.sample(job.query, f"{job.benchmark}/{job.query.uid}/{job.run}/{job.index}", own)
    grade = await verify(job.query, response.text)
    return Sample(
        benchmark=job.benchmark,
        uid=job.query.uid,
        run=job.run,
        index=job.index,
        text=response.text,
        tokens=response.tokens,
        truncated=response.truncated,
        outcome=grade.outcome,
        reward=grade.reward,
        answer=grade.answer,
    )
