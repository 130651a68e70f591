"""Rows of a batch over data-parallel ranks and back (runtime/local/actor.py); no Ray, no ranks."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from nemo_tapo.batch import collate
from nemo_tapo.runtime.batch_sharding import deal_rows, gather_rows, select_and_pad
from nemo_tapo.types import Batch, Kind, Row


def batch_of(lengths: list[int]) -> Batch:
    """Row i has `lengths[i]` tokens, all of them i + 1."""
    rows = [Row(str(i), "q", Kind.ORIGINAL, (i + 1,), (i + 1,) * (n - 1)) for i, n in enumerate(lengths)]
    return collate(rows, pad_id=0)


lengths_lists = st.lists(st.integers(2, 12), min_size=1, max_size=9)


@given(lengths_lists, st.integers(1, 4))
def test_every_row_is_dealt_once_and_comes_back_in_its_place(lengths: list[int], ranks: int) -> None:
    batch = batch_of(lengths)
    shares = deal_rows(lengths, ranks)
    assert sorted(i for share in shares for i in share) == list(range(len(lengths)))
    most = max(map(len, shares))
    parts = [select_and_pad(batch, share, most) for share in shares]
    assert {part.rows for part in parts} == {most}
    back = gather_rows([part.input_ids.float() for part in parts], shares, batch, fill=0.0)
    assert back.equal(batch.input_ids.float())


@given(lengths_lists, st.integers(1, 4))
def test_rows_added_to_fill_up_count_in_no_loss(lengths: list[int], ranks: int) -> None:
    batch = batch_of(lengths)
    shares = deal_rows(lengths, ranks)
    parts = [select_and_pad(batch, share, max(map(len, shares))) for share in shares]
    weight = sum(float((p.token_mask * p.sample_mask[:, None] * p.loss_coef[:, None]).sum()) for p in parts)
    whole = float((batch.token_mask * batch.loss_coef[:, None]).sum())
    assert abs(weight - whole) < 1e-5


@given(lengths_lists, st.integers(1, 4))
def test_ranks_get_equal_work(lengths: list[int], ranks: int) -> None:
    """Dealt in the order of length: no two ranks differ by more tokens than the longest row has."""
    tokens = [sum(lengths[i] for i in share) for share in deal_rows(lengths, ranks)]
    assert max(tokens) - min(tokens) <= max(lengths)
