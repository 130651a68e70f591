"""Many responses through the judge: cached, deduplicated, asked again when the reply is no verdict, all counted."""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.endpoint.client import Endpoint, EndpointDown, EndpointError, EndpointRefused
from nemo_tapo.judge.prompt import messages
from nemo_tapo.judge.verdict import Unparsable, Verdict, parse
from nemo_tapo.judge.verdict_cache import Cache, key_of
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.utils.concurrency import concurrently
from nemo_tapo.utils.seeding import seed_from

# What may become of a response. Only the first yields a verdict; the others leave it out of both rates.
JUDGED, UNPARSABLE, TOO_LONG, REFUSED, FAILED = OUTCOMES = ("judged", "unparsable", "too_long", "refused", "failed")
MANY_LOST = 0.05  # share of responses without a verdict from which on the counts come with a warning
HOPELESS = 10  # requests refused, none accepted: it is not the responses
RETRY_TEMPERATURE = 0.6  # at least, from the second try on: a greedy judge would repeat itself
_CONTEXT = re.compile(r"context (length|window|size|limit)|(prompt|input|request)\b.{0,40}\b(too long|exceed)", re.I)


@dataclass(frozen=True)
class Item:
    """One response to be judged."""

    question: str
    answer: str  # gold
    response: str


@dataclass(frozen=True)
class Judgement:
    """What became of an item. `verdict` is None exactly if `outcome` is not "judged"."""

    outcome: str  # one of OUTCOMES
    verdict: Verdict | None = None
    cached: bool = False
    detail: str = ""  # of what has no verdict: the reason of every try, or the server's words


@dataclass(frozen=True)
class Tally:
    """How a set of judgements came about."""

    outcomes: dict[str, int]  # every one of OUTCOMES; they sum up to the responses
    responses: int
    cached: int  # verdicts that were there before
    corrupt: int  # entries of the cache that could not be read; they were asked for again
    tries: dict[str, int]  # replies that were no verdict, by reason; a response may stand for several
    retries: dict[str, int]  # attempts that failed on the way, by reason

    @property
    def lost(self) -> float:
        """Share of the responses without a verdict."""
        return 1 - self.outcomes[JUDGED] / self.responses if self.responses else 0.0


