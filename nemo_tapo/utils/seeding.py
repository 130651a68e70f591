"""Seed random choices from names, not from the order in which things happen.

Every random choice of a run is seeded from (run seed, purpose, step, uid). So a resumed run makes the same choices as
an undisturbed one, and a completion does not depend on what else is in flight.
"""

from __future__ import annotations

import hashlib
import random


def seed_from(*parts: int | str) -> int:
    """Return a 63-bit seed: equal parts give equal seeds, on every machine and Python version.

    >>> seed_from(0, "rollout", 3, "7", 1) == seed_from(0, "rollout", 3, "7", 1)
    True
    >>> seed_from(0, "rollout", 3, "7", 1) == seed_from(0, "rollout", 3, "7", 2)
    False
    """
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(*parts: int | str) -> random.Random:
    """Return a random generator seeded from `parts`."""
    return random.Random(seed_from(*parts))
