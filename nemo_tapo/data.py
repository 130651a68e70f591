"""The order in which queries reach the loop: shuffled anew each epoch, a function of (seed, step) alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

from nemo_tapo.runtime.interface import Tokenizer
from nemo_tapo.seeding import rng
from nemo_tapo.types import Query


class QueryOrder:
    """`queries(step)` gives the P queries of a step; no position has to be stored to resume."""

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


def with_prompts(
    queries: Sequence[Query], tokenizer: Tokenizer, longest: int
) -> tuple[list[Query], list[tuple[Query, str]]]:
    """Adds each query's token ids. Returns (usable, quarantined with the reason).

    Set aside are queries without question or answer, with a uid seen before, and those whose prompt has more than
    `longest` tokens.
    """
    usable: list[Query] = []
    quarantined: list[tuple[Query, str]] = []
    seen: set[str] = set()
    for query in queries:
        reason = None
        if not query.question.strip():
            reason = "empty question"
        elif not query.answer.strip():
            reason = "missing answer"
        elif query.uid in seen:
            reason = "uid seen before"
        if reason is None:
            seen.add(query.uid)
            prompt_ids = tokenizer.chat(query.question)
            if len(prompt_ids) <= longest:
                usable.append(replace(query, prompt_ids=prompt_ids))
                continue
            reason = f"prompt of {len(prompt_ids)} tokens, the context leaves {longest}"
        quarantined.append((query, reason))
    return usable, quarantined


def check_quarantine(quarantined: int, total: int, largest_share: float) -> None:
    """Raises ValueError when too large a share of the data had to be set aside."""
    if total and quarantined / total > largest_share:
        raise ValueError(
            f"{quarantined} of {total} rows of data were set aside, more than max_bad_rows = {largest_share:.1%}; "
            "see quarantine.jsonl for the reasons."
        )
