"""Let the policy go on from its own wrong prefix (`tapo.construct: continue_from_prefix`, after arXiv 2601.20829).

There is no synthesis prompt, and the right response of the pair is not shown. The wrong response is cut behind a step,
and the policy samples what follows, as if it had just written the prefix itself:

    query's prompt                           context
    a: 47+38=75                              context: the wrong rollout's own tokens, without loss
    Wait, I forgot the carry: ...            sampled and trained

The continuations of a query form its reflection group. Where the cut is, `tapo.continue_at` says.
"""

from __future__ import annotations

from nemo_tapo.algorithms.prefilled import find_prefix_end
from nemo_tapo.algorithms.reasoning_steps import find_step_ends
from nemo_tapo.algorithms.reflection import UNGRADED, cut_sampled
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.types import Completion, Construction, Pair, Request, Rollout
from nemo_tapo.utils.concurrency import run_concurrently
from nemo_tapo.utils.seeding import seed_from

PROBES = 4  # continuations that tell whether half of them succeed


class Continuation:
    """Make graded constructions of pairs by sampling what follows a prefix of the wrong response."""

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        self.cfg, self.tools = cfg, tools

    async def construct(self, pair: Pair, step: int) -> Construction:
        """Cut the pair's wrong response, continue it and grade the whole."""
        wrong, decoded = pair.wrong, 0
        if self.cfg.tapo.continue_at == "half":
            end, decoded = await self.find_half(wrong, step)
        else:
            error_end = self.tools.task.locate_error(wrong.query, wrong.text)
            if error_end is None:
                return Construction(pair, "error_unknown")
            end = find_prefix_end(wrong.text, error_end)
        prefix = self.cut(wrong, end)
        completion = await self.sample(wrong, prefix, seed_from(self.cfg.seed, "continuation", step, pair.uid))
        return await self.grade(pair, prefix, completion, decoded)

    def cut(self, wrong: Rollout, end: int) -> tuple[int, ...]:
        """Return the wrong rollout's own token ids that lie within the first `end` characters of its text."""
        return cut_sampled(wrong.completion.token_ids, wrong.text[:end], self.tools.tokenizer)

    async def sample(self, wrong: Rollout, prefix: tuple[int, ...], seed: int) -> Completion:
        """Sample what follows a prefix, by the settings of the rollouts; both together have their length limit."""
        settings = self.cfg.rollout
        left = settings.max_tokens - len(prefix)
        if left < 1:
            return Completion((), "", truncated=True)
        request = Request(
            uid=wrong.uid,
            prompt_ids=(*wrong.query.prompt_ids, *prefix),
            seed=seed,
            max_tokens=left,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        return await self.tools.generator.generate(request)

    async def grade(self, pair: Pair, prefix: tuple[int, ...], completion: Completion, decoded: int) -> Construction:
        """Make a graded construction of a prefix and its continuation; `decoded`: tokens decoded for it before."""
        wrong, ids = pair.wrong, (*prefix, *completion.token_ids)
        kept_text, text = self.tools.tokenizer.decode(prefix), self.tools.tokenizer.decode(ids)
        kept_steps = sum(end <= len(kept_text) for end in find_step_ends(wrong.text))
        dropped, grade = None, None
        if completion.truncated:
            dropped = "truncated"
        elif not kept_steps:
            dropped = "error_not_kept"
        elif len(wrong.query.prompt_ids) + len(ids) > self.cfg.model.max_length:
            dropped = "row_too_long"
        else:
            grade = await self.tools.grade(wrong.query, text)
            dropped = None if grade.graded else UNGRADED
        return Construction(
            pair,
            dropped,
            raw=completion.text,
            reconstruction=text,
            kept_chars=len(kept_text),
            kept_tokens=len(prefix),
            kept_steps=kept_steps,
            kept_share=len(kept_text) / max(len(wrong.text), 1),
            response_ids=ids,
            decoded_tokens=decoded + len(completion.token_ids),
            grade=grade,
        )

    async def find_half(self, wrong: Rollout, step: int) -> tuple[int, int]:
        """Return the end of the longest prefix from which half of PROBES continuations are right, and their tokens.

        Bisection over the steps, which supposes that a longer wrong prefix is harder to leave. It is at least the
        first step, and not the last one, behind which nothing is left to say.
        """
        ends = [find_prefix_end(wrong.text, end) for end in find_step_ends(wrong.text)]
        ends = ends[:-1] or ends
        low, high, decoded = 0, len(ends) - 1, 0
        while low < high:
            middle = (low + high + 1) // 2
            right, tokens = await self.probe(wrong, self.cut(wrong, ends[middle]), step, middle)
            decoded += tokens
            if 2 * right >= PROBES:
                low = middle
            else:
                high = middle - 1
        return ends[low] if ends else 0, decoded

    async def probe(self, wrong: Rollout, prefix: tuple[int, ...], step: int, place: int) -> tuple[int, int]:
        """Return how many of PROBES continuations of a prefix are right, and how many tokens they have."""

        async def one(number: int) -> Completion:
            seed = seed_from(self.cfg.seed, "probe", step, wrong.uid, place, number)
            return await self.sample(wrong, prefix, seed)

        completions = await run_concurrently(one(number) for number in range(PROBES))
        right = [await self.is_right(wrong, prefix, completion) for completion in completions]
        return sum(right), sum(len(c.token_ids) for c in completions)

    async def is_right(self, begun: Rollout, prefix: tuple[int, ...], completion: Completion) -> bool:
        """Return whether a prefix of a rollout and its continuation come to a right answer, uncut."""
        if completion.truncated:
            return False
        text = self.tools.tokenizer.decode((*prefix, *completion.token_ids))
        return (await self.tools.grade(begun.query, text)).correct
