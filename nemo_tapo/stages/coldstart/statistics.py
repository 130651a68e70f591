"""What the cold start's data is: statistics.json and the same in words. Every count sums up to what it is a part of."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nemo_tapo.datasets.screening import Overlaps
from nemo_tapo.datasets.sft_examples import Example
from nemo_tapo.stages.coldstart.build import FATES, Mix, Survey
from nemo_tapo.stages.coldstart.corrections import ACCEPTED, Corrections
from nemo_tapo.types import Query

SHOWN_OVERLAPS = 100


def statistics(
    found: Survey, corrections: Corrections, mixed: Mix, known: Mapping[str, str], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """The content of statistics.json. known: queries that are evaluation problems, see `overlaps`."""
    responses, outcomes = found.outcomes.total(), dict(corrections.outcomes)
    pairs, accepted = sum(outcomes.values()), outcomes.pop(ACCEPTED, 0)
    examples = mixed.examples
    return {
        "queries": {"sampled": found.fates.total(), **{fate: found.fates[fate] for fate in FATES}},
        "responses": {
            "sampled": responses,
            "accuracy": found.correct / max(responses, 1),
            "truncated": found.truncated,
            "outcomes": dict(sorted(found.outcomes.items())),
        },
        "corrections": {
            "pairs": pairs,
            "accepted": accepted,
            "rejected": dict(sorted(outcomes.items())),
            "kept_share": spread([c.kept_share for c in corrections.accepted]),
            "nothing_kept": sum(c.kept_chars == 0 for c in corrections.accepted),
        },
        "examples": {
            "taken": len(examples),
            "short": sum(share.wished - share.taken for share in mixed.shares.values()),
            "doubles_among_usable": mixed.doubles_kept,
            **{origin: asdict(share) for origin, share in mixed.shares.items()},
        },
        "tokens": {name: lengths([e for e in examples if e.format == name]) for name in ("sft", "ift")},
        "in_evaluation_sets": in_evaluation_sets(examples, known),
        "settings": dict(settings),
    }


def lengths(examples: Sequence[Example]) -> dict[str, Any]:
    """Of prompts, responses (with EOS) and whole rows, in tokens."""
    return {
        "prompt": spread([len(e.prompt_ids) for e in examples]),
        "response": spread([len(e.response_ids) for e in examples]),
        "row": spread([e.length for e in examples]),
        "total": sum(e.length for e in examples),
    }


def spread(values: Sequence[float]) -> dict[str, float] | None:
    """Mean, median, 95th percentile and maximum; None of nothing."""
    if not values:
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return {
        "mean": round(float(np.mean(values)), 4),
        "p50": round(float(p50), 4),
        "p95": round(float(p95), 4),
        "max": max(values),
    }


def overlaps(queries: Sequence[Query], benchmarks: Mapping[str, Sequence[Query]]) -> dict[str, str]:
    """{uid of a query: the evaluation problem that it is}, by equal words or common 13-grams (datasets/screening.py)."""
    index = Overlaps([(f"{name} {q.uid}", q.question) for name, problems in benchmarks.items() for q in problems])
    return {q.uid: problem for q in queries if (problem := index.find(q.question)) is not None}


def in_evaluation_sets(examples: Sequence[Example], known: Mapping[str, str]) -> dict[str, Any]:
    """How many examples are about an evaluation problem, and which queries these are."""
    about = [e.source.query for e in examples if e.source.query in known]
    which = dict.fromkeys(about)
    return {
        "queries_sampled": len(known),
        "examples": len(about),
        "which": {uid: known[uid] for uid in list(which)[:SHOWN_OVERLAPS]},
    }


def in_words(s: Mapping[str, Any]) -> list[str]:
    """Sentences for the user."""
    q, c, e = s["queries"], s["corrections"], s["examples"]
    rejected = ", ".join(f"{n} {reason}" for reason, n in c["rejected"].items())
    lines = [
        f"cold-start data: {q['sampled']} queries, {q['right_and_wrong']} of them right and wrong, "
        f"accuracy {s['responses']['accuracy']:.3f}; {c['accepted']} of {c['pairs']} corrections accepted"
        + (f" (rejected: {rejected})" if rejected else ""),
        f"{e['taken']} examples: "
        + ", ".join(f"{e[o]['taken']} of {e[o]['wished']} {o}" for o in ("correct", "corrective", "synthesis")),
    ]
    lost = {
        reason.replace("_", " "): sum(e[o][reason] for o in ("correct", "corrective", "synthesis"))
        for reason in ("duplicates", "cut_off", "too_long")
    }
    if any(lost.values()):
        lines.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in lost.items() if n))
    if s["in_evaluation_sets"]["examples"]:
        lines.append(
            f"WARNING: {s['in_evaluation_sets']['examples']} examples are about problems of the evaluation sets; "
            "statistics.json names them"
        )
    return lines
