"""Measure what the driver does in a step of cluster size: what neither engine nor actor takes off its hands.

    python tools/bench.py driver [--scale 4]

The loop, the algorithm, pairs, parsing, anchoring, rows, collation, counters and every file of a run are the real ones.
Engine and actor are not: the engine answers at once with random text of the length asked for (its seconds are left
out), and the actor takes the batch and gives back weights of 1. A token is one character, of a vocabulary of 20,000, so
that token ids are as large as those of a language model. Every query has right and wrong rollouts, every pair gives a
row, and every response is as long as allowed: more than a real step has. Grading is left out, for that is the
verifier's time: here it compares the last line.
"""

from __future__ import annotations

import asyncio
import io
import random
import resource
import sys
import tempfile
import time
from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch

from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import validate
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.losses.base import Loss
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer, ScriptedActor, ScriptedGenerator, ScriptedRuntime
from nemo_tapo.tasks.prompts import ERROR_QUOTE, FULL_PROMPT, QUOTING_PROMPT, SYNTHESIS_PROMPT
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.tracking.recorder import RunRecorder, SampleRecording
from nemo_tapo.train import train
from nemo_tapo.types import (
    Batch,
    Completion,
    Experience,
    Grade,
    Provenance,
    Query,
    Request,
    Row,
    StepRecord,
    UpdateResult,
)
from nemo_tapo.utils.signals import Stop
from nemo_tapo.utils.token_ids import share_ids

FIRST, WORDS = 0x4E00, 20_000  # the characters that stand for tokens
LINE = 64  # tokens
RIGHT_END, WRONG_END = "\n\\boxed{1}", "\n\\boxed{0}"
OPEN, CLOSE = "<reconstruction>", "</reconstruction>"
TURN = "\nWait, that is not right.\n"
PROMPT_ROOM = 512  # tokens, beside two responses
STEPS = 2  # the second is measured: the first constructs nothing if that is deferred
COLLECTION = "requests, pairs, parsing, anchoring, s"
ROWS, COLLATION, COUNTERS, RECORDS = "rows and advantages, s", "collation, s", "counters, s", "records, s"
FIRST_RECORDS = "records of the first step, with every log-probability, s"
TOKENS_TRAINED = "tokens in rows"
PEAK = "peak of the driver's memory, GiB"


class WideTokenizer(CharacterTokenizer):
    """Maps each character to one token, as CharacterTokenizer does, from a larger vocabulary."""

    vocab_size = FIRST + WORDS

    def encode(self, text: str) -> tuple[int, ...]:
        """Return one id per character."""
        return share_ids(list(map(ord, text)))

    def decode(self, ids: Sequence[int]) -> str:
        """Return the text of `ids`, special tokens left out."""
        return "".join(map(chr, ids)).translate(_SPECIAL)


_SPECIAL = dict.fromkeys(range(4))


