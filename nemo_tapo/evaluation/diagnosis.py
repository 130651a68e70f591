"""Say from one step of TAPO, without its update, whether the method is likely to help a model (`nemo-tapo diagnose`).

TAPO learns from pairs that become trajectories: from queries that are sometimes right, through a form that the model
has to know, in groups whose rewards differ. What it teaches is to take an error back, so the model has to see its
errors. Each of these can fail, and is counted.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from nemo_tapo.algorithms.reasoning_steps import find_step_ends
from nemo_tapo.metrics import (
    BEYOND,
    CORRECT,
    ELIGIBLE,
    KEPT_SHARE,
    MASTERED,
    MIXED_REFLECTION_GROUPS,
    PAIRS,
    PARSED,
    REFLECTION_GROUPS,
)
from nemo_tapo.types import Experience

# Below these little is left to learn from: judgement, from two tasks and tiny models (docs/evidence.md).
LEAST_ELIGIBLE, LEAST_PARSED, LEAST_MIXED, LEAST_DETECTION = 0.05, 0.3, 0.1, 0.2
TURN_WITHIN = 2  # steps: a verdict on what stands before ("55 vs 16 no") may come before the turn


def turns_soon(continuation: str, turn: str) -> bool:
    r"""Return whether one of the first TURN_WITHIN steps of a continuation begins with `turn`.

    >>> turns_soon("\n55 vs 16 no\nWait, again.\n", "Wait"), turns_soon("\n1+1=2\n2+2=4\nWait, again.", "Wait")
    (True, False)
    """
    text = continuation.lstrip()
    ends = [0, *find_step_ends(text)][:TURN_WITHIN]
    return any(text[end:].lstrip().startswith(turn) for end in ends)


@dataclass(frozen=True)
class PrefixProbe:
    """What a model did next behind a prefix of one of its own rollouts.

    >>> PrefixProbe(behind_error=True, turned=False, correct=False).behind_error
    True
    """

    behind_error: bool  # the prefix ends with the first wrong step of a wrong rollout, else with a step of a right one
    turned: bool  # one of its next TURN_WITHIN steps takes something back
    correct: bool  # the answer that it came to is right


def summarise(
    experience: Experience, metrics: Mapping[str, float], probes: Sequence[PrefixProbe], turn: str
) -> dict[str, Any]:
    """Return the counts of a step and of its probes, with the obstacles and the verdict.

    `metrics`: those of the algorithm for the experience. `turn`: what a step that takes something back begins with.
    """
    rollouts = [rollout for group in experience.groups for rollout in group.rollouts]
    right = [r.text for r in rollouts if r.correct]
    wrong = [r.text for r in rollouts if not r.correct]
    dropped = Counter(c.dropped for c in experience.constructions if c.dropped is not None)
    names = (ELIGIBLE, MASTERED, BEYOND, PAIRS, PARSED, CORRECT, REFLECTION_GROUPS, MIXED_REFLECTION_GROUPS)
    found: dict[str, Any] = {
        "queries": len(experience.groups),
        "rollouts": len(rollouts),
        "right_rollouts": len(right),
        **{name.removeprefix("tapo/"): int(metrics[name]) for name in names},
        "dropped": dict(sorted(dropped.items())),
        "kept_share": metrics.get(KEPT_SHARE),
        "turns_in_right": share(sum(turn in text for text in right), len(right)),
        "turns_in_wrong": share(sum(turn in text for text in wrong), len(wrong)),
        "detection": summarise_probes(probes),
    }
    obstacles = find_obstacles(found)
    return {**found, "obstacles": obstacles, "verdict": give_verdict(found, obstacles)}


def share(part: int, whole: int) -> float | None:
    """Return part / whole; None of nothing."""
    return part / whole if whole else None


def summarise_probes(probes: Sequence[PrefixProbe]) -> dict[str, Any] | None:
    """Return how often the model turns behind an error and behind a right step; None where one was not probed.

    >>> probes = [PrefixProbe(True, True, True), PrefixProbe(True, False, False), PrefixProbe(False, False, True)]
    >>> summarise_probes(probes)["difference"]
    0.5
    """
    behind_error = [p for p in probes if p.behind_error]
    behind_right = [p for p in probes if not p.behind_error]
    if not behind_error or not behind_right:
        return None
    turned, turned_right = (sum(p.turned for p in part) / len(part) for part in (behind_error, behind_right))
    return {
        "prefixes": len(behind_error),
        "turned_behind_error": turned,
        "turned_behind_right": turned_right,
        "difference": turned - turned_right,
        "recovered": sum(p.correct for p in behind_error) / len(behind_error),
    }


def find_obstacles(found: Mapping[str, Any]) -> list[str]:
    """Say what stands in the way, each with what can be done about it."""
    obstacles = []
    eligible, queries = found["eligible"], found["queries"]
    if eligible < LEAST_ELIGIBLE * queries:
        side = "nearly always right" if found["mastered"] > found["beyond"] else "nearly always wrong"
        obstacles.append(
            f"{eligible} of {queries} queries have right and wrong rollouts enough (Eq. 3); most others are {side}: "
            "choose queries with `nemo-tapo filter`, or lower tapo.n_pos and tapo.n_neg."
        )
    pairs, parsed = found["pairs"], found["parsed"]
    if pairs and parsed < LEAST_PARSED * pairs:
        reason, count = max(found["dropped"].items(), key=lambda item: item[1])
        obstacles.append(
            f"{parsed} of {pairs} constructions give a row; most others are dropped as {reason} ({count}): the model "
            "does not know the form, which a cold start teaches (`nemo-tapo coldstart`)."
        )
    groups, mixed = found["groups"], found["mixed_groups"]
    if groups and mixed < LEAST_MIXED * groups:
        rate = share(found["correct"], parsed) or 0.0
        obstacles.append(
            f"{mixed} of {groups} reflection groups have different rewards ({rate:.0%} of the constructions are "
            "right), and Eq. 5 gives the others no gradient unless they have one row."
        )
    detection = found["detection"]
    if detection is not None and detection["difference"] < LEAST_DETECTION:
        obstacles.append(
            f"the model does not see its errors: behind one it turns in {detection['turned_behind_error']:.0%} of the "
            f"cases, behind a right step in {detection['turned_behind_right']:.0%}. It would learn the words of a "
            "correction without the look; teach the look first (corrective answers in the cold start)."
        )
    return obstacles


def give_verdict(found: Mapping[str, Any], obstacles: Sequence[str]) -> str:
    """Return "unlikely", "likely", or "open" where nothing stands in the way but detection could not be measured."""
    if obstacles or not found["pairs"]:
        return "unlikely"
    return "open" if found["detection"] is None else "likely"


def describe(found: Mapping[str, Any]) -> str:
    """Return the diagnosis as lines for the terminal.

    The reasons of a verdict follow it, one a line.
    """
    detection, kept = found["detection"], found["kept_share"]
    lines = [
        f"queries    {found['queries']}: {found['eligible']} eligible, {found['mastered']} mastered, "
        f"{found['beyond']} beyond; {found['right_rollouts']} of {found['rollouts']} rollouts right",
        f"pairs      {found['pairs']}: {found['parsed']} give a row, {found['correct']} of them right"
        + (f", {kept:.0%} of the wrong response kept" if kept is not None else ""),
        f"groups     {found['groups']}: {found['mixed_groups']} with different rewards",
    ]
    if found["dropped"]:
        lines.append("dropped    " + ", ".join(f"{reason} {count}" for reason, count in found["dropped"].items()))
    if detection is None:
        lines.append("detection  not measured: the task does not tell where a response is wrong")
    else:
        lines.append(
            f"detection  behind {detection['prefixes']} errors the model turns back in "
            f"{detection['turned_behind_error']:.0%}, behind right steps in {detection['turned_behind_right']:.0%}; "
            f"{detection['recovered']:.0%} of the answers behind an error are right"
        )
    verdict = {
        "likely": "TAPO is likely to help: nothing that it learns from is missing.",
        "open": "Nothing that was measured stands in the way of TAPO; whether the model sees its errors is open.",
        "unlikely": "TAPO is unlikely to help as things are:",
    }[found["verdict"]]
    reasons = found["obstacles"] or ([] if found["pairs"] else ["there is no pair of a right and a wrong rollout."])
    return "\n".join([*lines, "", verdict, *(f"- {reason}" for reason in reasons)])
