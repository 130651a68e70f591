"""Where a response's tokens stand in the student's row and in the teacher's.

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


def taught_tokens(batch: Batch) -> Places:
    """The tokens that carry loss, where the student's rows have them."""
    rows, columns = (batch.token_mask * batch.sample_mask[:, None]).nonzero(as_tuple=True)
    return rows, columns


def in_teacher_rows(batch: Batch, places: Places) -> Places:
    """The same tokens in `batch.teacher_input_ids`."""
    assert batch.teacher_input_lengths is not None
    rows, columns = places
    return rows, columns + (batch.teacher_input_lengths - batch.input_lengths)[rows]


def teacher_batch(batch: Batch) -> Batch:
    """The teacher's rows as a batch of their own, to be scored; their token mask has the same tokens."""
    assert batch.teacher_input_ids is not None and batch.teacher_input_lengths is not None
    token_mask = torch.zeros(batch.teacher_input_ids.shape)
    token_mask[in_teacher_rows(batch, taught_tokens(batch))] = 1.0
    return Batch(
        input_ids=batch.teacher_input_ids,
        input_lengths=batch.teacher_input_lengths,
        token_mask=token_mask,
        sample_mask=batch.sample_mask,
        advantages=batch.advantages,
        loss_coef=batch.loss_coef,
        constructed=batch.constructed,
    )


def with_teacher_logprobs(batch: Batch, scores: Tensor) -> Batch:
    """`batch` with `scores` [B, S'] of `teacher_batch(batch)` at its own tokens; the teacher's rows are done with."""
    places = taught_tokens(batch)
    values = torch.zeros(batch.input_ids.shape)
    values[places] = scores[in_teacher_rows(batch, places)]
    return replace(batch, teacher_logprobs=values, teacher_input_ids=None, teacher_input_lengths=None)
