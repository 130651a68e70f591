"""Random numbers that depend on names, not on the order in which things happen.

Every random choice of a run is seeded from (run seed, what it is for, step, uid). So a resumed run makes the
choices of an undisturbed one, and a completion does not depend on what else is in flight.
"""

from __future__ import annotations

import hashlib
import random


def seed_from(*parts: int | str) -> int:
    """A 63-bit seed from any names: equal parts give equal seeds, on every machine and Python version."""
    text = "\x1f".join(str(p) for p in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def rng(*parts: int | str) -> random.Random:
    """A generator of its own for what `parts` names."""
    return random.Random(seed_from(*parts))
