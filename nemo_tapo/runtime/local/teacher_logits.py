"""The teacher's logits beside the student's, from the same Megatron ranks (OPSD)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager
from dataclasses import replace

from megatron.core.distributed import DistributedDataParallel
from torch import Tensor

from nemo_tapo.losses.distillation import taught_logits
from nemo_tapo.runtime.local import pipeline_schedule
from nemo_tapo.types import Batch

Weights = Callable[[], AbstractContextManager[None]]  # inside, the model has the teacher's weights


def teacher_logits(
    model: DistributedDataParallel, parts: Sequence[Batch], weights: Weights, stages: int
) -> Iterator[Tensor | None]:
    """Of each micro-batch's taught tokens, [n, V/TP], in order; None where nothing is taught. On the last stage alone.

    On one stage they are made when they are asked for, so that those of one micro-batch exist at a time. With several
    `stages` the student's schedule is under way by then: all of them are made here and kept.
    """
    if stages > 1:
        return iter(_forward(model, parts, weights))
    return (logits for part in parts for logits in _forward(model, [part], weights))


def _forward(model: DistributedDataParallel, parts: Sequence[Batch], weights: Weights) -> list[Tensor | None]:
    """One pass without gradient over the teacher's rows; of their logits only the taught tokens' are kept."""
    if parts[0].teacher_input_ids is None:  # of a step that teaches nothing
        return [None] * len(parts)

    def keep(logits: Tensor, part: Batch) -> tuple[Tensor, Tensor | None]:
        return logits.new_zeros(()), taught_logits(logits, part)

    rows = [replace(part, input_ids=part.teacher_input_ids) for part in parts if part.teacher_input_ids is not None]
    with weights():
        return pipeline_schedule.run(model, rows, keep, forward_only=True)
