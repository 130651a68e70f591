"""Token ids that all tuples share are the ids that were given."""

from __future__ import annotations

import pytest

from nemo_tapo.utils.token_ids import SMALLEST, share_ids


@pytest.mark.parametrize("ids", [[], [0], [7], [0, 0, 300, 151_935], [SMALLEST - 1, SMALLEST, 2 * SMALLEST + 1]])
def test_ids_stay_as_they_are(ids: list[int]) -> None:
    assert share_ids(ids) == tuple(ids) == share_ids(tuple(ids))


def test_equal_ids_are_one_object() -> None:
    first, again = share_ids([int("70000"), 1]), share_ids([2, int("70000")])
    assert first[0] is again[1]
