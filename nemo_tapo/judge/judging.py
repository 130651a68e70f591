"""Judge many responses: with a cache, without asking twice for equal ones, with retries, and with counts of everything.

A reply that is not a verdict is asked for again.
"""

from __future__ import annotations

import asyncio
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tapo.config.sections import JudgeConfig
from nemo_tapo.endpoint.client import Endpoint, EndpointDown, EndpointError, EndpointRefused
from nemo_tapo.endpoint.reply_cache import make_key
from nemo_tapo.judge.prompt import make_messages
from nemo_tapo.judge.verdict import UnparsableReply, Verdict, parse_verdict
from nemo_tapo.judge.verdict_cache import VerdictCache
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.utils.concurrency import run_concurrently
from nemo_tapo.utils.seeding import seed_from

# The outcomes of a response. Only the first yields a verdict; with the others the response is left out of both rates.
JUDGED, UNPARSABLE, TOO_LONG, REFUSED, FAILED = OUTCOMES = ("judged", "unparsable", "too_long", "refused", "failed")
WARN_LOST_SHARE = 0.05  # warn above this share of responses without a verdict
MAX_REFUSALS = 10  # if so many requests are refused and none is accepted, the responses are not the cause
RETRY_TEMPERATURE = 0.6  # minimum from the second try on: a greedy judge would repeat its reply
_CONTEXT = re.compile(r"context (length|window|size|limit)|(prompt|input|request)\b.{0,40}\b(too long|exceed)", re.I)


@dataclass(frozen=True)
class JudgeItem:
    """One response to judge, with its problem and the gold answer. Equal items are judged once."""

    question: str
    answer: str  # the gold answer
    response: str


@dataclass(frozen=True)
class Judgement:
    """The outcome of judging an item. `verdict` is None if and only if `outcome` is not "judged".

    >>> Judgement(UNPARSABLE, detail="not_json, truncated").verdict is None
    True
    """

    outcome: str  # one of OUTCOMES
    verdict: Verdict | None = None
    cached: bool = False
    detail: str = ""  # if there is no verdict: the reason of each try, or the server's message


@dataclass(frozen=True)
class JudgementTally:
    """The counts of a set of judgements.

    >>> tally = tally_judgements([Judgement(TOO_LONG), Judgement(FAILED), Judgement(REFUSED)])
    >>> tally.responses, tally.outcomes["too_long"], tally.lost_share
    (3, 1, 1.0)
    """

    outcomes: dict[str, int]  # a count for each of OUTCOMES; they sum up to `responses`
    responses: int
    cached: int  # verdicts found in the cache
    corrupt: int  # cache entries that could not be read; these items were judged again
    tries: dict[str, int]  # replies that were not a verdict, by reason; a response may have several
    retries: dict[str, int]  # requests that failed and were repeated, by reason

    @property
    def lost_share(self) -> float:
        """The share of the responses without a verdict."""
        return 1 - self.outcomes[JUDGED] / self.responses if self.responses else 0.0


