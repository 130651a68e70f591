"""Build the cold-start data (section 3.2 of arXiv 2606.18844): the base's own wrong responses, corrected.

groups -> candidates (each wrong response paired with a right one) -> corrections -> mix
-> SFT format (query -> corrective, correct or any response) + IFT format (synthesis prompt -> analysis and
reconstruction)
"""

from __future__ import annotations

import random
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field

from nemo_tapo.algorithms.reflection import render_prompt
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.datasets.sft_examples import ExampleSource, SftExample
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.types import Construction, Group, Pair, Rollout, Row
from nemo_tapo.utils.seeding import rng

MIXED, ALL_RIGHT, ALL_WRONG = QUERY_CLASSES = ("right_and_wrong", "all_right", "all_wrong")
CORRECT, CORRECTIVE, SAMPLED, SYNTHESIS = ORIGINS = ("correct", "corrective", "sampled", "synthesis")


@dataclass
class Candidates:
    """The pairs and responses that may become examples, and counts of all responses.

    Other responses are not kept in memory.
    """

    rng: random.Random  # used by collect_candidates, then by mix_examples
    pairs: list[Pair] = field(default_factory=list)
    correct_examples: list[SftExample] = field(default_factory=list)  # `correct_per_query` a query, at most
    sampled_examples: list[SftExample] = field(default_factory=list)  # all, if `sampled_examples` asks for any
    query_classes: Counter[str] = field(default_factory=Counter)  # queries by class, see QUERY_CLASSES
    outcomes: Counter[str] = field(default_factory=Counter)  # responses by verifier outcome
    correct_responses: int = 0
    truncated_responses: int = 0


def collect_candidates(groups: Iterable[Group], cfg: RunConfig) -> Candidates:
    """Collect pairs, right responses and counts in one pass over the groups, which come in query order."""
    candidates = Candidates(rng(cfg.seed, "coldstart mix"))
    for group in groups:
        candidates.query_classes[classify_query(group)] += 1
        candidates.outcomes.update(r.grade.outcome for r in group.rollouts)
        candidates.correct_responses += len(group.correct)
        candidates.truncated_responses += sum(r.completion.truncated for r in group.rollouts)
        candidates.pairs += make_pairs(group, cfg.coldstart.corrections_per_query, cfg.seed)
        most = min(cfg.coldstart.correct_per_query, len(group.correct))
        chosen = candidates.rng.sample(range(len(group.correct)), most)
        candidates.correct_examples += [make_plain_example(group.correct[which], CORRECT) for which in chosen]
        if cfg.coldstart.sampled_examples:
            candidates.sampled_examples += [make_plain_example(rollout, SAMPLED) for rollout in group.rollouts]
    return candidates


def classify_query(group: Group) -> str:
    """Return the query's class, one of QUERY_CLASSES. Only a query of class MIXED can be corrected."""
    if group.correct and group.incorrect:
        return MIXED
    return ALL_RIGHT if group.correct else ALL_WRONG


def make_pairs(group: Group, most: int, seed: int) -> list[Pair]:
    """Pair up to `most` wrong rollouts of a query with right ones. Return no pair if the query has only one kind."""
    if not group.correct or not group.incorrect:
        return []
    draw = rng(seed, "coldstart pairs", group.query.uid)
    wrong = draw.sample(group.incorrect, min(most, len(group.incorrect)))
    return [Pair(w, draw.choice(group.correct), i) for i, w in enumerate(wrong)]


@dataclass
class OriginCounts:
    """The counts of the examples of one origin: made = duplicates + cut_off + too_long + left_over + taken.

    >>> OriginCounts(wished=4, made=7, duplicates=1, too_long=2, taken=4)
    OriginCounts(wished=4, made=7, duplicates=1, cut_off=0, too_long=2, left_over=0, taken=4)
    """

    wished: int
    made: int = 0
    duplicates: int = 0  # the same tokens as another example; dropped if coldstart.drop_duplicates
    cut_off: int = 0  # right responses that were truncated: they would teach the model not to stop
    too_long: int = 0  # longer than coldstart.max_length; examples are never shortened
    left_over: int = 0  # more than wished
    taken: int = 0


@dataclass(frozen=True)
class ExampleMix:
    """The examples in the order of the file, and the counts of those left out."""

    examples: list[SftExample]
    counts: dict[str, OriginCounts]  # by origin
    duplicates_kept: int  # nonzero only if duplicates are not dropped


