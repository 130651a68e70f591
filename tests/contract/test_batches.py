"""Assembled batches through NeMo-RL's `shard_by_batch_size`: nothing is lost, whatever the sharding."""

from __future__ import annotations

import random
from typing import Any

import pytest
import torch

from nemo_tapo.batch import collate
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.actor import BatchShape, pad_batch
from nemo_tapo.types import Batch, Kind, Row

pytestmark = pytest.mark.nemo_rl
MULTIPLE = 4
PACKING = {
    "max_tokens_per_microbatch": 64,
    "input_key": "input_ids",
    "input_lengths_key": "input_lengths",
    "algorithm": "modified_first_fit_decreasing",
    "sequence_length_pad_multiple": MULTIPLE,
}
DYNAMIC = {
    "max_tokens_per_microbatch": 64,
    "sequence_length_round": MULTIPLE,
    "input_key": "input_ids",
    "input_lengths_key": "input_lengths",
}
WAYS: dict[str, dict[str, Any]] = {
    "plain": {},
    "packed": {"sequence_packing_args": PACKING},
    "dynamic": {"dynamic_batching_args": DYNAMIC},
}


def rows(count: int) -> list[Row]:
    """Rows of 4 to 40 tokens, each told apart by its first token."""
    draw = random.Random(3)
    made = []
    for i in range(count):
        kind = Kind.CONSTRUCTED if i % 4 == 3 else Kind.ORIGINAL
        length = draw.randint(2, 38)
        response = tuple(draw.randrange(500, 900) for _ in range(length))
        known = tuple(-draw.random() for _ in range(length)) if kind is Kind.ORIGINAL else None
        made.append(Row(str(i), "q", kind, (1 + i, 7), response, 1.0, draw.uniform(-1, 1), known))
    return made


def padded(capacity: int, count: int = 13) -> Batch:
    batch = collate(rows(count), pad_id=0)
    batch = Batch.from_dict(batch.as_dict() | {"prev_logprobs": -torch.rand(batch.input_ids.shape)})
    return pad_batch(batch, capacity, BatchShape(capacity, 1, MULTIPLE, 1, pad_id=0, temperature=1.0))


def shards(batch: Batch, parts: int, capacity: int, way: str) -> tuple[list[Any], list[int] | None]:
    """NeMo-RL's shards, and its order of the rows where it has one of its own."""
    data = compat.load("BatchedDataDict")(batch.as_dict())
    result = data.shard_by_batch_size(parts, batch_size=capacity, **WAYS[way])
    return result if isinstance(result, tuple) else (result, None)


@pytest.mark.parametrize("way", WAYS)
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_row_comes_back_whole(parts: int, way: str) -> None:
    batch = padded(capacity := 16)
    pieces, order = shards(batch, parts, capacity, way)
    assert sum(piece.size for piece in pieces) == capacity
    if way != "packed":  # there the tokens are dealt evenly, not the rows
        assert [piece.size for piece in pieces] == [capacity // parts] * parts
    joined = compat.load("BatchedDataDict").from_batches(pieces)
    if order is not None:
        joined.reorder_data(order)
    assert set(joined) == set(batch.as_dict())
    for name, value in batch.as_dict().items():
        assert torch.equal(joined[name], value), name


@pytest.mark.parametrize("way", ["packed", "dynamic"])
@pytest.mark.parametrize("parts", [1, 2, 4])
def test_every_row_is_in_one_micro_batch(parts: int, way: str) -> None:
    batch = padded(capacity := 16)
    pieces, _ = shards(batch, parts, capacity, way)
    seen = []
    for piece in pieces:
        iterator = (
            piece.make_microbatch_iterator_for_packable_sequences()
            if way == "packed"
            else piece.make_microbatch_iterator_with_dynamic_shapes()
        )
        for micro in iterator:
            assert int((micro["token_mask"] * micro["sample_mask"][:, None]).sum()) == sum(
                length - 2
                for length, live in zip(micro["input_lengths"].tolist(), micro["sample_mask"].tolist(), strict=True)
                if live
            )
            seen += micro["input_ids"][:, 0].tolist()
    assert sorted(seen) == sorted(batch.input_ids[:, 0].tolist())


def test_the_loss_keeps_its_normaliser_over_shards() -> None:
    """Over live tokens the rollouts' coefficients add up to 1, and 3 constructed rows beside 10 of them to 0.3."""
    batch = padded(16)
    pieces, _ = shards(batch, 4, 16, "packed")
    for constructed, expected in ((False, 1.0), (True, 0.3)):
        total = 0.0
        for piece in pieces:
            coef = piece["loss_coef"] * piece["sample_mask"] * (piece["constructed"] == constructed)
            total += float((piece["token_mask"] * coef[:, None]).sum())
        assert total == pytest.approx(expected, abs=1e-5)


@pytest.mark.parametrize("way", WAYS)
def test_rows_that_do_not_divide_are_refused_by_nemo_rl(way: str) -> None:
    """What the filling up cures."""
    with pytest.raises(AssertionError):
        shards(padded(13), 2, 13, way)
