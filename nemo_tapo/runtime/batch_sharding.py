"""Distribute the rows of a batch over data-parallel ranks, and put the results back in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nemo_tapo.types import Batch


def deal_rows(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Return the row indices of each rank, dealt in turn from the longest row to the shortest to balance the work.

    >>> deal_rows([5, 9, 2, 7], ranks=2)
    [[1, 0], [3, 2]]
    """
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[rank::ranks] for rank in range(ranks)]


def select_and_pad(batch: Batch, share: Sequence[int], rows: int) -> Batch:
    """Return the rows `share` of `batch`, followed by filler rows up to `rows` rows in total.

    Filler rows have sample_mask 0, so they are in no loss. They have two tokens, so they cost almost nothing.
    """
    selected = batch.select(list(share) or [0])
    if not share:
        selected = replace(selected, sample_mask=torch.zeros(1))
    missing = rows - selected.rows
    if not missing:
        return selected
    padded = {k: torch.cat([v, v.new_zeros(missing, *v.shape[1:])]) for k, v in selected.as_dict().items()}
    for ids, lengths in (("input_ids", "input_lengths"), ("teacher_input_ids", "teacher_input_lengths")):
        if lengths in padded:
            padded[lengths][-missing:] = min(2, padded[ids].shape[1])
    return replace(selected, **padded)


def gather_rows(parts: Sequence[Tensor], shares: Sequence[Sequence[int]], batch: Batch, fill: float) -> Tensor:
    """Combine the [b, s] results of the replicas into one [B, S] tensor in the row order of `batch`.

    The results of filler rows are dropped. Positions without a result are set to `fill`.
    """
    out = torch.full(batch.input_ids.shape, fill)
    for part, share in zip(parts, shares, strict=True):
        out[list(share), : part.shape[1]] = part[: len(share)]
    return out
