"""Order the training queries by step, and add their prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Query, SetAside
from nemo_tapo.utils.seeding import rng


class QueryOrder:
    """The order of the training queries: `queries(step)` returns the P queries of a step; each epoch is reshuffled.

    The order depends on (seed, step) alone, so a run can resume without a stored position.

    >>> from nemo_tapo.types import Query
    >>> order = QueryOrder([Query(str(i), f"{i}+1=?", str(i + 1)) for i in range(5)], per_step=2, seed=0)
    >>> order.steps_per_epoch, len(order.queries(0))
    (2, 2)
    """

    def __init__(self, queries: Sequence[Query], per_step: int, seed: int) -> None:
        """Keep the queries. Raises ValueError if there are fewer than one step needs."""
        if len(queries) < per_step:
            raise ValueError(
                f"the training set has {len(queries)} usable queries, fewer than rollout.queries_per_step = {per_step}."
            )
        self.all, self.per_step, self.seed = list(queries), per_step, seed
        self.steps_per_epoch = len(queries) // per_step  # an incomplete last batch is dropped

    def queries(self, step: int) -> list[Query]:
        """Return the queries of `step` (0-based)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        return self._shuffle(epoch)[batch * self.per_step : (batch + 1) * self.per_step]

    def skip_rest(self, position: int) -> int:
        """Return `position`, or the next epoch's first if fewer than P queries are left in this one.

        Positions count the queries of all epochs one after the other.
        """
        rest = len(self.all) - position % len(self.all)
        return position if rest >= self.per_step else position + rest

    def starting_at(self, position: int, most: int) -> list[Query]:
        """Return the queries from `position` on, at most `most` and none of the next epoch, so that none comes twice.

        At position step * P they begin with those of `queries(step)`, as long as no epoch has ended.
        """
        epoch, begin = divmod(position, len(self.all))
        return self._shuffle(epoch)[begin : begin + most]

    def _shuffle(self, epoch: int) -> list[Query]:
        order = list(range(len(self.all)))
        rng(self.seed, "order", epoch).shuffle(order)
        return [self.all[i] for i in order]


def add_prompts(
    queries: Sequence[Query], tokenizer: Tokenizer, max_prompt_tokens: int
) -> tuple[list[Query], list[SetAside]]:
    """Add each query's prompt as token ids. Return (usable queries, rows set aside).

    A query is set aside if its question or answer is blank, its uid was seen before, or its prompt has more than
    `max_prompt_tokens` tokens.
    """
    usable: list[Query] = []
    aside: list[SetAside] = []
    seen: set[str] = set()
    for query in queries:
        reason, detail = None, ""
        if not query.question.strip():
            reason = "question_missing"
        elif not query.answer.strip():
            reason = "answer_missing"
        elif query.uid in seen:
            reason = "uid_seen_before"
        if reason is None:
            seen.add(query.uid)
            prompt_ids = tokenizer.chat(query.user_text)
            if len(prompt_ids) <= max_prompt_tokens:
                usable.append(replace(query, prompt_ids=prompt_ids))
                continue
            reason, detail = "prompt_too_long", f"{len(prompt_ids)} tokens, the context leaves {max_prompt_tokens}"
        aside.append(SetAside(query.uid, reason, detail, query.question))
    return usable, aside
