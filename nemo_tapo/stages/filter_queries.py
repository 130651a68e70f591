"""`nemo-tapo filter`: the training queries that the model answers sometimes right and sometimes wrong.

Section 4.1 of arXiv 2606.18844 keeps those with an accuracy in [0.125, 0.875]. Every sample goes to the disk as it
comes, so a filter that was stopped or killed goes on; seeds come from names, so it ends as an undisturbed one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import DatasetConfig, FilterConfig, TaskConfig
from nemo_tapo.datasets.sets import TRAIN
from nemo_tapo.evaluation.benchmarks import digest
from nemo_tapo.evaluation.model_files import identity
from nemo_tapo.evaluation.sample_store import Sample, Store, read
from nemo_tapo.types import Query, Request, SetAside
from nemo_tapo.utils.concurrency import concurrently
from nemo_tapo.utils.jsonl import finite
from nemo_tapo.utils.seeding import seed_from

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session
    from nemo_tapo.tracking.progress import Stage

SAMPLES, SUMMARY = "samples", "summary.json"
KEPT, TOO_EASY, TOO_HARD, FAILED = CLASSES = ("kept", "too_easy", "too_hard", "failed")
MANY_CUT = 0.1  # share of responses cut off from which on the user is told: their queries look harder than they are
UNGRADED = frozenset({"timeout", "error"})  # outcomes of the verifier that leave open whether a response is right


@dataclass
class Sampled:
    """A query with what its samples came to, `outcomes[i]` None while sample i is missing."""

    query: Query
    outcomes: list[str | None]
    tokens: int = 0
    truncated: int = 0

    def take(self, sample: Sample) -> None:
        """A sample that was missing."""
        self.outcomes[sample.index] = sample.outcome
        self.tokens += sample.tokens
        self.truncated += sample.truncated

    @property
    def accuracy(self) -> Fraction:
        """Share of right responses; what could not be graded is not right."""
        return Fraction(self.outcomes.count("right"), len(self.outcomes))

    def place(self, least: Fraction, most: Fraction) -> str:
        """One of CLASSES.

        Where responses could not be graded, the query's accuracy is known only within bounds: if they were all wrong,
        if they were all right. It is `failed` when that decides between two classes, and only then.
        """
        open_ones = Fraction(sum(o in UNGRADED for o in self.outcomes), len(self.outcomes))
        low, high = (place(a, least, most) for a in (self.accuracy, self.accuracy + open_ones))
        return low if low == high else FAILED


def place(accuracy: Fraction, least: Fraction, most: Fraction) -> str:
    """Both bounds are inside."""
    return TOO_HARD if accuracy < least else TOO_EASY if accuracy > most else KEPT


def exactly(bound: float) -> Fraction:
    """The decimal number as it was written: 0.1 is one in ten, which its float is not quite."""
    return Fraction(repr(bound))


async def filter_queries(session: Session) -> str:
    """Samples, grades and sorts the training queries into <output>/kept.jsonl and the three others.

    Returns the counts and how to train on the kept, for the user.
    """
    cfg = session.cfg
    settings, max_tokens = cfg.filter, cfg.filter.max_tokens or cfg.rollout.max_tokens
    queries = session.train_queries(max_tokens)
    sampled = {q.uid: Sampled(q, [None] * settings.samples) for q in queries}
    with Store(session.output / SAMPLES, made_with(cfg, queries, max_tokens)) as store:
        there = store.done(TRAIN)
        for one in read(store.path(TRAIN)):
            if one.index < settings.samples:
                sampled[one.uid].take(one)
        done = sum(index < settings.samples for _, _, index in there)
        stage = session.progress.stage("filtering", len(queries) * settings.samples, "sample", done=done)
        await sample(session, list(sampled.values()), store, stage, max_tokens)
    return write_result(session, list(sampled.values()), max_tokens)


async def sample(session: Session, sampled: Sequence[Sampled], store: Store, stage: Stage, max_tokens: int) -> None:
    """Fills in what is missing. Twice as many requests as the engine runs at once are under way, never all of them."""
    settings, (least, most) = session.cfg.filter, bounds(session.cfg.filter)
    missing = ((s, i) for s in sampled for i, outcome in enumerate(s.outcomes) if outcome is None)
    classes = Counter(s.place(least, most) for s in sampled if None not in s.outcomes)

    async def ask() -> None:
        for one, index in missing:  # shared: each takes the next
            session.stop.check(f"{stage.done} of {stage.total} samples are in {store.folder}")
            request = Request(
                uid=f"{one.query.uid}/{index}",
                prompt_ids=one.query.prompt_ids,
                seed=seed_from(session.cfg.seed, "filter", one.query.uid, index),
                max_tokens=max_tokens,
                temperature=settings.temperature,
                top_p=settings.top_p,
            )
            completion = await session.tools.generator.generate(request)
            grade = await session.tools.grade(one.query, completion.text)
            taken = Sample(
                benchmark=TRAIN,
                uid=one.query.uid,
                run=0,
                index=index,
                text=completion.text if settings.keep_responses else "",
                tokens=len(completion.token_ids),
                truncated=completion.truncated,
                outcome=grade.outcome,
                reward=grade.reward,
                answer=grade.answer,
            )
            store.add(taken)
            one.take(taken)
            if None not in one.outcomes:
                classes[one.place(least, most)] += 1
                stage.note(", ".join(f"{classes[name]} {name.replace('_', ' ')}" for name in CLASSES if classes[name]))
            stage.advance()

    await concurrently(ask() for _ in range(min(2 * session.cfg.local.max_num_seqs, stage.total or 1)))
    session.stop.check(f"{stage.done} of {stage.total} samples are in {store.folder}")


def bounds(settings: FilterConfig) -> tuple[Fraction, Fraction]:
    """The least and the largest accuracy that is kept."""
    return exactly(settings.min_accuracy), exactly(settings.max_accuracy)


def made_with(cfg: RunConfig, queries: Sequence[Query], max_tokens: int) -> dict[str, Any]:
    """Everything that decides the samples. The bounds do not: with others the same samples are sorted anew."""
    f = cfg.filter
    return {
        "model": identity(cfg.model.path),
        "seed": cfg.seed,
        "filter": {
            "temperature": f.temperature,
            "top_p": f.top_p,
            "max_tokens": max_tokens,
            "keep_responses": f.keep_responses,
        },
        "queries": digest([(q.uid, q.answer, q.prompt_ids) for q in queries]),
        "samples": f.samples,
    }


def write_result(session: Session, sampled: Sequence[Sampled], max_tokens: int) -> str:
    """The four files of rows and the summary; each appears when it is whole. Returns the counts in words."""
    cfg, output = session.cfg, session.output
    least, most = bounds(cfg.filter)
    found = session.task.provenance("train")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CLASSES}
    reasons: Counter[str] = Counter()
    for one in sampled:
        where = one.place(least, most)
        rows[where].append(result_row(one, session.task.row(one.query)))
        reasons["not_graded"] += where == FAILED
    for aside in session.data.aside["train"]:
        rows[FAILED].append(aside_row(aside))
        reasons[aside.reason] += 1
    for name in CLASSES:
        _replace(output / f"{name}.jsonl", (_line(row) for row in rows[name]))
    counts = {name: len(rows[name]) for name in CLASSES}
    assert sum(counts.values()) == found.rows, (counts, found.rows)
    kept = output / f"{KEPT}.jsonl"
    summary = {
        "rows": found.rows,
        **counts,
        "failed_for": dict(sorted((reason, n) for reason, n in reasons.items() if n)),
        "right_of_samples": {str(n): c for n, c in sorted(Counter(s.outcomes.count("right") for s in sampled).items())},
        "outcomes": dict(sorted(Counter(str(o) for s in sampled for o in s.outcomes).items())),
        "tokens": sum(s.tokens for s in sampled),
        "truncated": sum(s.truncated for s in sampled),
        "source": found.source,
        "model": str(cfg.model.path),
        "settings": {**cfg.filter.model_dump(mode="json"), "max_tokens": max_tokens, "seed": cfg.seed},
        "train_on_it": train_on(kept, cfg.task),
    }
    _replace(output / SUMMARY, [(json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode()])
    return told(summary, output / SUMMARY)


def told(summary: Mapping[str, Any], path: Path) -> str:
    """The counts in words, and what to know before training on the kept."""
    counts = ", ".join(f"{summary[name]} {name.replace('_', ' ')}" for name in CLASSES)
    lines = [f"{summary['rows']} queries: {counts}; see {path}"]
    cut, responses, most = summary["truncated"], sum(summary["outcomes"].values()), summary["settings"]["max_tokens"]
    if cut > MANY_CUT * responses:
        lines.append(f"{cut} of {responses} responses were cut off at {most} tokens: filter.max_tokens allows more")
    lines.append(f"to train on the kept: {summary['train_on_it']}" if summary[KEPT] else "no query was kept")
    return "\n".join(lines)


def train_on(kept: Path, task: TaskConfig) -> str:
    """The overrides with which the configuration that filtered reads the kept rows."""
    before = task.mathematics.train if task.name == "mathematics" else None
    after = DatasetConfig(path=kept, uid="id")
    chosen = {} if before else {"task.name": "mathematics", "task.mathematics.prompt": "'{question}'"}
    for name in ("path", "hub", "question", "answer", "answer_after", "uid", "rows"):
        value = getattr(after, name)
        if value != getattr(before or DatasetConfig(path=Path()), name):
            chosen[f"task.mathematics.train.{name}"] = "null" if value is None else value
    return " ".join(f"{key}={value}" for key, value in chosen.items())


def result_row(one: Sampled, as_read: Mapping[str, Any]) -> dict[str, Any]:
    """The row as read, with the names that a data set has by default, and the samples' outcomes.

    A field that stood under one of these names and said something else stays as <name>_as_read.
    """
    query = one.query
    ours = {"id": query.uid, "problem": query.question, "answer": query.answer}
    theirs = {
        f"{name}_as_read" if name in ours else name: value
        for name, value in as_read.items()
        if name not in ours or value != ours[name]
    }
    return {
        **ours,
        **theirs,
        "accuracy": float(one.accuracy),
        "outcomes": one.outcomes,
        "mean_tokens": one.tokens / len(one.outcomes),
        "truncated": one.truncated,
    }


def aside_row(aside: SetAside) -> dict[str, Any]:
    """A row that was never sampled."""
    return {"id": aside.uid, "problem": aside.question, "reason": aside.reason, "detail": aside.detail}


def _line(row: Mapping[str, Any]) -> bytes:
    """One line of JSON. Data sets hold dates and bytes; they are written as their text."""
    return (json.dumps(finite(row), ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")


def _replace(path: Path, lines: Iterable[bytes]) -> None:
    temporary = path.with_name(path.name + ".tmp")
    with temporary.open("wb") as file:
        file.writelines(lines)
    temporary.replace(path)
