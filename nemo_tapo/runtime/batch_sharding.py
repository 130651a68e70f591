"""Rows of a batch over data-parallel ranks, and results back in order."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch
from torch import Tensor

from nemo_tapo.types import Batch


def deal(lengths: Sequence[int], ranks: int) -> list[list[int]]:
    """Row indices for each of `ranks`: dealt like cards from the longest row to the shortest, so work is equal."""
    order = sorted(range(len(lengths)), key=lambda i: (-lengths[i], i))
    return [order[rank::ranks] for rank in range(ranks)]


def filled(batch: Batch, share: Sequence[int], rows: int) -> Batch:
    """The rows `share` of `batch`, and behind them as many as make `rows`, with sample_mask 0: in no loss.

    Added rows have two tokens, so they cost next to nothing.
    """
    part = batch.select(list(share) or [0])
    if not share:
        part = replace(part, sample_mask=torch.zeros(1))
    missing = rows - part.rows
    if not missing:
        return part
    added = {k: torch.cat([v, v.new_zeros(missing, *v.shape[1:])]) for k, v in part.as_dict().items()}
    for ids, lengths in (("input_ids", "input_lengths"), ("teacher_input_ids", "teacher_input_lengths")):
        if lengths in added:
            added[lengths][-missing:] = min(2, added[ids].shape[1])
    return replace(part, **added)


def gather(parts: Sequence[Tensor], shares: Sequence[Sequence[int]], batch: Batch, fill: float) -> Tensor:
    """The replicas' [b, s] results as one [B, S] in the batch's row order; rows that only filled up are dropped."""
    out = torch.full(batch.input_ids.shape, fill)
    for part, share in zip(parts, shares, strict=True):
        out[list(share), : part.shape[1]] = part[: len(share)]
    return out
