"""What NeMo-RL's users look at, beside this package's own records: its Logger, under the names its trainer uses.

train/...          the step's metrics; `reward`, `loss`, `grad_norm`, `lr` also under NeMo-RL's names
timing/train/...   seconds, by the names of NeMo-RL's Timer
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_tapo.interfaces import Recorder
from nemo_tapo.types import Experience, Row, UpdateResult
from nemo_tapo.utils.signals import Stop

NEMO_NAMES = {
    "reward/mean": "reward",
    "response_length/mean": "mean_gen_tokens_per_sample",
    "tokens/trained": "global_valid_toks",
}
TIMER_NAMES = {
    "time/step": "total_step_time",
    "time/collect": "generation",
    "time/update": "policy_training",
    "time/reference": "policy_and_reference_logprobs",
    "time/grading": "reward_calculation",
}


class NemoRecorder:
    """`train.Recorder`: everything goes to `own` and the numbers to NeMo-RL's Logger as well.

    When checkpointing.checkpoint_must_save_by comes near, the run is asked to stop as SIGUSR1 would: a checkpoint at
    the step's end, and exit code 138, by which a scheduler knows that there is more to do.
    """

    def __init__(
        self, own: Recorder, logger: Any, timeout: Any, stop: Stop, take_times: Callable[[], Mapping[str, float]]
    ) -> None:
        """`logger` is NeMo-RL's, `timeout` its TimeoutChecker; `take_times` gives the seconds of the phase changes."""
        self._own, self._logger, self._timeout, self._stop = own, logger, timeout, stop
        self._take_times = take_times

    def phase(self, text: str) -> None:
        self._own.phase(text)

    def warn(self, text: str) -> None:
        self._own.warn(text)

    def resume(self, step: int) -> None:
        self._own.resume(step)
        self._timeout.start_iterations()

    def step(
        self,
        step: int,
        metrics: dict[str, float],
        experience: Experience,
        rows: Sequence[Row],
        results: Sequence[UpdateResult],
    ) -> None:
        changes = self._take_times()
        metrics = {**metrics, **{f"time/nemo_rl/{name}": seconds for name, seconds in changes.items()}}
        self._own.step(step, metrics, experience, rows, results)
        train = {name: value for name, value in metrics.items() if not name.startswith("time/")}
        train |= {theirs: metrics[ours] for ours, theirs in NEMO_NAMES.items() if ours in metrics}
        timing = {theirs: metrics[ours] for ours, theirs in TIMER_NAMES.items() if ours in metrics}
        self._logger.log_metrics(train, step, prefix="train")
        self._logger.log_metrics({**timing, **changes}, step, prefix="timing/train", step_finished=True)
        self._timeout.mark_iteration()
        if self._timeout.check_save() and not self._stop.requested:
            self._own.warn("checkpointing.checkpoint_must_save_by is near: saving a checkpoint and stopping")
            self._stop.request(signal.SIGUSR1)
