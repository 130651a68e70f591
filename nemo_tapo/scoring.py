"""Complete a batch with what other policies say of its tokens, and check that policies agree where they must.

A loss may compare the policy with the one that sampled (rho of Eq. 2), with the frozen reference (KL), or with a
teacher (OPSD). What it needs is scored here, before the first update of a step, and travels in the batch.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import torch

from nemo_tapo import metrics
from nemo_tapo.batch import collate
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.sections import LossConfig
from nemo_tapo.equations.teacher import add_teacher_logprobs, make_teacher_batch
from nemo_tapo.interfaces import Runtime
from nemo_tapo.losses.base import LossNeeds
from nemo_tapo.tracking.step_timer import StepTimer
from nemo_tapo.types import Batch, Kind, Row


async def build_batch(
    rows: Sequence[Row], needs: LossNeeds, runtime: Runtime, cfg: LoopConfig, timer: StepTimer
) -> Batch:
    """Return the batch of one update with every log-probability that its loss needs.

    Called for every update of a step before the first one is made: pi_old is the policy that sampled. With one update
    a batch rho is 1 at every token, and no pass is spent on it.
    """
    batch = collate(rows, runtime.tokenizer.pad_id, cfg.reflection_weight, cfg.loss.token_mean, cfg.example_weight)
    if not cfg.uses_engine:
        return batch
    batch = await _with_teacher(batch, needs, runtime, timer)  # first: the teacher's rows go no further
    with timer.part(metrics.TIME_REFERENCE, "scoring the reference"):
        batch = await _with_reference(batch, choose_reference_rows(rows, cfg.loss), needs, runtime)
    if cfg.loss.updates_per_batch > 1:
        with timer.part(metrics.TIME_OLD_LOGPROBS, "scoring the old policy"):
            batch = replace(batch, prev_logprobs=await runtime.actor.logprobs(batch, needs.temperature))
    return batch


async def _with_teacher(batch: Batch, needs: LossNeeds, runtime: Runtime, timer: StepTimer) -> Batch:
    """Add the teacher's log-probabilities, where the loss needs them and a row has a teacher."""
    if needs.teacher_logprobs is None or batch.teacher_input_ids is None:
        return batch
    actor = runtime.actor
    score = actor.logprobs if needs.teacher_logprobs == "live" else actor.teacher_logprobs
    with timer.part(metrics.TIME_TEACHER, "asking the teacher"):
        return add_teacher_logprobs(batch, await score(make_teacher_batch(batch), needs.temperature))


async def _with_reference(batch: Batch, rows: Sequence[int], needs: LossNeeds, runtime: Runtime) -> Batch:
    """Add the reference policy's log-probabilities of `rows`."""
    if not rows:
        return batch
    index = torch.tensor(rows)
    scores = await runtime.actor.reference_logprobs(batch.select(index), needs.temperature)
    values, known = torch.zeros(batch.input_ids.shape), torch.zeros(batch.rows)
    values[index, : scores.shape[1]] = scores
    known[index] = 1.0
    return replace(batch, reference_policy_logprobs=values, reference_mask=known)


def choose_reference_rows(rows: Sequence[Row], loss: LossConfig) -> list[int]:
    """Return the indices of the rows to score under the reference: all if the KL is penalised, else `kl_rows` rollouts.

    >>> rows = [Row(str(i), "q", Kind.ORIGINAL, (1,), (2,)) for i in range(6)]
    >>> choose_reference_rows(rows, LossConfig(kl_rows=3))
    [0, 2, 4]
    """
    if loss.kl_coef > 0:
        return list(range(len(rows)))
    original = [i for i, row in enumerate(rows) if row.kind is Kind.ORIGINAL]
    if not loss.kl_rows or not original:
        return []
    return original[:: -(-len(original) // loss.kl_rows)]


def check_first_step(step: int, measured: dict[str, float], cfg: LoopConfig) -> None:
    """Check what must hold at the first step of a process: ratio 1, KL 0 (a fresh run's), engine and actor agree.

    Raises ValueError with a sentence that says which did not and what that means.
    """
    keys = (metrics.RATIO_DEVIATION, metrics.KL_REF, metrics.ENGINE_GAP)
    ratio, kl, gap = (measured.get(key, 0.0) for key in keys)
    once = cfg.loss.updates_per_batch == 1
    if once and not ratio <= 1e-5:  # written so that nan fails
        raise ValueError(f"first step: |ratio - 1| is {ratio:.2g} on average, it must be 0 with one update a batch.")
    if step == 0 and once and not abs(kl) <= 1e-5:
        raise ValueError(f"first step: KL to the reference is {kl:.2g}, it must be 0: the reference is another model.")
    if not gap <= cfg.engine_gap_bound:
        raise ValueError(
            f"first step: log-probabilities of engine and actor differ by {gap:.3g} nats a token on average, more than "
            f"the bound {cfg.engine_gap_bound}: the engine does not run the actor's weights."
        )
