"""Micro-batches through Megatron's pipeline schedule, forward only or forward and backward.

Gradients are summed over micro-batches and data-parallel ranks, never divided: `calculate_per_token_loss` (model.py)
with a token count of 0 turns off Megatron's division by micro-batches and by ranks, and `finalize` below leaves out its
division by tokens. All normalisers are in Batch.loss_coef.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from functools import partial
from typing import Any, TypeVar, cast

import torch
from megatron.core.distributed import DistributedDataParallel, finalize_model_grads
from megatron.core.pipeline_parallel import get_forward_backward_func
from torch import Tensor

from nemo_tapo.types import Batch

Result = TypeVar("Result")
# (logits [b, s, V/TP], micro-batch) -> (loss to differentiate, what to report)
Score = Callable[[Tensor, Batch], tuple[Tensor, Result]]


def run(
    model: DistributedDataParallel, batches: Sequence[Batch], score: Score[Result], forward_only: bool
) -> list[Result]:
    """The reports of all micro-batches, in order, on the last pipeline stage; [] on the others.

    With `forward_only: false` the parameters' `main_grad` hold the sum of the gradients over `batches` and over the
    data-parallel ranks afterwards.
    """
    no_tokens = torch.zeros((), dtype=torch.int)

    def loss_of(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor, Result]:
        loss, report = score(logits, batch)
        return loss, no_tokens, report

    def forward_step(batches_left: Iterator[Batch], stage: Any) -> tuple[Tensor, Any]:
        batch = next(batches_left)
        ids = batch.input_ids
        return cast(Tensor, stage(ids, None, None, labels=ids)), partial(loss_of, batch)  # labels: see model.Policy

    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=0,  # stages tell each other the shapes (variable_seq_lengths)
            micro_batch_size=0,
            forward_only=forward_only,
        )
    return cast("list[Result]", reports)


def finalize(models: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Megatron's reduction of the gradients over ranks, without its division by the number of tokens."""
    finalize_model_grads(models, None, **groups)
