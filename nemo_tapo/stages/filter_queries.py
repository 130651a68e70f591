"""`nemo-tapo filter`: select the training queries that the model answers sometimes right and sometimes wrong.

Section 4.1 of arXiv 2606.18844 keeps those with an accuracy in [0.125, 0.875]. Every sample is written to disk as soon
as it is graded, so a filter that was stopped or killed can be resumed. Each seed is derived from the sample's name, so
a resumed filter gives the same result as an uninterrupted one.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import DatasetConfig, FilterConfig, TaskConfig
from nemo_tapo.datasets.sets import TRAIN
from nemo_tapo.evaluation.model_files import get_model_identity
from nemo_tapo.evaluation.sample_store import Sample, SampleStore, read_samples
from nemo_tapo.types import Query, Request, SetAside, is_graded
from nemo_tapo.utils.concurrency import for_each_concurrently
from nemo_tapo.utils.files import hash_json, replace_lines
from nemo_tapo.utils.jsonl import replace_non_finite
from nemo_tapo.utils.seeding import seed_from

if TYPE_CHECKING:
    from nemo_tapo.stages.session import Session
    from nemo_tapo.tracking.progress import ProgressStage

SAMPLES, SUMMARY = "samples", "summary.json"
KEPT, TOO_EASY, TOO_HARD, FAILED = CLASSES = ("kept", "too_easy", "too_hard", "failed")
TRUNCATION_WARNING_SHARE = 0.1  # warn above this share of truncated responses: they make queries look too hard
UNGRADED = frozenset({"timeout", "error"})  # verifier outcomes that do not say whether the response is right


@dataclass
class QuerySamples:
    """The outcomes of one query's samples. `outcomes[i]` is None while sample i is missing.

    >>> query = Query(uid="7", question="47+38=?", answer="85")
    >>> samples = QuerySamples(query, ["right", "wrong", "wrong", "timeout"])
    >>> samples.accuracy  # it would be 1/2 if the response that timed out were right
    Fraction(1, 4)
    >>> samples.classify(Fraction(1, 4), Fraction(3, 4)), samples.classify(Fraction(1, 3), Fraction(3, 4))
    ('kept', 'failed')
    """

    query: Query
    outcomes: list[str | None]
    tokens: int = 0
    truncated: int = 0

    def add(self, sample: Sample) -> None:
        """Add a sample that was missing."""
        self.outcomes[sample.index] = sample.outcome
        self.tokens += sample.tokens
        self.truncated += sample.truncated

    @property
    def accuracy(self) -> Fraction:
        """The share of right responses. A response that could not be graded counts as not right."""
        return Fraction(self.outcomes.count("right"), len(self.outcomes))

    def classify(self, least: Fraction, most: Fraction) -> str:
        """Return the query's class, one of CLASSES.

        If some responses could not be graded, the accuracy is known only within bounds: the lower one takes them all
        as wrong, the upper one takes them all as right. The class is `failed` only if the two bounds disagree.
        """
        open_ones = Fraction(sum(is_open(o) for o in self.outcomes), len(self.outcomes))
        low, high = (classify_accuracy(a, least, most) for a in (self.accuracy, self.accuracy + open_ones))
        return low if low == high else FAILED


def is_open(outcome: str | None) -> bool:
    """Return True if an outcome does not say whether the response is right.

    >>> is_open("timeout"), is_open("no_reward_raised"), is_open("wrong")
    (True, True, False)
    """
    return outcome in UNGRADED or (outcome is not None and not is_graded(outcome))


def classify_accuracy(accuracy: Fraction, least: Fraction, most: Fraction) -> str:
    """Return the class of an accuracy; both bounds are inclusive.

    >>> classify_accuracy(Fraction(1, 8), Fraction(1, 8), Fraction(7, 8))
    'kept'
    """
    return TOO_HARD if accuracy < least else TOO_EASY if accuracy > most else KEPT


def exact_fraction(bound: float) -> Fraction:
    """Convert a decimal number exactly as it was written; the float itself is slightly off.

    >>> exact_fraction(0.1)
    Fraction(1, 10)
    """
    return Fraction(repr(bound))


async def filter_queries(session: Session) -> str:
    """Sample, grade and sort the training queries into <output>/kept.jsonl and the three files of the other classes.

    Return a text for the user: the counts, and how to train on the kept queries. Raises Stopped on request.
    """
    cfg = session.cfg
    settings, max_tokens = cfg.filter, cfg.filter.max_tokens or cfg.rollout.max_tokens
    queries = session.train_queries(max_tokens)
    sampled = {q.uid: QuerySamples(q, [None] * settings.samples) for q in queries}
    with SampleStore(session.output / SAMPLES, get_sampling_settings(cfg, queries, max_tokens)) as store:
        stored = store.read_keys(TRAIN)
        for one in read_samples(store.path(TRAIN)):
            if one.index < settings.samples:
                sampled[one.uid].add(one)
        done = sum(index < settings.samples for _, _, index in stored)
        stage = session.progress.start_stage("filtering", len(queries) * settings.samples, "sample", done=done)
        await sample_missing(session, list(sampled.values()), store, stage, max_tokens)
    return write_result(session, list(sampled.values()), max_tokens)


async def sample_missing(
    session: Session, sampled: Sequence[QuerySamples], store: SampleStore, stage: ProgressStage, max_tokens: int
) -> None:
    """Draw the missing samples. At most twice as many requests as the engine runs at once are in flight."""
    settings, (least, most) = session.cfg.filter, accuracy_bounds(session.cfg.filter)
    missing = ((s, i) for s in sampled for i, outcome in enumerate(s.outcomes) if outcome is None)
    classes = Counter(s.classify(least, most) for s in sampled if None not in s.outcomes)

    async def take(job: tuple[QuerySamples, int]) -> None:
        one, index = job
        request = Request(
            uid=f"{one.query.uid}/{index}",
            prompt_ids=one.query.prompt_ids,
            seed=seed_from(session.cfg.seed, "filter", one.query.uid, index),
            max_tokens=max_tokens,
            temperature=settings.temperature,
            top_p=settings.top_p,
        )
        completion = await session.tools.generator.generate(request)
        grade = await session.tools.grade_completion(one.query, completion)
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
            correct_at=grade.correct_at,
        )
        store.add(taken)
        one.add(taken)
        if None not in one.outcomes:
            classes[one.classify(least, most)] += 1
            stage.set_note(", ".join(f"{classes[name]} {name.replace('_', ' ')}" for name in CLASSES if classes[name]))
        stage.advance()

    await for_each_concurrently(missing, take, min(2 * session.cfg.local.max_num_seqs, stage.total or 1), session.stop)
    session.stop.check(f"{stage.done} of {stage.total} samples are in {store.folder}")


def accuracy_bounds(settings: FilterConfig) -> tuple[Fraction, Fraction]:
    """Return the lowest and the highest accuracy that is kept."""
    return exact_fraction(settings.min_accuracy), exact_fraction(settings.max_accuracy)


def get_sampling_settings(cfg: RunConfig, queries: Sequence[Query], max_tokens: int) -> dict[str, Any]:
    """Return everything that determines the samples. The bounds do not: changed bounds only sort them again."""
    f = cfg.filter
    return {
        "model": get_model_identity(cfg.model.path),
        "seed": cfg.seed,
        "filter": {
            "temperature": f.temperature,
            "top_p": f.top_p,
            "max_tokens": max_tokens,
            "keep_responses": f.keep_responses,
        },
        "queries": hash_json([(q.uid, q.answer, q.prompt_ids) for q in queries]),
        "samples": f.samples,
        **cfg.grading_identity,
    }


def write_result(session: Session, sampled: Sequence[QuerySamples], max_tokens: int) -> str:
    """Write the four files of rows and the summary, each atomically. Return the counts in words."""
    cfg, output = session.cfg, session.output
    least, most = accuracy_bounds(cfg.filter)
    provenance = session.task.provenance("train")
    rows: dict[str, list[dict[str, Any]]] = {name: [] for name in CLASSES}
    reasons: Counter[str] = Counter()
    for one in sampled:
        where = one.classify(least, most)
        rows[where].append(make_result_row(one, session.task.row(one.query)))
        reasons["not_graded"] += where == FAILED
    for aside in session.data_report.set_aside["train"]:
        rows[FAILED].append(make_set_aside_row(aside))
        reasons[aside.reason] += 1
    for name in CLASSES:
        replace_lines(output / f"{name}.jsonl", (_encode_row(row) for row in rows[name]))
    counts = {name: len(rows[name]) for name in CLASSES}
    assert sum(counts.values()) == provenance.rows, (counts, provenance.rows)
    kept = output / f"{KEPT}.jsonl"
    summary = {
        "rows": provenance.rows,
        **counts,
        "failed_for": dict(sorted((reason, n) for reason, n in reasons.items() if n)),
        "right_of_samples": {str(n): c for n, c in sorted(Counter(s.outcomes.count("right") for s in sampled).items())},
        "outcomes": dict(sorted(Counter(str(o) for s in sampled for o in s.outcomes).items())),
        "tokens": sum(s.tokens for s in sampled),
        "truncated": sum(s.truncated for s in sampled),
        "source": provenance.source,
        "model": str(cfg.model.path),
        "settings": {**cfg.filter.model_dump(mode="json"), "max_tokens": max_tokens, "seed": cfg.seed},
        "train_on_it": format_training_overrides(kept, cfg.task),
    }
    replace_lines(output / SUMMARY, [(json.dumps(summary, indent=1, ensure_ascii=False) + "\n").encode()])
    return describe_summary(summary, output / SUMMARY)


def describe_summary(summary: Mapping[str, Any], path: Path) -> str:
    """Return the counts in words, a warning if many responses were truncated, and how to train on the kept queries."""
    counts = ", ".join(f"{summary[name]} {name.replace('_', ' ')}" for name in CLASSES)
    lines = [f"{summary['rows']} queries: {counts}; see {path}"]
    cut, responses, most = summary["truncated"], sum(summary["outcomes"].values()), summary["settings"]["max_tokens"]
    if cut > TRUNCATION_WARNING_SHARE * responses:
        lines.append(f"{cut} of {responses} responses were cut off at {most} tokens: filter.max_tokens allows more")
    lines.append(f"to train on the kept: {summary['train_on_it']}" if summary[KEPT] else "no query was kept")
    return "\n".join(lines)


def format_training_overrides(kept: Path, task: TaskConfig) -> str:
    """Return the overrides with which the configuration of the filter reads the kept rows.

    >>> task = TaskConfig(name="mathematics", mathematics={"train": {"path": "all.jsonl"}})
    >>> format_training_overrides(Path("kept.jsonl"), task)
    'task.mathematics.train.path=kept.jsonl task.mathematics.train.uid=id'
    """
    if task.name == "custom":
        return f"the class of task.target has to read {kept} itself"
    if task.name in ("reasoning_gym", "countdown"):
        return f"no setting reads {kept} with the scores of reasoning-gym; a custom task may (docs/tasks.md)"
    before = task.mathematics.train if task.name == "mathematics" else None
    after = DatasetConfig(path=kept, uid="id")
    chosen = {} if before else {"task.name": "mathematics", "task.mathematics.prompt": "'{question}'"}
    for name in ("path", "hub", "question", "answer", "answer_after", "uid", "rows"):
        value = getattr(after, name)
        if value != getattr(before or DatasetConfig(path=Path()), name):
            chosen[f"task.mathematics.train.{name}"] = "null" if value is None else value
    return " ".join(f"{key}={value}" for key, value in chosen.items())


def make_result_row(samples: QuerySamples, as_read: Mapping[str, Any]) -> dict[str, Any]:
    """Return the row as read, with the default field names of a data set, and the outcomes of its samples.

    A field of the row that already had one of these names and another value is kept as <name>_as_read.
    """
    query = samples.query
    ours = {"id": query.uid, "problem": query.question, "answer": query.answer}
    theirs = {
        f"{name}_as_read" if name in ours else name: value
        for name, value in as_read.items()
        if name not in ours or value != ours[name]
    }
    return {
        **ours,
        **theirs,
        "accuracy": float(samples.accuracy),
        "outcomes": samples.outcomes,
        "mean_tokens": samples.tokens / len(samples.outcomes),
        "truncated": samples.truncated,
    }


def make_set_aside_row(aside: SetAside) -> dict[str, Any]:
    """Return the result row of a data row that was never sampled."""
    return {"id": aside.uid, "problem": aside.question, "reason": aside.reason, "detail": aside.detail}


def _encode_row(row: Mapping[str, Any]) -> bytes:
    """Return one line of JSON. Dates and bytes, which data sets may hold, are written as text."""
    return (json.dumps(replace_non_finite(row), ensure_ascii=False, default=str) + "\n").encode("utf-8", "replace")
