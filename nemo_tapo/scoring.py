"""Complete a batch with what other policies say of its tokens, and check that policies agree where they must.

A loss may compare the policy with the one that sampled (rho of Eq. 2), with the frozen reference (KL), or with a
teacher (OPSD). What it needs is scored here, before the first update of a step, and travels in the batch.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace

import torch

from nemo_tapo import metrics
from nemo_tapo.checkpoint import Warn
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.sections import LossConfig
from nemo_tapo.equations.teacher import add_teacher_logprobs, make_teacher_batch
from nemo_tapo.interfaces import Runtime
from nemo_tapo.losses.base import LossNeeds
from nemo_tapo.tracking.step_timer import StepTimer
from nemo_tapo.types import Batch, Kind, Row


async def add_scores(
    batch: Batch, rows: Sequence[Row], needs: LossNeeds, runtime: Runtime, cfg: LoopConfig, timer: StepTimer
) -> Batch:
    """Add to the batch of one update every log-probability that its loss needs; `rows` are those it was made of.

    Called for every update of a step before the first one is made: pi_old is the policy that sampled. With one update
    a step rho is 1 at every token, and no pass is spent on it.
    """
    batch = await _with_teacher(batch, needs, runtime, timer)  # first: the teacher's rows go no further
    with timer.measure(metrics.TIME_REFERENCE, "scoring the reference"):
        batch = await _with_reference(batch, choose_reference_rows(rows, cfg.loss), needs, runtime)
    if cfg.loss.updates_per_batch > 1:
        with timer.measure(metrics.TIME_OLD_LOGPROBS, "scoring the old policy"):
            batch = replace(batch, prev_logprobs=await runtime.actor.logprobs(batch, needs.temperature))
    return batch


async def _with_teacher(batch: Batch, needs: LossNeeds, runtime: Runtime, timer: StepTimer) -> Batch:
    """Add the teacher's log-probabilities, where the loss needs them and a row has a teacher."""
    if needs.teacher_logprobs is None or batch.teacher_input_ids is None:
        return batch
    actor = runtime.actor
    score = actor.logprobs if needs.teacher_logprobs == "live" else actor.teacher_logprobs
    with timer.measure(metrics.TIME_TEACHER, "asking the teacher"):
        return add_teacher_logprobs(batch, await score(make_teacher_batch(batch), needs.temperature))


async def _with_reference(batch: Batch, indices: Sequence[int], needs: LossNeeds, runtime: Runtime) -> Batch:
    """Add the reference policy's log-probabilities of the rows at `indices`."""
    if not indices:
        return batch
    chosen = torch.tensor(indices)
    scores = await runtime.actor.reference_logprobs(batch.select(chosen), needs.temperature)
    values, known = torch.zeros(batch.input_ids.shape), torch.zeros(batch.rows)
    values[chosen, : scores.shape[1]] = scores
    known[chosen] = 1.0
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


STALE_FACTOR = 30  # in 16 steps of the demo (fp32) the gap was 0.6 to 1.3 times that of the first
SMALLEST_GAP = 1e-6  # nats a token: below it fp32 rounds


class PolicyComparison:
    """Compare what should be one policy: before and after an update (ratio), actor and reference, engine and actor.

    Number formats decide how far two computations of one policy are apart, so `engine_gap_bound` depends on them. A
    fresh run's first step raises: the run was set up wrongly. Afterwards a difference may be a spike that passes, so it
    is told and the run goes on. One update moves a policy by less than the bound; so what was measured at the process's
    first step, when engine and actor had the same weights, is a bound too: STALE_FACTOR times that is told.

    With `rollout.lag: 1` an update lies between the weights that are compared, but for a fresh run's first step. The
    bound holds there too, the smaller one from the first step does not.
    """

    def __init__(self, cfg: LoopConfig, warn: Warn) -> None:
        self._cfg, self._warn, self._warned_at = cfg, warn, cfg.engine_gap_bound
        self._first_gap: float | None = None  # engine and actor with the same weights

    def check(self, step: int, measured: Mapping[str, float], first: bool) -> None:
        """Check the numbers of a step (counted from 0); `first` is True at the first one of a process.

        Warns again only when engine and actor are twice as far apart as told. Raises ValueError at step 0.
        """
        faults = list(self._find_setup_faults(step, measured)) if first else []
        gap = measured.get(metrics.ENGINE_GAP, 0.0)
        lagged = measured.get(metrics.ROLLOUT_LAG, 0) > 0
        if not lagged:
            faults += self._find_stale_engine(gap, first and metrics.ENGINE_GAP in measured)
        if not gap <= self._warned_at:  # written so that nan is a fault
            self._warned_at = max(self._warned_at, 2 * gap)
            cause = "the engine does not run the actor's weights, or computes with them otherwise."
            if lagged:
                cause = "the update between the two (rollout.lag) moved the policy far, or the engine's are older."
            faults.append(
                f"log-probabilities of engine and actor differ by {gap:.3g} nats a token on average, more than "
                f"engine_gap_bound = {self._cfg.engine_gap_bound:g}: {cause}"
            )
        if faults and step == 0:
            raise ValueError("\n".join(f"first step: {fault}" for fault in faults))
        for fault in faults:
            self._warn(f"step {step + 1}: {fault}")

    def _find_stale_engine(self, gap: float, first: bool) -> Iterator[str]:
        """Yield a sentence if the gap is far above the first one, though below the bound."""
        if first:
            self._first_gap = gap
            return
        if self._first_gap is None:
            return
        limit = max(STALE_FACTOR * self._first_gap, SMALLEST_GAP)
        if limit < gap <= self._warned_at:
            self._warned_at = 2 * gap
            yield (
                f"log-probabilities of engine and actor differ by {gap:.3g} nats a token on average, at the first step "
                f"they did by {self._first_gap:.3g}: the engine does not run the actor's newest weights."
            )

    def _find_setup_faults(self, step: int, measured: Mapping[str, float]) -> Iterator[str]:
        if self._cfg.loss.updates_per_batch > 1:
            return  # later updates see a policy that has moved
        ratio, kl = (measured.get(key, 0.0) for key in (metrics.RATIO_DEVIATION, metrics.KL_REF))
        if not ratio <= 1e-5:
            yield f"|ratio - 1| is {ratio:.2g} on average, it must be 0 with one update a batch."
        if step == 0 and not abs(kl) <= bound_kl(self._cfg.engine_gap_bound):
            yield f"KL to the reference is {kl:.2g}, it must be 0: the reference is another model."


FP32_GAP, FP32_KL = 0.01, 1e-5  # nats a token: two computations of one policy in fp32


def bound_kl(gap: float) -> float:
    """Return the largest KL, nats a token, of two computations that are `gap` nats a token apart on average.

    A token that is d apart adds d^2 / 2. If one token in eight carries all of the gap, d is 8 gap and the mean 4 gap^2.
    In fp32 two computations are much closer than the gap that is tolerated.

    >>> round(bound_kl(0.05), 6), bound_kl(0.01)  # the defaults in bf16 and in fp32
    (0.01, 1e-05)
    """
    return FP32_KL if gap <= FP32_GAP else 4 * gap**2
