"""The order in which queries reach the loop, and their prompts as token ids."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Query, SetAside
from nemo_tapo.utils.seeding import rng


class QueryOrder:
    """`queries(step)` gives the P queries of a step, shuffled anew each epoch.

    A function of (seed, step) alone: no position has to be stored to resume.
    """

    def __init__(self, queries: Sequence[Query], per_step: int, seed: int) -> None:
        """Raises ValueError if there are fewer queries than one step needs."""
        if len(queries) < per_step:
            raise ValueError(
                f"the training set has {len(queries)} usable queries, fewer than rollout.queries_per_step = {per_step}."
            )
        self.all, self.per_step, self.seed = list(queries), per_step, seed
        self.steps_per_epoch = len(queries) // per_step  # the last, incomplete batch of an epoch is left out

    def queries(self, step: int) -> list[Query]:
        """The queries of `step` (0-based)."""
        epoch, batch = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.all)))
        rng(self.seed, "order", epoch).shuffle(order)
        return [self.all[i] for i in order[batch * self.per_step : (batch + 1) * self.per_step]]


def with_prompts(queries: Sequence[Query], tokenizer: Tokenizer, longest: int) -> tuple[list[Query], list[SetAside]]:
    """Adds each query's token ids. Returns (usable, set aside).

    Set aside are queries without question or answer, with a uid seen before, and those whose prompt has more than
    `longest` tokens.
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
            if len(prompt_ids) <= longest:
                usable.append(replace(query, prompt_ids=prompt_ids))
                continue
            reason, detail = "prompt_too_long", f"{len(prompt_ids)} tokens, the context leaves {longest}"
        aside.append(SetAside(query.uid, reason, detail, query.question))
    return usable, aside
