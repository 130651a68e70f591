"""Run micro-batches through Megatron's pipeline schedule, forward only or forward and backward.

Gradients are summed over micro-batches and data-parallel ranks, never divided, because Batch.loss_coef holds all
normalisers. `calculate_per_token_loss` (model.py) with a token count of 0 turns off Megatron's division by
micro-batches and by ranks. `finalize_gradients` below leaves out the division by tokens.
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
# (logits [b, s, V/TP], micro-batch) -> (loss to differentiate, report)
ScoreFunction = Callable[[Tensor, Batch], tuple[Tensor, Result]]


def run(
    model: DistributedDataParallel, batches: Sequence[Batch], score: ScoreFunction[Result], forward_only: bool
) -> list[Result]:
    """Run the micro-batches and return their reports, in order, on the last pipeline stage; [] on the others.

    With `forward_only=False`, the parameters' `main_grad` afterwards hold the sum of the gradients over `batches` and
    over the data-parallel ranks.
    """
    no_tokens = torch.zeros((), dtype=torch.int)

    def compute_loss(batch: Batch, logits: Tensor) -> tuple[Tensor, Tensor, Result]:
        loss, report = score(logits, batch)
        return loss, no_tokens, report

    def forward_step(batches_left: Iterator[Batch], stage: Any) -> tuple[Tensor, Any]:
        batch = next(batches_left)
        ids = batch.input_ids
        logits = cast(Tensor, stage(ids, None, None, labels=ids))  # for `labels` see model.LogitsGPTModel
        return logits, partial(compute_loss, batch)

    with torch.set_grad_enabled(not forward_only):
        reports = get_forward_backward_func()(
            forward_step_func=forward_step,
            data_iterator=iter(batches),
            model=[model],
            num_microbatches=len(batches),
            seq_length=0,  # unused: stages send each other the shapes (variable_seq_lengths)
            micro_batch_size=0,
            forward_only=forward_only,
        )
    return cast("list[Result]", reports)


def finalize_gradients(models: list[Any], num_tokens: Tensor | None = None, **groups: Any) -> None:
    """Reduce the gradients over ranks as Megatron does, but without its division by the number of tokens."""
    finalize_model_grads(models, None, **groups)
