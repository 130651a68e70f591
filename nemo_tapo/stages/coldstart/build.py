"""Cold-start data (section 3.2 of arXiv 2606.18844): the base's own wrong responses, corrected.

groups -> survey (pairs wrong with right) -> corrections -> mix
-> SFT format (query -> corrective or correct response) + IFT format (synthesis prompt -> analysis and reconstruction)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nemo_tapo.algorithms.reflection import render
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.datasets.sft_examples import Example, Source
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Construction, Group, Pair, Row
from nemo_tapo.utils.seeding import rng

MIXED, ALL_RIGHT, ALL_WRONG = FATES = ("right_and_wrong", "all_right", "all_wrong")
CORRECT, CORRECTIVE, SYNTHESIS = ORIGINS = ("correct", "corrective", "synthesis")


@dataclass
class Survey:
    """What the groups hold, as far as the data needs it; the other responses are not kept in memory."""

    draw: random.Random  # of the mix; goes on where the survey leaves it
    pairs: list[Pair] = field(default_factory=list)
    right: list[Example] = field(default_factory=list)  # one a query that was answered right
    fates: Counter[str] = field(default_factory=Counter)  # of FATES, one a query
    outcomes: Counter[str] = field(default_factory=Counter)  # the verifier's, one a response
    correct: int = 0  # responses
    truncated: int = 0  # responses


def survey(groups: Iterable[Group], cfg: RunConfig) -> Survey:
    """One pass over the groups, in query order."""
    found = Survey(rng(cfg.seed, "coldstart mix"))
    for group in groups:
        found.fates[fate(group)] += 1
        found.outcomes.update(r.grade.outcome for r in group.rollouts)
        found.correct += len(group.correct)
        found.truncated += sum(r.completion.truncated for r in group.rollouts)
        found.pairs += pairs_of(group, cfg.coldstart.corrections_per_query, cfg.seed)
        if group.correct:
            found.right.append(correct_example(group, found.draw.randrange(len(group.correct))))
    return found


def fate(group: Group) -> str:
    """Whether a query can be corrected: only one with right and wrong responses can."""
    if group.correct and group.incorrect:
        return MIXED
    return ALL_RIGHT if group.correct else ALL_WRONG


def pairs_of(group: Group, most: int, seed: int) -> list[Pair]:
    """Up to `most` wrong rollouts of a query, each with one of its right ones; none if either is lacking."""
    if not group.correct or not group.incorrect:
        return []
    draw = rng(seed, "coldstart pairs", group.query.uid)
    wrong = draw.sample(group.incorrect, min(most, len(group.incorrect)))
    return [Pair(w, draw.choice(group.correct), i) for i, w in enumerate(wrong)]


@dataclass
class Share:
    """What became of the examples of one origin: made = duplicates + cut_off + too_long + left_over + taken."""

    wished: int
    made: int = 0
    duplicates: int = 0  # the same tokens as another example; dropped if coldstart.drop_duplicates
    cut_off: int = 0  # a right response that the length limit ended: it would teach not to end
    too_long: int = 0  # beyond coldstart.max_length: never cut
    left_over: int = 0  # more than wished
    taken: int = 0


@dataclass(frozen=True)
class Mix:
    """The examples in the order of the file, and what became of the others."""

    examples: list[Example]
    shares: dict[str, Share]  # by origin
    doubles_kept: int  # where duplicates are not dropped


def mix(found: Survey, corrected: Sequence[Construction], template: str, cfg: RunConfig, tokenizer: Tokenizer) -> Mix:
    """The wished mix of SFT and IFT examples, or what there is of it, shuffled by the run's seed."""
    settings = cfg.coldstart
    corrective = round(settings.sft_examples * settings.corrective_share)
    wished = {
        CORRECT: settings.sft_examples - corrective,
        CORRECTIVE: corrective,
        SYNTHESIS: settings.ift_examples,
    }
    pools = {
        CORRECT: found.right,
        CORRECTIVE: [corrective_example(c) for c in corrected],
        SYNTHESIS: [ift_example(c, template, tokenizer) for c in corrected],
    }
    longest = settings.max_length or cfg.model.max_length
    shares = {origin: Share(wished[origin], len(pools[origin])) for origin in ORIGINS}
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    doubles = 0
    for origin, pool in pools.items():
        usable = []
        for example in pool:
            tokens = (example.prompt_ids, example.response_ids)
            double = tokens in seen
            seen.add(tokens)
            if double and settings.drop_duplicates:
                shares[origin].duplicates += 1
            elif example.response_ids[-1] != tokenizer.eos_id:
                shares[origin].cut_off += 1
            elif example.length > longest:
                shares[origin].too_long += 1
            else:
                doubles += double
                usable.append(example)
        pools[origin] = usable
    taken: dict[str, list[Example]] = {}
    for origin in (CORRECTIVE, CORRECT, SYNTHESIS):  # the order of the draws
        pool, share = pools[origin], shares[origin]
        taken[origin] = found.draw.sample(pool, min(share.wished, len(pool)))
        share.taken = len(taken[origin])
        share.left_over = len(pool) - share.taken
    mixed = [*taken[SYNTHESIS], *taken[CORRECTIVE], *taken[CORRECT]]
    found.draw.shuffle(mixed)
    return Mix(mixed, shares, doubles)


