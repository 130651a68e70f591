"""Select candidates by difficulty (Eq. 3 of arXiv 2606.18844, section 3.3.1)."""

from __future__ import annotations

from enum import Enum

from nemo_tapo.types import Group, Pair
from nemo_tapo.utils.seeding import rng


class Zone(str, Enum):
    """Where a query lies relative to what the policy can do.

    >>> Zone.ELIGIBLE.value
    'eligible'
    """

    ELIGIBLE = "eligible"  # the zone of proximal development: sometimes right, sometimes wrong
    MASTERED = "mastered"  # fewer than n_neg incorrect rollouts
    BEYOND = "beyond"  # fewer than n_pos correct rollouts


def classify_zone(group: Group, n_pos: int, n_neg: int) -> Zone:
    """Classify a query by its rollouts (Eq. 3): eligible if |P| >= n_pos and |N| >= n_neg.

    With K >= n_pos + n_neg (config/algorithms.py insists) a query cannot miss both thresholds: the zones are disjoint.
    """
    if len(group.correct) < n_pos:
        return Zone.BEYOND
    if len(group.incorrect) < n_neg:
        return Zone.MASTERED
    return Zone.ELIGIBLE


def select_pairs(group: Group, n_pos: int, n_neg: int, m_max: int, seed: int, step: int) -> tuple[Pair, ...]:
    """Draw up to m_max incorrect rollouts, without replacement, each with a correct one drawn uniformly.

    The draw depends on (seed, step, query uid) alone. An ineligible query gives no pair.
    """
    if classify_zone(group, n_pos, n_neg) is not Zone.ELIGIBLE:
        return ()
    draw = rng(seed, "select", step, group.query.uid)
    wrong = draw.sample(group.incorrect, min(m_max, len(group.incorrect)))
    group_rewards = tuple(r.reward for r in group.rollouts if r.grade.graded)
    return tuple(Pair(w, draw.choice(group.correct), index, group_rewards) for index, w in enumerate(wrong))
