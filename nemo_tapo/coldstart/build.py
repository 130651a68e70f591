"""Cold-start data (section 3.2 of arXiv 2606.18844): the base's own wrong responses, corrected.

sample from the base -> grade -> pair wrong with right -> correct -> keep what the verifier accepts
-> SFT format (query -> corrective or correct response) + IFT format (synthesis prompt -> analysis and
   reconstruction) -> data.jsonl
"""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path

from nemo_tapo.algorithms.base import Tools
from nemo_tapo.config import RunConfig
from nemo_tapo.equations.reflection import anchor, render
from nemo_tapo.seeding import rng, seed_from
from nemo_tapo.tasks import arithmetic
from nemo_tapo.types import Group, Kind, Pair, Row


@dataclass(frozen=True)
class Example:
    """One supervised example, with where it came from."""

    uid: str
    format: str  # "sft" or "ift"
    origin: str  # "correct", "corrective" or "synthesis"
    prompt: str
    response: str
    prompt_ids: tuple[int, ...]
    response_ids: tuple[int, ...]

    def row(self) -> Row:
        return Row(self.uid, self.uid, Kind.EXAMPLE, self.prompt_ids, self.response_ids)


@dataclass(frozen=True)
class Corrected:
    """A pair with the writer's analysis and reconstruction, accepted by the verifier."""

    pair: Pair
    analysis: str
    reconstruction: str


def pairs_of(group: Group, most: int, seed: int) -> list[Pair]:
    """Up to `most` wrong rollouts of a query, each with one of its right ones; none if either is lacking."""
    if not group.correct or not group.incorrect:
        return []
    draw = rng(seed, "coldstart pairs", group.query.uid)
    wrong = draw.sample(group.incorrect, min(most, len(group.incorrect)))
    return [Pair(w, draw.choice(group.correct), i) for i, w in enumerate(wrong)]


async def oracle_corrections(pairs: Sequence[Pair], tools: Tools, seed: int, rejected: Counter[str]) -> list[Corrected]:
    """Corrections by the generated task's own oracle; those without a locatable error or refused are counted."""
    accepted = []
    for pair in pairs:
        query = pair.wrong.query
        problem = arithmetic.parse_question(query.question)
        fixed = arithmetic.correction(problem, pair.wrong.text, seed_from(seed, "wording", pair.uid))
        if fixed is None:
            rejected["no_locatable_error"] += 1
        elif (await tools.task.grade(query, fixed.reconstruction)).reward <= 0:
            rejected["refused_by_verifier"] += 1
        else:
            accepted.append(Corrected(pair, fixed.analysis, fixed.reconstruction))
    return accepted


def examples(groups: Sequence[Group], corrected: Sequence[Corrected], cfg: RunConfig, tools: Tools) -> list[Example]:
    """The mix of SFT and IFT examples, shuffled by the run's seed."""
    settings = cfg.coldstart
    draw = rng(cfg.seed, "coldstart mix")
    ift = [ift_example(c, cfg, tools) for c in corrected]
    corrective = [corrective_example(c, tools) for c in corrected]
    right = [correct_example(group, draw.randrange(len(group.correct)), tools) for group in groups if group.correct]
    wanted = round(settings.sft_examples * settings.corrective_share)
    sft = _take(corrective, wanted, draw) + _take(right, settings.sft_examples - wanted, draw)
    mixed = _take(ift, settings.ift_examples, draw) + sft
    fitting = [e for e in mixed if len(e.prompt_ids) + len(e.response_ids) <= cfg.model.max_length]
    draw.shuffle(fitting)
    return fitting


def _take(pool: list[Example], count: int, draw: random.Random) -> list[Example]:
    """`count` of the pool, or all of it."""
    return draw.sample(pool, min(count, len(pool)))


def ift_example(c: Corrected, cfg: RunConfig, tools: Tools) -> Example:
    """Synthesis prompt -> `<analysis>`, `<reconstruction>`: teaches the form and the analysis."""
    prompt = render(cfg.tapo.prompt or tools.task.synthesis_prompt, c.pair)
    answer = f"<analysis>{c.analysis}</analysis>\n<reconstruction>{c.reconstruction}</reconstruction>"
    ids = (*tools.tokenizer.encode(answer), tools.tokenizer.eos_id)
    return Example(f"ift-{c.pair.uid}", "ift", "synthesis", prompt, answer, tools.tokenizer.chat(prompt), ids)


def corrective_example(c: Corrected, tools: Tools) -> Example:
    """Query -> the reconstruction as a plain answer, its kept prefix the rollout's own tokens."""
    query = c.pair.wrong.query
    ids, _, _ = anchor(c.reconstruction, c.pair.wrong.text, c.pair.wrong.completion.token_ids, tools.tokenizer)
    uid = f"sft-{c.pair.uid}"
    return Example(uid, "sft", "corrective", query.question, c.reconstruction, query.prompt_ids, ids)


def correct_example(group: Group, which: int, tools: Tools) -> Example:
    """Query -> one of the base's own right responses."""
    rollout, query = group.correct[which], group.query
    ids = rollout.completion.token_ids
    return Example(f"sft-{rollout.uid}", "sft", "correct", query.question, rollout.text, query.prompt_ids, ids)


def write(path: Path, built: Sequence[Example]) -> None:
    """data.jsonl, under its name only when whole."""
    temporary = path.with_suffix(".tmp")
    with temporary.open("w") as handle:
        for example in built:
            handle.write(json.dumps(asdict(example)) + "\n")
    temporary.replace(path)


def read(path: Path) -> list[Example]:
    """The inverse of `write`. Raises ValueError naming the line that does not parse."""
    built = []
    for number, line in enumerate(path.read_text().splitlines(), 1):
        try:
            raw = json.loads(line)
            example = Example(**raw)
        except (ValueError, TypeError) as error:
            raise ValueError(f"{path}, line {number} is no cold-start example: {error}") from None
        prompt_ids, response_ids = tuple(example.prompt_ids), tuple(example.response_ids)
        built.append(replace(example, prompt_ids=prompt_ids, response_ids=response_ids))
    return built


class Epochs:
    """Examples in batches, shuffled anew each epoch; `batch(step)` depends on (seed, step) alone."""

    def __init__(self, built: Sequence[Example], per_step: int, epochs: float, seed: int) -> None:
        """Raises ValueError if there is no example at all."""
        if not built:
            raise ValueError("there is no cold-start example: the base got no query both right and wrong.")
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