class LongAnswers(ScriptedGenerator):
    """Answers at once with text of full length; counts the seconds that this takes."""

    seconds = 0.0

    def __init__(self, tokenizer: CharacterTokenizer, tokens: int) -> None:
        super().__init__(lambda prompt, request: "", tokenizer, max_model_len=4 * tokens + 2 * PROMPT_ROOM)
        self.tokens = tokens

    async def generate(self, request: Request) -> Completion:
        """Return a right or a wrong response, or a correction of the one in the prompt."""
        await asyncio.sleep(0)
        begin = time.perf_counter()
        prompt = self.tokenizer.decode(request.prompt_ids)
        if "## Incorrect response" in prompt:
            text = self._correct(prompt)
        else:
            text = self._write(request.seed) + (RIGHT_END if request.seed % 2 else WRONG_END)
        ids = (*self.tokenizer.encode(text), self.tokenizer.eos_id)
        logprobs = (-0.5,) * len(ids) if request.logprobs else None
        self.seconds += time.perf_counter() - begin
        return Completion(ids, text, False, logprobs)

    def _write(self, seed: int) -> str:
        length = self.tokens - len(RIGHT_END) - 1
        drawn = random.Random(seed).choices(range(FIRST, FIRST + WORDS), k=length)
        for place in range(LINE - 1, length, LINE):
            drawn[place] = 10
        return "".join(map(chr, drawn))

    def _correct(self, prompt: str) -> str:
        """Keep half of the wrong response, turn, and fill the row up to its length."""
        wrong = prompt.split("## Incorrect response\n", 1)[1].split("\n\n## Correct", 1)[0]
        kept = wrong[: wrong.index("\n", len(wrong) // 2)]
        rest = self._write(len(kept))[: self.tokens - len(kept) - len(TURN) - len(RIGHT_END) - 1]
        end = RIGHT_END if ord(wrong[0]) % 2 else WRONG_END
        return f"<analysis>It is wrong.</analysis>\n{OPEN}{kept}{TURN}{rest}{end}{CLOSE}"


class IdleActor(ScriptedActor):
    """Takes a batch, and gives back what a real actor sends to the driver."""

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Return weights of 1."""
        return UpdateResult(0.0, 0.0, 0.0, {}, torch.ones(batch.input_ids.shape))


class LastLineTask:
    """Grades by the last line; see `interfaces.Task`."""

    synthesis_prompt, full_prompt = SYNTHESIS_PROMPT, FULL_PROMPT
    quoting_prompt, error_quote = QUOTING_PROMPT, ERROR_QUOTE

    def __init__(self, queries: int) -> None:
        self.queries = [Query(f"train-{i}", f"Solve problem {i}.", "1") for i in range(queries)]

    def train_queries(self) -> Sequence[Query]:
        return self.queries

    def benchmarks(self) -> Mapping[str, Sequence[Query]]:
        return {}

    def provenance(self, name: str) -> Provenance:
        return Provenance("generated", len(self.queries))

    def row(self, query: Query) -> Mapping[str, Any]:
        return {}

    def locate_error(self, query: Query, response: str) -> int | None:
        return None

    async def grade(self, query: Query, response: str) -> Grade:
        right = response.endswith(RIGHT_END)
        return Grade(float(right), "right" if right else "wrong", "1" if right else "0")

    def close(self) -> None: ...


class Clock:
    """Adds up seconds by name."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = defaultdict(float)
        self._since = time.perf_counter()

    def restart(self) -> None:
        self._since = time.perf_counter()

    def count(self, name: str) -> None:
        """Count the seconds since the last count, or since `restart`, to `name`."""
        now = time.perf_counter()
        self.seconds[name] += now - self._since
        self._since = now


class TimedTAPO(TAPO):
    """Counts the seconds of its own calls; those of the engine are left out."""

    clock: Clock
    engine: LongAnswers

    async def collect(self, step: int, queries: Sequence[Query]) -> Experience:
        """Sample and construct."""
        before = self.engine.seconds
        self.clock.restart()
        experience = await super().collect(step, queries)
        self.clock.count(COLLECTION)
        self.clock.seconds[COLLECTION] -= self.engine.seconds - before
        return experience

    def make_rows(self, experience: Experience) -> list[Row]:
        """Make rows with their advantages."""
        self.clock.restart()
        rows = super().make_rows(experience)
        self.clock.count(ROWS)
        return rows

    def compute_metrics(self, experience: Experience, rows: Sequence[Row]) -> dict[str, float]:
        """Compute the counters."""
        self.clock.count(COLLATION)  # since make_rows
        measured = super().compute_metrics(experience, rows)
        self.clock.count(COUNTERS)
        return measured


class TimedRecorder(RunRecorder):
    """Counts the seconds of a step's records, and keeps those of the first step apart."""

    clock: Clock
    first_step: Mapping[str, float] = {}
    tokens = 0  # in the rows of the last step

    def step(self, record: StepRecord) -> None:
        """Write a step."""
        self.clock.restart()
        super().step(record)
        self.clock.count(RECORDS)
        self.tokens = sum(row.length for row in record.rows)
        if not self.first_step:
            self.first_step, self.clock.seconds = self.clock.seconds, defaultdict(float)


def measure_driver(queries: int, rollouts: int, tokens: int, pipeline: str) -> dict[str, float]:
    """Return the driver's seconds of one step by part, the tokens it trained on, and this process's peak in GiB."""
    return asyncio.run(_measure(queries, rollouts, tokens, pipeline))


async def _measure(queries: int, rollouts: int, tokens: int, pipeline: str) -> dict[str, float]:
    cfg = validate(
        {
            "pipeline": pipeline,
            "rollout": {"samples_per_query": rollouts, "queries_per_step": queries, "max_tokens": tokens},
            "tapo": {"max_tokens": 2 * tokens},
            "model": {"max_length": 4 * tokens + PROMPT_ROOM},
            "loss": {"kl_rows": 0},
        }
    )
    runtime = ScriptedRuntime(lambda prompt, request: "")
    runtime.tokenizer = WideTokenizer()
    runtime.generator = LongAnswers(runtime.tokenizer, tokens)
    runtime.actor = IdleActor()
    clock = Clock()
    task = LastLineTask(queries)
    usable, _ = add_prompts(task.train_queries(), runtime.tokenizer, cfg.model.max_length)
    order = QueryOrder(usable, queries, cfg.seed)
    algorithm = TimedTAPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    algorithm.clock, algorithm.engine = clock, runtime.generator
    with tempfile.TemporaryDirectory() as name, Progress(stream=io.StringIO()) as progress:
        folder = Path(name)
        samples = SampleRecording(runtime.tokenizer, cfg.tapo, cfg.trajectories_per_step, int(cfg.rollouts_gib * 2**30))
        recorder = TimedRecorder(folder, progress, "RL", STEPS, samples, groups=cfg.record_groups)
        recorder.clock = clock
        loop = LoopConfig(folder, STEPS, cfg.optimizer, cfg.loss, checkpoint_every=10**6)
        await train(loop, algorithm, runtime, order.queries, recorder, Stop())
        recorder.close()
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
    first = recorder.first_step[RECORDS]
    return {TOKENS_TRAINED: recorder.tokens, **clock.seconds, FIRST_RECORDS: first, PEAK: peak / 2**30}
