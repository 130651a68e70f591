"""Verify mathematical answers.

    response -> last balanced box -> guards -> same integer, text, words? -> verdict cached? -> math-verify in a process
                     |                  |                                                         |
                 no_answer            error                                        right, wrong, timeout, error

Everything before the last arrow takes microseconds in this process. math-verify runs in processes that can be killed,
with limits on time and memory (pool.py, grader.py), because a model may write anything as its answer. Whatever goes
wrong over one answer is the outcome of that answer.
"""

from __future__ import annotations

import threading
import weakref
from collections import Counter, OrderedDict
from collections.abc import Sequence
from concurrent.futures import Future

from nemo_tapo.config.sections import VerifierConfig
from nemo_tapo.grading.boxed import find_last_boxed
from nemo_tapo.grading.forms import compare_directly, is_words
from nemo_tapo.grading.normal import measure_depth, normalise, parse_integer
from nemo_tapo.grading.pool import GraderPool, GraderReply, Question, await_reply
from nemo_tapo.grading.wording import drop_unit, match_forms
from nemo_tapo.types import Grade

OUTCOMES = ("right", "wrong", "no_answer", "timeout", "error")
MAX_CHARACTERS = 500  # of an answer or a gold answer; parsing a longer one takes seconds
MAX_DEPTH = 12  # levels of nested brackets, for the same reason
SHOWN_CHARACTERS = 200  # characters of an answer that a Grade carries
PROCESSOR_SHARE = 0.5  # of the deadline: seconds of processor time that an answer may take