def mix_examples(
    candidates: Candidates, corrected: Sequence[Construction], template: str, cfg: RunConfig, tokenizer: Tokenizer
) -> ExampleMix:
    """Mix SFT and IFT examples in the configured numbers, or as many as there are, shuffled by the run's seed."""
    settings = cfg.coldstart
    corrective = round(settings.sft_examples * settings.corrective_share)
    wished = {
        CORRECT: settings.sft_examples - corrective,
        CORRECTIVE: corrective,
        SAMPLED: settings.sampled_examples,
        SYNTHESIS: settings.ift_examples,
    }
    pools = {
        CORRECT: candidates.correct_examples,
        CORRECTIVE: [make_corrective_example(c) for c in corrected],
        SAMPLED: candidates.sampled_examples,
        SYNTHESIS: [make_ift_example(c, template, tokenizer) for c in corrected],
    }
    longest = settings.max_length or cfg.model.max_length
    counts = {origin: OriginCounts(wished[origin], len(pools[origin])) for origin in ORIGINS}
    seen: set[tuple[tuple[int, ...], tuple[int, ...]]] = set()
    doubles = 0
    for origin, pool in pools.items():
        usable = []
        for example in pool:
            tokens = (example.prompt_ids, example.response_ids)
            double = tokens in seen
            seen.add(tokens)
            if double and settings.drop_duplicates:
                counts[origin].duplicates += 1
            elif example.response_ids[-1] != tokenizer.eos_id:
                counts[origin].cut_off += 1
            elif example.length > longest:
                counts[origin].too_long += 1
            else:
                doubles += double
                usable.append(example)
        pools[origin] = usable
    taken: dict[str, list[SftExample]] = {}
    for origin in (CORRECTIVE, CORRECT, SYNTHESIS, SAMPLED):  # this order decides the random draws
        pool, origin_counts = pools[origin], counts[origin]
        taken[origin] = candidates.rng.sample(pool, min(origin_counts.wished, len(pool)))
        origin_counts.taken = len(taken[origin])
        origin_counts.left_over = len(pool) - origin_counts.taken
    mixed = [*taken[SYNTHESIS], *taken[CORRECTIVE], *taken[CORRECT], *taken[SAMPLED]]
    candidates.rng.shuffle(mixed)
    return ExampleMix(mixed, counts, doubles)


def make_ift_example(c: Construction, template: str, tokenizer: Tokenizer) -> SftExample:
    """Make an IFT example, which teaches the format and the analysis.

    It maps the synthesis prompt to `<analysis>` and `<reconstruction>`.
    """
    prompt, wrong = render_prompt(template, c.pair), c.pair.wrong.text
    lead = wrong[: len(wrong) - len(wrong.lstrip("\n"))]  # leading newlines, which the prompt does not show
    shown = c.reconstruction.removeprefix(lead)
    answer = f"<analysis>{c.analysis}</analysis>\n<reconstruction>{shown}</reconstruction>"
    ids = (*tokenizer.encode(answer), tokenizer.eos_id)
    return SftExample(
        f"ift-{c.pair.uid}", "ift", SYNTHESIS, prompt, answer, tokenizer.chat(prompt), ids, make_source(c)
    )


def make_corrective_example(c: Construction) -> SftExample:
    """Make an SFT example: query -> the reconstruction as a plain answer.

    The kept prefix consists of the rollout's own token ids.
    """
    query = c.pair.wrong.query
    uid, source = f"sft-{c.pair.uid}", make_source(c)
    return SftExample(
        uid, "sft", CORRECTIVE, query.user_text, c.reconstruction, query.prompt_ids, c.response_ids, source
    )


def make_plain_example(rollout: Rollout, origin: str) -> SftExample:
    """Make an SFT example: query -> a response of the base itself, as it was sampled."""
    query, ids = rollout.query, rollout.completion.token_ids
    source = ExampleSource(query.uid, rollout.uid)
    uid = f"{'sft' if origin == CORRECT else origin}-{rollout.uid}"
    return SftExample(uid, "sft", origin, query.user_text, rollout.text, query.prompt_ids, ids, source)


def make_source(c: Construction) -> ExampleSource:
    """Return where a construction's example comes from."""
    pair = c.pair
    return ExampleSource(pair.wrong.query.uid, pair.wrong.uid, pair.right.uid, c.kept_tokens, c.kept_share)


class EpochBatches:
    """The examples in batches, shuffled again in each epoch. `batch(step)` depends on (seed, step) alone."""

    def __init__(self, examples: Sequence[SftExample], per_step: int, epochs: float, seed: int) -> None:
        """Compute the number of steps. Raises ValueError if there is no example at all."""
        if not examples:
            raise ValueError(
                "there is no cold-start example: nothing was answered right, or coldstart.sft_examples, "
                "sampled_examples and ift_examples ask for none."
            )
        self.examples, self.seed = list(examples), seed
        self.per_step = min(per_step, len(examples))
        self.steps_per_epoch = len(examples) // self.per_step
        self.steps = max(1, round(epochs * self.steps_per_epoch))

    def batch(self, step: int) -> list[Row]:
        """Return the rows of a step (0-based)."""
        epoch, position = divmod(step, self.steps_per_epoch)
        order = list(range(len(self.examples)))
        rng(self.seed, "coldstart order", epoch).shuffle(order)
        chosen = order[position * self.per_step : (position + 1) * self.per_step]
        return [self.examples[i].to_row() for i in chosen]
