"""The verifier of mathematical answers.

    response -> last balanced box -> guards -> same integer? same text? -> verdict known? -> math-verify in a process
                     |                  |                                                        |
                 no_answer            error                                       right, wrong, timeout, error

Everything before the last arrow takes microseconds in this process. What math-verify is asked runs in processes that
can be killed, within limits of time and memory (pool.py, worker.py), because an answer is whatever a model writes.
"""

from __future__ import annotations

import asyncio
import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future
from contextlib import suppress

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.boxed import last_boxed
from nemo_tapo.grading.normal import depth, integer, letters, normalise
from nemo_tapo.grading.pool import Pool, Question, Reply
from nemo_tapo.grading.wording import as_asked
from nemo_tapo.types import Grade

OUTCOMES = ("right", "wrong", "no_answer", "timeout", "error")
LONGEST = 500  # characters of an answer or a gold answer; beyond, parsing alone takes seconds
DEEPEST = 12  # brackets within brackets, likewise
SHOWN = 200  # characters of an answer that a Grade carries
PROCESSOR_SHARE = 0.5  # of the deadline: seconds of processor time that an answer may take


class Verifier:
    """Grades responses against gold answers; starts its processes when math-verify is first needed.

    `counts` says how the verdicts came about; its values sum up to the grades given:
    no_answer, too_long, too_deep (guards), integers, same_text, known (verdict in memory), compared (math-verify),
    too_large, processor_time, clock_time, died (math-verify was asked and could not say).
    """

    def __init__(self, cfg: VerifierConfig) -> None:
        self.cfg = cfg
        self.counts: Counter[str] = Counter()
        self._pool = Pool(cfg.workers, cfg.deadline, PROCESSOR_SHARE * cfg.deadline)
        self._known: OrderedDict[Question, Reply] = OrderedDict()  # least recently used first
        self._asked: dict[Question, Future[Reply]] = {}  # on their way: the K responses to a query often agree
        self._lock = threading.Lock()  # over the two; the pool's threads write them
        self._closer = weakref.finalize(self, self._pool.close)  # also when the interpreter ends

    async def grade(self, gold: str, response: str) -> Grade:
        """Grades one response. Any number of calls may wait at once; a cancelled one disturbs none of the others.

        Outcomes: `right` (reward 1; every other: 0); `wrong`; `no_answer`: no balanced box, or a blank one;
        `timeout`: math-verify took longer than the deadline, or half of it in processor time; `error`: the answer (or
        gold) is longer than 500 characters, nested deeper than 12, too large to work out, or broke its process.
        Raises RuntimeFailure if no process can be kept running.
        """
        answer = (last_boxed(response) or "").strip()
        outcome, how = await self._outcome(gold, answer)
        self.counts[how] += 1
        shown = answer if len(answer) <= SHOWN else answer[:SHOWN] + "…"
        return Grade(float(outcome == "right"), outcome, None if outcome == "no_answer" else shown)

    def gold_fault(self, gold: str) -> str | None:
        """Why a gold answer cannot be used ("is empty", "does not parse" ...), or None. Blocks meanwhile.

        Its time is limited on the processor; on the clock so loosely (worker.PATIENCE) that the load hardly matters.
        """
        return self.gold_faults([gold])[0]

    def gold_faults(self, golds: Sequence[str]) -> list[str | None]:
        """The same for many, in their order; integers and what was asked before take no process."""
        looks = [self._look_at_gold(gold) for gold in golds]
        return [_fault(look.result()) if isinstance(look, Future) else look for look in looks]

    async def gold_fault_soon(self, gold: str) -> str | None:
        """The same without blocking the event loop."""
        look = self._look_at_gold(gold)
        return _fault(await _reply(look)) if isinstance(look, Future) else look

    def close(self) -> None:
        """Ends the processes. May be called twice; nothing can be graded afterwards."""
        self._closer()

    async def _outcome(self, gold: str, answer: str) -> tuple[str, str]:
        """(outcome, how it was found) of what stands in the box."""
        if max(len(answer), len(gold)) > LONGEST:
            return "error", "too_long"
        if max(depth(answer), depth(gold)) > DEEPEST:
            return "error", "too_deep"
        expected, given = normalise(gold), normalise(answer)
        if not given:
            return "no_answer", "no_answer"
        given = as_asked(expected, given)
        settled = _settled(expected, given)
        if settled is not None:
            return settled
        question = ("compare", expected, given)
        known = question in self._known
        reply = await _reply(self._ask(question))
        if reply.ended is not None:
            return ("error" if reply.ended == "died" else "timeout"), reply.ended
        if reply.verdict == "too_large":
            return "error", "too_large"
        assert reply.verdict is not None
        return reply.verdict, "known" if known else "compared"

    def _look_at_gold(self, gold: str) -> str | Future[Reply] | None:
        """The fault of a gold answer or None; a question to a process where that cannot be seen."""
        text = normalise(gold[: LONGEST + 1])
        if not text:
            return "is empty"
        if len(gold) > LONGEST:
            return f"is longer than {LONGEST} characters"
        if depth(gold) > DEEPEST:
            return f"is nested deeper than {DEEPEST}"
        return None if integer(text) is not None else self._ask(("fault", text))

    # ------------------------------------------------------------------------------ asking once

    def _ask(self, question: Question) -> Future[Reply]:
        """The reply to a question: remembered, on its way, or asked now."""
        with self._lock:
            if question in self._known:
                self._known.move_to_end(question)
                known: Future[Reply] = Future()
                known.set_result(self._known[question])
                return known
            future = self._asked.get(question)
            if future is not None:
                return future
            future = self._asked[question] = self._pool.submit(question)
        future.add_done_callback(lambda done: self._remember(question, done))
        return future

    def _remember(self, question: Question, future: Future[Reply]) -> None:
        """Called by a thread of the pool. What depends on how busy the machine was is not remembered."""
        with self._lock:
            del self._asked[question]
            if future.exception() is None and future.result().ended in (None, "processor_time"):
                self._known[question] = future.result()
                while len(self._known) > self.cfg.cache:
                    self._known.popitem(last=False)


def _settled(expected: str, given: str) -> tuple[str, str] | None:
    """(outcome, how) where two normalised answers need no algebra; text that differs settles nothing."""
    number, value = integer(expected), integer(given)
    if number is not None and value is not None:
        return ("right" if number == value else "wrong"), "integers"
    return ("right", "same_text") if letters(given) and letters(expected) == letters(given) else None


async def _reply(future: Future[Reply]) -> Reply:
    """Waits in the running event loop. Others may wait for the same, so a cancelled wait leaves the question be."""
    loop = asyncio.get_running_loop()
    waiter: asyncio.Future[None] = loop.create_future()

    def wake() -> None:
        if not waiter.done():
            waiter.set_result(None)

    def tell(_: Future[Reply]) -> None:
        with suppress(RuntimeError):  # the loop is closed, nobody waits any more
            loop.call_soon_threadsafe(wake)

    future.add_done_callback(tell)
    await waiter
    return future.result()


def _fault(reply: Reply) -> str | None:
    return reply.verdict if reply.ended is None else "cannot be worked out in time"