class Judge:
    """Judges items by the model behind `endpoint`, which the caller has entered."""

    def __init__(self, cfg: JudgeConfig, endpoint: Endpoint) -> None:
        self.cfg, self.endpoint = cfg, endpoint
        self.cache = Cache(cfg.cache)
        self.bad_replies: Counter[str] = Counter()
        self._accepted = self._refused = 0  # items; accepted also those whose verdict is kept

    async def judge(self, items: Sequence[Item], advance: Callable[[int], None]) -> list[Judgement]:
        """A judgement for every item, in order. Equal items are asked for once.

        advance: called with the number of items that are done. Every verdict is on disk before it is counted, so
        whoever stops this loses nothing. Raises EndpointDown, and EndpointError when the server refuses everything.
        """
        places: dict[Item, list[int]] = {}
        for place, item in enumerate(items):
            places.setdefault(item, []).append(place)
        done: dict[Item, Judgement] = {}

        async def work(queue: Iterator[Item]) -> None:
            for item in queue:
                done[item] = await self._one(item)
                advance(len(places[item]))

        await concurrently(work(queue) for queue in [iter(places)] * self.endpoint.cfg.concurrency)
        return [done[item] for item in items]

    def request(self, item: Item) -> dict[str, Any]:
        """What decides the verdict of an item, as the cache's key is taken from it."""
        return {
            "model": self.endpoint.model,
            "messages": messages(item.question, item.answer, item.response),
            "temperature": self.cfg.temperature,
            "max_tokens": self.cfg.max_tokens,
            "extra_body": self.endpoint.cfg.extra_body,
        }

    async def _one(self, item: Item) -> Judgement:
        request = self.request(item)
        key = key_of(request)
        kept = self.cache.get(key)
        if kept is not None:
            self._accepted += 1
            return Judgement(JUDGED, kept, cached=True)
        try:
            judgement = await self._ask(key, request["messages"])
        except EndpointDown:
            raise
        except EndpointRefused as error:
            return self._refusal(error)
        except EndpointError as error:
            return Judgement(FAILED, detail=str(error))
        self._accepted += 1
        return judgement

    async def _ask(self, key: str, chat: list[dict[str, str]]) -> Judgement:
        """Up to `tries` replies until one is a verdict."""
        reasons = []
        for number in range(self.cfg.tries):
            temperature = self.cfg.temperature if number == 0 else max(self.cfg.temperature, RETRY_TEMPERATURE)
            seed = seed_from("judge", key, number) % 2**31  # some servers take no more bits
            reply = await self.endpoint.chat(chat, temperature=temperature, max_tokens=self.cfg.max_tokens, seed=seed)
            try:
                verdict = parse(reply.text, reply.truncated)
            except Unparsable as error:
                reasons.append(error.reason)
                self.bad_replies[error.reason] += 1
                continue
            self.cache.put(key, verdict, self.endpoint.model, reply.text)
            return Judgement(JUDGED, verdict)
        return Judgement(UNPARSABLE, detail=", ".join(reasons))

    def _refusal(self, error: EndpointRefused) -> Judgement:
        """What a refusal means for an item. Raises the error once nothing else is to be expected."""
        if error.status == 413 or _CONTEXT.search(str(error)):
            return Judgement(TOO_LONG, detail=str(error))
        self._refused += 1
        if self._refused >= HOPELESS and not self._accepted:
            raise error
        return Judgement(REFUSED, detail=str(error))


def tally_of(judgements: Sequence[Judgement], judge: Judge | None = None) -> Tally:
    """The counts of what `judge` returned; None: no endpoint was asked."""
    outcomes = Counter(j.outcome for j in judgements)
    return Tally(
        outcomes={name: outcomes[name] for name in OUTCOMES},
        responses=len(judgements),
        cached=sum(j.cached for j in judgements),
        corrupt=judge.cache.corrupt if judge else 0,
        tries=dict(judge.bad_replies) if judge else {},
        retries=dict(judge.endpoint.retries) if judge else {},
    )


def judge_all(cfg: JudgeConfig, items: Sequence[Item]) -> tuple[list[Judgement], Tally, str]:
    """Judgements of all items, their counts, and the judge's name.

    What was judged stays in the cache, however this ends. Raises ValueError and EndpointError with a sentence.
    """

    async def go() -> tuple[list[Judgement], Tally, str]:
        with Progress([("judging", 1)]) as progress:
            async with Endpoint(cfg.endpoint, "judge.endpoint") as endpoint:
                stage = progress.stage("judging", len(items), "response")
                judge = Judge(cfg, endpoint)
                judgements = await judge.judge(items, stage.advance)
                return judgements, tally_of(judgements, judge), endpoint.model

    return asyncio.run(go())


def print_counts(tally: Tally) -> None:
    """How the verdicts came about, and what is missing."""
    print(f"responses: {tally.responses}: {listed(tally.outcomes)}; from the cache {tally.cached}")
    for what, found in (("replies that were no verdict", tally.tries), ("attempts repeated", tally.retries)):
        if found:
            print(f"{what}: {listed(found)}")
    if tally.corrupt:
        print(f"entries of the cache that could not be read: {tally.corrupt}")
    if tally.lost > MANY_LOST:
        print(f"WARNING: {tally.lost:.0%} of the responses have no verdict and are left out: the rates may be off.")


def listed(found: Mapping[str, int]) -> str:
    """ "judged 90, too_long 10"; what is 0 is left out."""
    return ", ".join(f"{name} {n}" for name, n in found.items() if n)