class Judge:
    """Judges items with the model behind `endpoint`; the caller has entered its context (`async with`)."""

    def __init__(self, cfg: JudgeConfig, endpoint: Endpoint) -> None:
        self.cfg, self.endpoint = cfg, endpoint
        self.cache = VerdictCache(cfg.cache)
        self.bad_replies: Counter[str] = Counter()
        self._accepted = self._refused = 0  # numbers of items; cached verdicts count as accepted

    async def judge(self, items: Sequence[JudgeItem], advance: Callable[[int], None]) -> list[Judgement]:
        """Return a judgement for every item, in order. Equal items are judged once.

        advance: called with the number of items that were just finished. Every verdict is on disk before it is counted,
        so nothing is lost if this is interrupted. Raises EndpointDown if the server is lost, and EndpointError if the
        server refuses everything.
        """
        copies = Counter(items)
        done: dict[JudgeItem, Judgement] = {}

        async def work(queue: Iterator[JudgeItem]) -> None:
            for item in queue:
                done[item] = await self._judge_item(item)
                advance(copies[item])

        await run_concurrently(work(queue) for queue in [iter(copies)] * self.endpoint.cfg.concurrency)
        return [done[item] for item in items]

    def make_request(self, item: JudgeItem) -> dict[str, Any]:
        """Return everything that determines an item's verdict; the cache's key is computed from it."""
        return {
            "model": self.endpoint.model,
            "messages": make_messages(item.question, item.answer, item.response),
            "temperature": self.cfg.temperature,
            "max_tokens": self.cfg.max_tokens,
            "extra_body": self.endpoint.cfg.extra_body,
        }

    async def _judge_item(self, item: JudgeItem) -> Judgement:
        request = self.make_request(item)
        key = make_key(request)
        verdict = self.cache.get(key)
        if verdict is not None:
            self._accepted += 1
            return Judgement(JUDGED, verdict, cached=True)
        try:
            judgement = await self._ask(key, request["messages"])
        except EndpointDown:
            raise
        except EndpointRefused as error:
            return self._handle_refusal(error)
        except EndpointError as error:
            return Judgement(FAILED, detail=str(error))
        self._accepted += 1
        return judgement

    async def _ask(self, key: str, chat: list[dict[str, str]]) -> Judgement:
        """Ask until a reply is a verdict, at most `tries` times. Puts the verdict into the cache."""
        reasons = []
        for number in range(self.cfg.tries):
            temperature = self.cfg.temperature if number == 0 else max(self.cfg.temperature, RETRY_TEMPERATURE)
            seed = seed_from("judge", key, number) % 2**31  # some servers accept no more than 31 bits
            reply = await self.endpoint.chat(chat, temperature=temperature, max_tokens=self.cfg.max_tokens, seed=seed)
            try:
                verdict = parse_verdict(reply.text, reply.truncated)
            except UnparsableReply as error:
                reasons.append(error.reason)
                self.bad_replies[error.reason] += 1
                continue
            self.cache.put(key, verdict, self.endpoint.model, reply.text)
            return Judgement(JUDGED, verdict)
        return Judgement(UNPARSABLE, detail=", ".join(reasons))

    def _handle_refusal(self, error: EndpointRefused) -> Judgement:
        """Return the judgement of a refused item. Raises the error if the server seems to refuse everything."""
        if error.status == 413 or _CONTEXT.search(str(error)):
            return Judgement(TOO_LONG, detail=str(error))
        self._refused += 1
        if self._refused >= MAX_REFUSALS and not self._accepted:
            raise error
        return Judgement(REFUSED, detail=str(error))


def tally_judgements(judgements: Sequence[Judgement], judge: Judge | None = None) -> JudgementTally:
    """Count the judgements that `judge` returned. judge: None if no endpoint was used."""
    outcomes = Counter(j.outcome for j in judgements)
    return JudgementTally(
        outcomes={name: outcomes[name] for name in OUTCOMES},
        responses=len(judgements),
        cached=sum(j.cached for j in judgements),
        corrupt=judge.cache.corrupt if judge else 0,
        tries=dict(judge.bad_replies) if judge else {},
        retries=dict(judge.endpoint.retries) if judge else {},
    )


def judge_all(cfg: JudgeConfig, items: Sequence[JudgeItem]) -> tuple[list[Judgement], JudgementTally, str]:
    """Judge all items; return the judgements, their counts, and the name of the judge's model.

    Finished verdicts stay in the cache even if this fails. Raises ValueError and EndpointError, with a message for the
    user.
    """

    async def run() -> tuple[list[Judgement], JudgementTally, str]:
        with Progress([("judging", 1)]) as progress:
            async with Endpoint(cfg.endpoint, "judge.endpoint") as endpoint:
                stage = progress.start_stage("judging", len(items), "response")
                judge = Judge(cfg, endpoint)
                judgements = await judge.judge(items, stage.advance)
                return judgements, tally_judgements(judgements, judge), endpoint.model

    return asyncio.run(run())


def print_counts(tally: JudgementTally) -> None:
    """Print the counts, and a warning if many responses have no verdict."""
    print(f"responses: {tally.responses}: {format_counts(tally.outcomes)}; from the cache {tally.cached}")
    for what, counts in (("replies that were no verdict", tally.tries), ("attempts repeated", tally.retries)):
        if counts:
            print(f"{what}: {format_counts(counts)}")
    if tally.corrupt:
        print(f"entries of the cache that could not be read: {tally.corrupt}")
    if tally.lost_share > WARN_LOST_SHARE:
        print(
            f"WARNING: {tally.lost_share:.0%} of the responses have no verdict and are left out: the rates may be off."
        )


def format_counts(counts: Mapping[str, int]) -> str:
    """Format counts; those that are 0 are left out.

    >>> format_counts({"judged": 90, "refused": 0, "too_long": 10})
    'judged 90, too_long 10'
    """
    return ", ".join(f"{name} {n}" for name, n in counts.items() if n)