def ift_example(c: Construction, template: str, tokenizer: Tokenizer) -> Example:
    """Synthesis prompt -> `<analysis>`, `<reconstruction>`: teaches the form and the analysis."""
    prompt, wrong = render(template, c.pair), c.pair.wrong.text
    lead = wrong[: len(wrong) - len(wrong.lstrip("\n"))]  # which the prompt does not show
    shown = c.reconstruction.removeprefix(lead)
    answer = f"<analysis>{c.analysis}</analysis>\n<reconstruction>{shown}</reconstruction>"
    ids = (*tokenizer.encode(answer), tokenizer.eos_id)
    return Example(f"ift-{c.pair.uid}", "ift", SYNTHESIS, prompt, answer, tokenizer.chat(prompt), ids, source_of(c))


def corrective_example(c: Construction) -> Example:
    """Query -> the reconstruction as a plain answer, its kept prefix the rollout's own tokens."""
    query = c.pair.wrong.query
    uid, source = f"sft-{c.pair.uid}", source_of(c)
    return Example(uid, "sft", CORRECTIVE, query.user_text, c.reconstruction, query.prompt_ids, c.response_ids, source)


def correct_example(group: Group, which: int) -> Example:
    """Query -> one of the base's own right responses."""
    rollout, query = group.correct[which], group.query
    ids, source = rollout.completion.token_ids, Source(query.uid, rollout.uid)
    return Example(f"sft-{rollout.uid}", "sft", CORRECT, query.user_text, rollout.text, query.prompt_ids, ids, source)


def source_of(c: Construction) -> Source:
    pair = c.pair
    return Source(pair.wrong.query.uid, pair.wrong.uid, pair.reference.uid, c.kept_tokens, c.kept_share)


class Epochs:
    """Examples in batches, shuffled anew each epoch; `batch(step)` depends on (seed, step) alone."""

    def __init__(self, built: Sequence[Example], per_step: int, epochs: float, seed: int) -> None:
        """Raises ValueError if there is no example at all."""
        if not built:
            raise ValueError(
                "there is no cold-start example: nothing was answered right, or coldstart.sft_examples and "
                "ift_examples ask for none."
            )
        self.built, self.seed = list(built), seed
        self.per_step = min(per_step, len(built))
        self.steps_per_epoch = len(built) // self.per_step
        self.steps = max(1, round(epochs * self.steps_per_epoch))

    def batch(self, step: int) -> list[Row]:
        """The rows of a step (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.built)))
        rng(self.seed, "coldstart order", epoch).shuffle(order)
        chosen = order[position * self.per_step : (position + 1) * self.per_step]
        return [self.built[i].row() for i in chosen]