class Verifier:
    """A grader of responses against gold answers. It starts its processes when it first needs math-verify.

    `counts` has the number of grades by the way in which they were found; its values sum up to the grades given:
    no_answer, too_long, too_deep (guards), integers, same_text, words, units, known (cached verdict), compared
    (math-verify), too_large, raised, processor_time, clock_time, died (math-verify gave no verdict).
    """

    def __init__(self, cfg: VerifierConfig) -> None:
        self.cfg = cfg
        self.counts: Counter[str] = Counter()
        self._pool = GraderPool(cfg.workers, cfg.deadline, PROCESSOR_SHARE * cfg.deadline)
        self._cache: OrderedDict[Question, GraderReply] = OrderedDict()  # least recently used first
        self._pending: dict[
            Question, Future[GraderReply]
        ] = {}  # not answered yet: the K responses to a query often agree
        self._lock = threading.Lock()  # protects these two; the pool's threads write them
        self._finalizer = weakref.finalize(self, self._pool.close)  # also when the interpreter ends

    async def grade(self, gold: str, response: str) -> Grade:
        """Grade one response. Any number of calls may wait at once; cancelling one does not affect the others.

        Outcomes: `right` (reward 1; every other: 0); `wrong`; `no_answer`: no balanced box, or a blank one;
        `timeout`: math-verify took longer than the deadline, or half of it in processor time; `error`: the answer (or
        the gold answer) is longer than 500 characters, nested deeper than 12 levels, too large to be evaluated, raised
        an exception, or made its process die. Raises RuntimeFailure if no process can be started.
        """
        answer = (find_last_boxed(response) or "").strip()
        outcome, route = await self._grade_answer(gold, answer)
        self.counts[route] += 1
        shown = answer if len(answer) <= SHOWN_CHARACTERS else answer[:SHOWN_CHARACTERS] + "…"
        return Grade(float(outcome == "right"), outcome, None if outcome == "no_answer" else shown)

    def find_gold_fault(self, gold: str) -> str | None:
        """Return why a gold answer cannot be used ("is empty", "does not parse" ...), or None. Blocks until then.

        The processor time is limited as for an answer. The wall-clock limit is so long (grader.GOLD_DEADLINE_FACTOR)
        that the machine's load hardly matters.
        """
        return self.find_gold_faults([gold])[0]

    def find_gold_faults(self, golds: Sequence[str]) -> list[str | None]:
        """Return the fault of each gold answer, in order. Integers and cached verdicts need no process."""
        checks = [self._check_gold(gold) for gold in golds]
        return [_get_fault(check.result()) if isinstance(check, Future) else check for check in checks]

    async def find_gold_fault_async(self, gold: str) -> str | None:
        """Return the fault of a gold answer, or None, without blocking the event loop."""
        check = self._check_gold(gold)
        return _get_fault(await await_reply(check)) if isinstance(check, Future) else check

    def close(self) -> None:
        """End the processes. May be called twice; nothing can be graded afterwards."""
        self._finalizer()

    async def _grade_answer(self, gold: str, answer: str) -> tuple[str, str]:
        """Grade the content of a box. Return (outcome, the key of `counts`)."""
        if max(len(answer), len(gold)) > MAX_CHARACTERS:
            return "error", "too_long"
        if max(measure_depth(answer), measure_depth(gold)) > MAX_DEPTH:
            return "error", "too_deep"
        try:
            matched = match_forms(normalise(gold), normalise(answer))
            settled = _settle(matched, answer)
        except Exception:  # whatever it is, it concerns this answer only
            return "error", "raised"
        if matched is None or settled is not None:
            return settled or ("wrong", "units")
        expected, given = matched
        if max(map(len, matched)) > 2 * MAX_CHARACTERS:  # signs such as \pm were written out
            return "error", "too_long"
        question = ("compare", expected, given)
        known = question in self._cache
        reply = await await_reply(self._request_reply(question))
        if reply.failure is not None:
            return ("error" if reply.failure == "died" else "timeout"), reply.failure
        if reply.verdict in ("too_large", "raised"):
            return "error", reply.verdict
        assert reply.verdict is not None
        return reply.verdict, "known" if known else "compared"

    def _check_gold(self, gold: str) -> str | Future[GraderReply] | None:
        """Return the fault of a gold answer or None; or a future if a process has to find out."""
        text = normalise(gold[: MAX_CHARACTERS + 1])
        if not text:
            return "is empty"
        if len(gold) > MAX_CHARACTERS:
            return f"is longer than {MAX_CHARACTERS} characters"
        if measure_depth(gold) > MAX_DEPTH:
            return f"is nested deeper than {MAX_DEPTH}"
        text = drop_unit(text)
        return None if parse_integer(text) is not None or is_words(text) else self._request_reply(("fault", text))

    # ------------------------------------------------------------------------------ cache of replies

    def _request_reply(self, question: Question) -> Future[GraderReply]:
        """Return the reply to a question from the cache, from a pending request, or from a new one."""
        with self._lock:
            if question in self._cache:
                self._cache.move_to_end(question)
                known: Future[GraderReply] = Future()
                known.set_result(self._cache[question])
                return known
            future = self._pending.get(question)
            if future is not None:
                return future
            future = self._pending[question] = self._pool.submit(question)
        future.add_done_callback(lambda done: self._store_reply(question, done))
        return future

    def _store_reply(self, question: Question, future: Future[GraderReply]) -> None:
        """Cache a reply, unless it depends on the machine's load. A thread of the pool calls this."""
        with self._lock:
            del self._pending[question]
            if future.exception() is None and future.result().failure in (None, "processor_time"):
                self._cache[question] = future.result()
                while len(self._cache) > self.cfg.cache:
                    self._cache.popitem(last=False)


def _settle(matched: tuple[str, str] | None, answer: str) -> tuple[str, str] | None:
    """Return (outcome, key of `counts`) if two answers, brought into one form, need no algebra, else None."""
    if not normalise(answer):
        return "no_answer", "no_answer"
    settled = compare_directly(*matched) if matched else None
    return ("right" if settled[0] else "wrong", settled[1]) if settled else None


def _get_fault(reply: GraderReply) -> str | None:
    """Return the fault of a gold answer that a reply reports, or None."""
    return reply.verdict if reply.failure is None else "cannot be worked out in time"
