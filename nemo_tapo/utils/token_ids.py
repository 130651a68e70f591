"""Hold token ids in little memory: a step of a cluster has hundreds of millions."""

from __future__ import annotations

from collections.abc import Sequence
from operator import itemgetter

_SHARED: list[int] = []  # every id, at its own place
SMALLEST = 2**18  # of the list: larger than most vocabularies


def share_ids(ids: Sequence[int]) -> tuple[int, ...]:
    """Return the ids, 0 or more each, as a tuple whose numbers are objects that all such tuples share.

    That is 8 bytes a token, not 40: Python makes an object of its own of every number above 256 that it reads.

    >>> first, again = share_ids([70_000]), share_ids([int("70000")])
    >>> first == again, first[0] is again[0]
    (True, True)
    """
    if not ids:
        return ()
    largest = max(ids)
    if largest >= len(_SHARED):
        _SHARED[:] = range(max(SMALLEST, 1 << largest.bit_length()))
    found = itemgetter(*ids)(_SHARED)
    return found if len(ids) > 1 else (found,)
