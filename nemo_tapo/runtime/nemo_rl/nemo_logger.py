"""Write the step's numbers to NeMo-RL's Logger as well, under the names that NeMo-RL's own trainer uses.

validation/...     the step's validation, if there was one
train/...          the step's other metrics; `reward`, `loss`, `grad_norm`, `lr` also under NeMo-RL's names
timing/train/...   seconds, by the names of NeMo-RL's Timer
"""

from __future__ import annotations

import signal
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from nemo_tapo.interfaces import Recorder
from nemo_tapo.metrics import (
    NEMO_TIME_PREFIX,
    RESPONSE_LENGTH_MEAN,
    REWARD_MEAN,
    TIME_COLLECT,
    TIME_GRADING,
    TIME_REFERENCE,
    TIME_STEP,
    TIME_UPDATE,
    TOKENS_TRAINED,
    VALIDATION_PREFIX,
)
from nemo_tapo.types import StepRecord
from nemo_tapo.utils.signals import Stop

NEMO_NAMES = {
    REWARD_MEAN: "reward",
    RESPONSE_LENGTH_MEAN: "mean_gen_tokens_per_sample",
    TOKENS_TRAINED: "global_valid_toks",
}
TIMER_NAMES = {
    TIME_STEP: "total_step_time",
    TIME_COLLECT: "generation",
    TIME_UPDATE: "policy_training",
    TIME_REFERENCE: "policy_and_reference_logprobs",
    TIME_GRADING: "reward_calculation",
}


class NemoRecorder:
    """`interfaces.Recorder`: passes everything to another recorder and the numbers to NeMo-RL's Logger as well.

    When checkpointing.checkpoint_must_save_by is near, it requests the same stop as SIGUSR1: a checkpoint at the end of
    the step and exit code 138, which tells a scheduler to continue the run in another job.
    """

    def __init__(
        self, recorder: Recorder, logger: Any, timeout: Any, stop: Stop, take_times: Callable[[], Mapping[str, float]]
    ) -> None:
        """Wrap `recorder`.

        `logger` is NeMo-RL's, `timeout` its TimeoutChecker; `take_times` returns the seconds of the phase changes.
        """
        self._recorder, self._logger, self._timeout, self._stop = recorder, logger, timeout, stop
        self._take_times = take_times

    def phase(self, text: str) -> None:
        self._recorder.phase(text)

    def warn(self, text: str) -> None:
        self._recorder.warn(text)

    def resume(self, step: int, history: Sequence[str]) -> None:
        self._recorder.resume(step, history)
        self._timeout.start_iterations()

    def history(self) -> Sequence[str]:
        return self._recorder.history()

    def step(self, record: StepRecord) -> None:
        """Record the step with the seconds of NeMo-RL's phase changes; request a stop if time is running out."""
        changes = self._take_times()
        metrics = {**record.metrics, **{NEMO_TIME_PREFIX + name: seconds for name, seconds in changes.items()}}
        self._recorder.step(replace(record, metrics=metrics))
        train = {k: v for k, v in metrics.items() if not k.startswith(("time/", VALIDATION_PREFIX))}
        train |= {nemo_name: metrics[key] for key, nemo_name in NEMO_NAMES.items() if key in metrics}
        timing = {nemo_name: metrics[key] for key, nemo_name in TIMER_NAMES.items() if key in metrics}
        self._logger.log_metrics(train, record.step, prefix="train")
        validation = {
            k.removeprefix(VALIDATION_PREFIX): v for k, v in metrics.items() if k.startswith(VALIDATION_PREFIX)
        }
        if validation:
            self._logger.log_metrics(validation, record.step, prefix="validation")
        self._logger.log_metrics({**timing, **changes}, record.step, prefix="timing/train", step_finished=True)
        self._timeout.mark_iteration()
        if self._timeout.check_save() and not self._stop.requested:
            self._recorder.warn("checkpointing.checkpoint_must_save_by is near: saving a checkpoint and stopping")
            self._stop.request(signal.SIGUSR1)
