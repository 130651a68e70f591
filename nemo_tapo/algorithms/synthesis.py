"""Ask the policy to correct a wrong response, and grade what it writes (section 3.3.2 of arXiv 2606.18844)."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nemo_tapo.algorithms import reflection
from nemo_tapo.algorithms.prefilled import Answer, answer_with_prefix
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Task
from nemo_tapo.metrics import CORRECT, KEPT_SHARE, KEPT_STEPS, PAIRS, PARSED, drop_count
from nemo_tapo.types import (
    Completion,
    Construction,
    Pair,
    Request,
)
from nemo_tapo.utils.seeding import seed_from


def choose_synthesis_template(cfg: RunConfig, task: Task) -> str:
    """Return the prompt that asks for a construction: `tapo.prompt`, else the task's for the kind that is wanted."""
    if cfg.tapo.prompt is not None:
        return cfg.tapo.prompt
    if cfg.tapo.full_reconstruction:
        return task.full_prompt
    return task.quoting_prompt if cfg.tapo.prefix == "prefilled" else task.synthesis_prompt


class Synthesis:
    """Make graded constructions of pairs through the policy's own engine. The cold start uses it too (section 3.2)."""

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        self.cfg, self.tools = cfg, tools
        self.template = choose_synthesis_template(cfg, tools.task)
        self.rules = reflection.ReflectionRules(
            leak_words=cfg.tapo.leak_words,
            min_kept_share=cfg.tapo.min_kept_share,
            keep_error=cfg.tapo.keep_error,
            full_reconstruction=cfg.tapo.full_reconstruction,
            error_quote=tools.task.error_quote,
            must_quote=cfg.tapo.prefix == "prefilled",
            max_row_tokens=cfg.model.max_length,
        )

    async def construct(self, pair: Pair, step: int) -> Construction:
        """Ask, parse, anchor and grade. A prompt that does not fit the context is dropped, never truncated."""
        prompt_ids = self.tools.tokenizer.chat(reflection.render_prompt(self.template, pair))
        if len(prompt_ids) + self.cfg.tapo.max_tokens > self.tools.generator.max_model_len:
            return Construction(pair, "prompt_too_long")
        request = Request(
            uid=pair.uid,
            prompt_ids=prompt_ids,
            seed=seed_from(self.cfg.seed, "synthesis", step, pair.uid),
            max_tokens=self.cfg.tapo.max_tokens,
            temperature=self.cfg.tapo.temperature,
        )
        answer = await self.ask(pair, request, step)
        construction = await self.grade_answer(pair, answer.completion)
        return replace(
            construction,
            request_ids=prompt_ids,
            answer_ids=answer.completion.token_ids,
            decoded_tokens=answer.decoded_tokens,
        )

    async def ask(self, pair: Pair, request: Request, step: int) -> Answer:
        """Let the policy answer the synthesis prompt, in one request or with the kept prefix given to it."""
        generate = self.tools.generator.generate
        if self.cfg.tapo.prefix == "copied":
            completion = await generate(request)
            return Answer(completion, len(completion.token_ids))
        seed = seed_from(self.cfg.seed, "continuation", step, pair.uid)
        return await answer_with_prefix(
            pair.wrong, request, seed, generate, self.tools.tokenizer, self.rules.error_quote
        )

    def parse_answer(self, pair: Pair, completion: Completion) -> Construction:
        """Parse and anchor an answer to the pair's synthesis prompt; the task says where the error is, if it can."""
        error_end = self.tools.task.locate_error(pair.wrong.query, pair.wrong.text)
        return reflection.make_construction(pair, completion, self.tools.tokenizer, self.rules, error_end)

    async def grade_answer(self, pair: Pair, completion: Completion) -> Construction:
        """Parse and anchor an answer to the pair's synthesis prompt, whoever wrote it; grade it unless dropped."""
        construction = self.parse_answer(pair, completion)
        if construction.dropped is not None:
            return construction
        grade = await self.tools.grade(pair.wrong.query, construction.reconstruction)
        return replace(construction, grade=grade, dropped=None if grade.graded else reflection.UNGRADED)


def count_constructions(constructions: Sequence[Construction]) -> dict[str, float]:
    """Count pairs = parsed + the sum over `tapo/dropped/<reason>`; correct are the parsed with a right answer."""
    parsed = [c for c in constructions if c.dropped is None]
    dropped = Counter(c.dropped for c in constructions if c.dropped is not None)
    counts: dict[str, float] = {
        PAIRS: len(constructions),
        PARSED: len(parsed),
        CORRECT: sum(c.correct for c in parsed),
        **{drop_count(reason): dropped[reason] for reason in reflection.DROP_REASONS},
    }
    if dropped[reflection.UNGRADED]:
        counts[drop_count(reflection.UNGRADED)] = dropped[reflection.UNGRADED]
    if parsed:
        counts[KEPT_SHARE] = sum(c.kept_share for c in parsed) / len(parsed)
        counts[KEPT_STEPS] = sum(c.kept_steps for c in parsed) / len(parsed)
    return counts
