"""Compute the teacher's logits on the same Megatron ranks as the student's (OPSD)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_tapo.losses.distillation import select_taught_logits
from nemo_tapo.runtime.local import pipeline_schedule
from nemo_tapo.types import Batch

TeacherWeights = Callable[[], AbstractContextManager[None]]  # inside this context the model has the teacher's weights


def compute_teacher_logits(
    model: DistributedDataParallel, micro_batches: Sequence[Batch], weights: TeacherWeights, stages: int
) -> Iterator[Tensor | None]:
    """Iterate over the teacher's logits [n, V/TP] of each micro-batch's taught tokens, on the last pipeline stage.

    Items are in the order of the micro-batches; they are None if the step teaches nothing. With one pipeline stage,
    each item is computed when it is needed, so only one micro-batch's logits exist at a time. With several `stages`,
    the student's schedule is already running by then, so all items are computed beforehand and kept.
    """
    if stages > 1:
        return iter(_forward(model, micro_batches, weights))
    return (logits for part in micro_batches for logits in _forward(model, [part], weights))


def _forward(
    model: DistributedDataParallel, micro_batches: Sequence[Batch], weights: TeacherWeights
) -> list[Tensor | None]:
    """Run the teacher's rows forward without gradient and return the logits of the taught tokens only."""
    if micro_batches[0].teacher_input_ids is None:  # this step teaches nothing
        return [None] * len(micro_batches)

    def keep(logits: Tensor, part: Batch) -> tuple[Tensor, Tensor | None]:
        return logits.new_zeros(()), select_taught_logits(logits, part)

    rows = [
        replace(part, input_ids=part.teacher_input_ids) for part in micro_batches if part.teacher_input_ids is not None
    ]
    with weights():
        return pipeline_schedule.run(model, rows, keep, forward_only=True)
