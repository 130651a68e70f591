"""OPSD: on-policy self-distillation (arXiv 2601.18734). The model, told a correct solution, teaches itself.

GRPO's loop, queries, rollouts and seeds. Where GRPO asks the verifier how good a rollout is, the teacher reads the
question with a correct solution (`Lesson`), is forced along the rollout, and the student is drawn towards what the
teacher would have said at each token. The authors sample one response a problem; K are kept here, so that runs compare.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import replace

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.equations.divergence import DivergenceRules
from nemo_tapo.losses.distillation import DivergenceLoss, SampledTokenLoss
from nemo_tapo.metrics import OPSD_ROLLOUTS, OPSD_ROWS, left_out_count
from nemo_tapo.types import Experience, Group, Lesson, Query, Rollout, Row
from nemo_tapo.utils.seeding import rng

# The teacher's prompt after the authors' third version (Figure 2 of arXiv 2601.18734, their transition sentence).
PROMPT = (
    "Problem: {question}\n\nHere is a reference solution to this problem:\n"
    "=== Reference Solution Begin ===\n{reference}\n=== Reference Solution End ===\n\n"
    "After reading the reference solution above, make sure you truly understand the reasoning behind each step; do not "
    "copy or paraphrase it. Now, using your own words and independent reasoning, derive the same final answer to the "
    "problem above.\n"
    "Please reason step by step, and put your final answer within \\boxed{}."
)

# Why a rollout is not taught.
NONE_CORRECT = "none_correct"  # no rollout of the group is right
ONLY_ITSELF = "only_itself"  # the only right one is the one that would be taught
NO_SOLUTION = "no_solution"  # the data has none for this query
PROMPT_TOO_LONG = "prompt_too_long"  # the privileged prompt and the response exceed model.max_length
LEFT_OUT_REASONS = (NONE_CORRECT, ONLY_ITSELF, NO_SOLUTION, PROMPT_TOO_LONG)


class OPSD(GRPO):
    """On-policy self-distillation."""

    def __init__(self, cfg: RunConfig, tools: Tools) -> None:
        super().__init__(cfg, tools)
        settings, temperature = cfg.opsd, cfg.rollout.temperature
        self.template = settings.prompt or PROMPT
        if settings.divergence == "sampled":
            self.loss = SampledTokenLoss(temperature, settings.teacher)
        else:
            rules = DivergenceRules(settings.beta, settings.entry_clip, temperature)
            self.loss = DivergenceLoss(rules, settings.teacher)

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Sample GRPO's rollouts and write the teacher's prompt for each."""
        experience = await super().collect(step, queries)
        lessons = (self.make_lesson(r, group, step) for group in experience.groups for r in group.rollouts)
        return replace(experience, lessons=tuple(lessons))

    def make_lesson(self, rollout: Rollout, group: Group, step: int) -> Lesson:
        """Write the privileged prompt for one rollout, or say why there is none.

        It depends on seed, step, uid and the group alone. The teacher never sees the very rollout that it judges.
        """
        reference, text = "", rollout.query.solution
        if self.cfg.opsd.privileged == "rollout":
            others = [other for other in group.correct if other.index != rollout.index]
            if not others:
                return Lesson(rollout, ONLY_ITSELF if group.correct else NONE_CORRECT)
            chosen = rng(self.cfg.seed, "opsd", step, rollout.uid).choice(others)
            reference, text = chosen.uid, chosen.text
        elif not text.strip():
            return Lesson(rollout, NO_SOLUTION)
        prompt_ids = self.tools.tokenizer.chat(fill_privileged_prompt(self.template, rollout.query.question, text))
        if len(prompt_ids) + len(rollout.completion.token_ids) > self.cfg.model.max_length:
            return Lesson(rollout, PROMPT_TOO_LONG, reference)
        return Lesson(rollout, None, reference, prompt_ids)

    def make_rows(self, experience: Experience) -> list[Row]:
        """Return one row for each rollout that is taught; the reward plays no part, so the advantage is 0."""
        prompts = {each.rollout.uid: each.teacher_prompt_ids for each in experience.lessons if each.left_out is None}
        rows = [
            row for group in experience.groups for row in self.make_original_rows(group, [0.0] * len(group.rollouts))
        ]
        return [replace(row, teacher_prompt_ids=prompts[row.uid]) for row in rows if row.uid in prompts]

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Add to GRPO's counters: rollouts = rows + the sum over `opsd/left_out/<reason>`."""
        left_out = Counter(lesson.left_out for lesson in experience.lessons)
        return {
            **super().compute_metrics(experience, rows),
            OPSD_ROLLOUTS: len(experience.lessons),
            OPSD_ROWS: left_out[None],
            **{left_out_count(reason): left_out[reason] for reason in LEFT_OUT_REASONS},
        }


def fill_privileged_prompt(template: str, question: str, reference: str) -> str:
    """Fill in the template. Every other brace is text: LaTeX is full of them.

    >>> fill_privileged_prompt("{question} Solution: {reference} {x}", "1+1?", "2")
    '1+1? Solution: 2 {x}'
    """
    return reference.strip("\n").join(part.replace("{question}", question) for part in template.split("{reference}"))
