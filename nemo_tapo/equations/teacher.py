"""Find a response's tokens in the student's row and in the teacher's.

Both rows end with the same response, after prompts of different lengths (arXiv 2601.18734: the teacher reads the
question and a correct solution, and is forced along the student's own response):

    student   question              y_1 .. y_T
    teacher   question + solution   y_1 .. y_T        column of y_t: the student's, plus the difference of the lengths
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from nemo_tapo.types import Batch

Places = tuple[Tensor, Tensor]  # (row [n], column [n]) of n tokens, in row order


def find_taught_tokens(batch: Batch) -> Places:
    """Return the places of the tokens that carry loss, in the student's rows."""
    rows, columns = (batch.token_mask * batch.sample_mask[:, None]).nonzero(as_tuple=True)
    return rows, columns


def to_teacher_rows(batch: Batch, places: Places) -> Places:
    """Return the places of the same tokens in `batch.teacher_input_ids`."""
    assert batch.teacher_input_lengths is not None
    rows, columns = places
    return rows, columns + (batch.teacher_input_lengths - batch.input_lengths)[rows]


def make_teacher_batch(batch: Batch) -> Batch:
    """Make a batch of the teacher's rows, to be scored; its token mask has the same tokens."""
    assert batch.teacher_input_ids is not None and batch.teacher_input_lengths is not None
    token_mask = torch.zeros(batch.teacher_input_ids.shape)
    token_mask[to_teacher_rows(batch, find_taught_tokens(batch))] = 1.0
    return Batch(
        input_ids=batch.teacher_input_ids,
        input_lengths=batch.teacher_input_lengths,
        token_mask=token_mask,
        sample_mask=batch.sample_mask,
        advantages=batch.advantages,
        loss_coef=batch.loss_coef,
        constructed=batch.constructed,
    )


def add_teacher_logprobs(batch: Batch, scores: Tensor) -> Batch:
    """Put `scores` [B, S'] of `make_teacher_batch(batch)` at the tokens of `batch`, and drop the teacher's rows."""
    places = find_taught_tokens(batch)
    values = torch.zeros(batch.input_ids.shape)
    values[places] = scores[to_teacher_rows(batch, places)]
    return replace(batch, teacher_logprobs=values, teacher_input_ids=None, teacher_input_lengths=None)
