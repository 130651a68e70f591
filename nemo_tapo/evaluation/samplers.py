"""Sample an evaluation's responses, from the runtime's engine or from a served model."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Protocol

from nemo_tapo.algorithms.tools import make_graded_text, opens_thought
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import EvaluationConfig
from nemo_tapo.endpoint.client import Endpoint
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.interfaces import Generator, Tokenizer
from nemo_tapo.types import Grade, Query, Request
from nemo_tapo.utils.concurrency import for_each_concurrently
from nemo_tapo.utils.seeding import seed_from
from nemo_tapo.utils.signals import Stop

Verify = Callable[[Query, str], Awaitable[Grade]]


@dataclass(frozen=True)
class Response:
    """One sampled response to a prompt."""

    text: str
    tokens: int  # length; 0: not known
    truncated: bool
    thinks: bool = False  # its prompt, by the model's chat template, ends with THINK


class ResponseSampler(Protocol):
    """Samples responses to prompts. Many calls run at once, at most `in_flight`."""

    in_flight: int

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """Sample one response to the query's prompt."""


class EngineSampler:
    """Samples from the runtime's engine, by token ids.

    tokenizer: shows whether a prompt ends with THINK; without one, none does.
    """

    def __init__(self, generator: Generator, cfg: RunConfig, tokenizer: Tokenizer | None = None) -> None:
        self.generator, self.settings, self.tokenizer = generator, cfg.evaluation, tokenizer
        self.in_flight = 2 * cfg.local.max_num_seqs  # one half runs, the other half waits for free slots

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """Sample one response to the query's token ids. Raises what Generator.generate raises."""
        s = self.settings
        request = Request(uid, query.prompt_ids, seed, s.max_tokens, s.temperature, s.top_p)
        completion = await self.generator.generate(request)
        thinks = self.tokenizer is not None and opens_thought(self.tokenizer, query.prompt_ids)
        return Response(completion.text, len(completion.token_ids), completion.truncated, thinks)


class EndpointSampler:
    """Samples from a served model, by chat messages.

    The server applies its own chat template, thinking mode included: `model.enable_thinking` reaches it only as
    evaluation.endpoint.extra_body.chat_template_kwargs.enable_thinking. Not every server respects the seed. Whether
    the template ends with THINK is not known here; a server that separates the reasoning returns no text if it is cut
    off there.
    """

    def __init__(self, endpoint: Endpoint, settings: EvaluationConfig) -> None:
        self.endpoint, self.settings = endpoint, settings
        self.in_flight = endpoint.cfg.concurrency

    async def sample(self, query: Query, uid: str, seed: int) -> Response:
        """Sample one response to the query's text. Raises EndpointError and ValueError, as Endpoint.chat does."""
        s = self.settings
        reply = await self.endpoint.chat(
            [{"role": "user", "content": query.user_text}],
            temperature=s.temperature,
            top_p=s.top_p,
            max_tokens=s.max_tokens,
            seed=seed % 2**31,  # some servers accept no more than 31 bits
        )
        return Response(reply.text, reply.tokens, reply.truncated)


@dataclass(frozen=True)
class SampleJob:
    """One sample to take: sample `index` of the problem in run `run`."""

    benchmark: str
    query: Query
    run: int
    index: int


def list_missing_jobs(
    benchmarks: Mapping[str, Sequence[Query]],
    settings: EvaluationConfig,
    done: Mapping[str, set[tuple[str, int, int]]],
) -> list[SampleJob]:
    """List the samples that are not in `done` yet, run by run.

    The samples of one problem are adjacent, so that the engine can share the prefix of their prompts.
    """
    return [
        SampleJob(benchmark, query, run, index)
        for benchmark, queries in benchmarks.items()
        for run in range(settings.runs)
        for query in queries
        for index in range(settings.samples)
        if (query.uid, run, index) not in done[benchmark]
    ]


async def take_samples(
    jobs: Iterable[SampleJob],
    sampler: ResponseSampler,
    verify: Verify,
    seed: int,
    keep: Callable[[Sample], None],
    stop: Stop,
) -> None:
    """Take and grade one sample per job; call `keep` on each as soon as it is graded, in no particular order.

    The seed of a sample is derived from its names. So the result is independent of the order and of what else
    is sampled at the same time. If `stop` is requested, returns early and drops the samples in flight; they are taken
    again the next time. The first failure ends all sampling and is raised.
    """

    async def work(job: SampleJob) -> None:
        keep(await _take_sample(job, sampler, verify, seed))

    await for_each_concurrently(jobs, work, sampler.in_flight, stop)


async def _take_sample(job: SampleJob, sampler: ResponseSampler, verify: Verify, seed: int) -> Sample:
    sample_seed = seed_from(seed, "evaluate", job.benchmark, job.run, job.query.uid, job.index)
    response = await sampler.sample(job.query, f"{job.benchmark}/{job.query.uid}/{job.run}/{job.index}", sample_seed)
    grade = await verify(job.query, make_graded_text(response.text, response.truncated, response.thinks))
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
        correct_at=grade.correct_at,
    )
