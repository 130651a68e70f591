"""Statistics of the cold start's data: statistics.json and the same in words. Parts always add up to their total."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

import numpy as np

from nemo_tapo.datasets.screening import OverlapIndex
from nemo_tapo.datasets.sft_examples import SftExample
from nemo_tapo.stages.coldstart.build import ORIGINS, QUERY_CLASSES, SAMPLED, Candidates, ExampleMix
from nemo_tapo.stages.coldstart.corrections import ACCEPTED, Corrections
from nemo_tapo.types import Query

MAX_SHOWN_OVERLAPS = 100


def compute_statistics(
    candidates: Candidates,
    corrections: Corrections,
    mixed: ExampleMix,
    known: Mapping[str, str],
    settings: Mapping[str, Any],
) -> dict[str, Any]:
    """Return the content of statistics.json. known: queries that are evaluation problems, see `find_overlaps`."""
    responses, outcomes = candidates.outcomes.total(), dict(corrections.outcomes)
    pairs, accepted = sum(outcomes.values()), outcomes.pop(ACCEPTED, 0)
    examples = mixed.examples
    return {
        "queries": {
            "sampled": candidates.query_classes.total(),
            **{fate: candidates.query_classes[fate] for fate in QUERY_CLASSES},
        },
        "responses": {
            "sampled": responses,
            "accuracy": candidates.correct_responses / max(responses, 1),
            "truncated": candidates.truncated_responses,
            "outcomes": dict(sorted(candidates.outcomes.items())),
        },
        "corrections": {
            "pairs": pairs,
            "accepted": accepted,
            "rejected": dict(sorted(outcomes.items())),
            "kept_share": summarize_values([c.kept_share for c in corrections.accepted]),
            "nothing_kept": sum(c.kept_chars == 0 for c in corrections.accepted),
        },
        "examples": {
            "taken": len(examples),
            "short": sum(share.wished - share.taken for share in mixed.counts.values()),
            "doubles_among_usable": mixed.duplicates_kept,
            **{origin: asdict(share) for origin, share in mixed.counts.items()},
        },
        "tokens": {name: summarize_lengths([e for e in examples if e.format == name]) for name in ("sft", "ift")},
        "in_evaluation_sets": count_evaluation_examples(examples, known),
        "settings": dict(settings),
    }


def summarize_lengths(examples: Sequence[SftExample]) -> dict[str, Any]:
    """Summarise the lengths of prompts, responses (with EOS) and whole rows, in tokens."""
    return {
        "prompt": summarize_values([len(e.prompt_ids) for e in examples]),
        "response": summarize_values([len(e.response_ids) for e in examples]),
        "row": summarize_values([e.length for e in examples]),
        "total": sum(e.length for e in examples),
    }


def summarize_values(values: Sequence[float]) -> dict[str, float] | None:
    """Return mean, median, 95th percentile and maximum, or None if there are no values.

    >>> summarize_values([1, 2, 3])
    {'mean': 2.0, 'p50': 2.0, 'p95': 2.9, 'max': 3}
    """
    if not values:
        return None
    p50, p95 = np.percentile(values, (50, 95))
    return {
        "mean": round(float(np.mean(values)), 4),
        "p50": round(float(p50), 4),
        "p95": round(float(p95), 4),
        "max": max(values),
    }


def find_overlaps(queries: Sequence[Query], benchmarks: Mapping[str, Sequence[Query]]) -> dict[str, str]:
    """Return {uid of a query: the evaluation problem it equals}.

    They are equal if they have the same words, or the query half of the problem's 13-grams (datasets/screening.py).
    """
    index = OverlapIndex([(f"{name} {q.uid}", q.question) for name, problems in benchmarks.items() for q in problems])
    return {q.uid: problem for q in queries if (problem := index.find(q.question)) is not None}


def count_evaluation_examples(examples: Sequence[SftExample], known: Mapping[str, str]) -> dict[str, Any]:
    """Count the examples about an evaluation problem, and name their queries."""
    about = [e.source.query for e in examples if e.source.query in known]
    which = dict.fromkeys(about)
    return {
        "queries_sampled": len(known),
        "examples": len(about),
        "which": {uid: known[uid] for uid in list(which)[:MAX_SHOWN_OVERLAPS]},
    }


def describe_statistics(s: Mapping[str, Any]) -> list[str]:
    """Return the statistics as sentences for the user."""
    q, c, e = s["queries"], s["corrections"], s["examples"]
    rejected = ", ".join(f"{n} {reason}" for reason, n in c["rejected"].items())
    lines = [
        f"cold-start data: {q['sampled']} queries, {q['right_and_wrong']} of them right and wrong, "
        f"accuracy {s['responses']['accuracy']:.3f}; {c['accepted']} of {c['pairs']} corrections accepted"
        + (f" (rejected: {rejected})" if rejected else ""),
        f"{e['taken']} examples: "
        + ", ".join(f"{e[o]['taken']} of {e[o]['wished']} {o}" for o in ORIGINS if o != SAMPLED or e[o]["wished"]),
    ]
    lost = {
        reason.replace("_", " "): sum(e[o][reason] for o in ORIGINS) for reason in ("duplicates", "cut_off", "too_long")
    }
    if any(lost.values()):
        lines.append("left out: " + ", ".join(f"{n} {reason}" for reason, n in lost.items() if n))
    if s["in_evaluation_sets"]["examples"]:
        lines.append(
            f"WARNING: {s['in_evaluation_sets']['examples']} examples are about problems of the evaluation sets; "
            "statistics.json names them"
        )
    return lines
