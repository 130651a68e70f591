"""Record the metrics, trajectories and progress of one stage, as they arrive from the loop."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.metrics import (
    CORRECT,
    ELIGIBLE,
    LOSS,
    MEMORY_PREFIX,
    MIXED_REFLECTION_GROUPS,
    PAIRS,
    PARSED,
    REWARD_MEAN,
    TIME_STEP,
)
from nemo_tapo.tracking.group_records import GroupWriter
from nemo_tapo.tracking.progress import Progress, ProgressStage
from nemo_tapo.tracking.records import MetricsWriter, TrajectoryWriter
from nemo_tapo.tracking.rollout_writer import RolloutWriter
from nemo_tapo.tracking.step_records import StepRecords
from nemo_tapo.tracking.trackers import Trackers
from nemo_tapo.types import StepRecord
from nemo_tapo.utils.process_memory import add_up_memory

ListProcesses = Callable[[], Mapping[str, Sequence[int]]]  # ids of processes on this machine, by part


@dataclass(frozen=True)
class SampleRecording:
    """Settings for recording what was sampled, so that people can read it."""

    tokenizer: Tokenizer
    tapo: TapoConfig | None  # n_pos and n_neg decide why a query was not eligible; None: nothing is constructed
    per_step: int | None = None  # most records of a step in trajectories.jsonl; None: all
    max_bytes: int = 0  # of all rollouts, compressed; 0: they are not recorded

    def __post_init__(self) -> None:
        if self.per_step is not None and self.per_step < 0:
            raise ValueError(f"trajectories_per_step is {self.per_step}; it must be 0 or more, or null for all.")


class RunRecorder:
    """Write `metrics.jsonl`, TensorBoard events and what was sampled into a stage's folder."""

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        stage: str,
        steps: int,
        samples: SampleRecording | None = None,
        groups: bool = False,
        trackers: Trackers | None = None,
        tensorboard: bool = True,
    ) -> None:
        """Open the folder's files; `stage` is its name in the progress display.

        Without `samples` the metrics alone are written (supervised stages); without `samples.tapo` no trajectories.
        `groups` asks for groups.jsonl. `trackers` get the numbers too, and are closed with the recorder.
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.progress, self.name, self.steps = progress, stage, steps
        self.stage: ProgressStage | None = None
        self.metrics = MetricsWriter(folder, tensorboard)
        self.trackers = trackers
        constructs = samples is not None and samples.tapo is not None
        self.per_step = samples.per_step if samples else None
        self.records = StepRecords(samples.tokenizer, samples.tapo) if samples else None
        self.trajectories = TrajectoryWriter(folder) if constructs else None
        self.rollouts = RolloutWriter(folder, samples.max_bytes) if samples and samples.max_bytes else None
        self.groups = GroupWriter(folder) if groups else None
        self.list_processes: ListProcesses = dict  # whose memory is recorded with every step

    def phase(self, text: str) -> None:
        self.progress.set_phase(text)

    def warn(self, text: str) -> None:
        self.progress.message(text)

    def resume(self, step: int, history: Sequence[str]) -> None:
        """Cut the files back to the steps before `step`, and put back what `history` has and metrics.jsonl lost."""
        writers = [each for each in (self.trajectories, self.rollouts, self.groups) if each]
        told = [*self.metrics.notes, *(note for writer in writers for note in writer.notes)]
        self.metrics.truncate_after(step - 1)
        if self.metrics.restore(history):
            told.append(f"{self.metrics.path} had lost steps; they are back, from the checkpoint")
        for writer in writers:
            writer.truncate_after(step - 1)
        for sentence in told:
            self.warn(sentence)
        self.stage = self.progress.start_stage(self.name, self.steps, "step", done=step - 1)

    def history(self) -> Sequence[str]:
        return self.metrics.lines()

    def step(self, record: StepRecord) -> None:
        """Write a finished step and show its numbers."""
        memory = {MEMORY_PREFIX + part: mib for part, mib in add_up_memory(self.list_processes()).items()}
        numbers = {**record.metrics, **memory}
        self.metrics.write(record.step, numbers)
        if self.trackers:
            self.trackers.log(record.step, numbers)
        if self.records and self.rollouts:
            self.rollouts.write(record.step, self.records.make_query_records(record))
        if self.records and self.trajectories:
            self.trajectories.write(record.step, *self.records.make_trajectory_records(record, self.per_step))
        if self.groups:
            self.groups.write(record)
        assert self.stage is not None, "the loop resumes before it steps"
        self.stage.set_note(format_step_summary(record.metrics))
        self.stage.advance()

    def close(self) -> None:
        for writer in (self.metrics, self.trackers, self.trajectories, self.rollouts, self.groups):
            if writer:
                writer.close()


def format_step_summary(metrics: Mapping[str, float]) -> str:
    """Format the main numbers of a step in one line, for the progress display.

    >>> format_step_summary({"reward/mean": 0.41, "loss": -0.02})
    'reward 0.41  loss -0.020'
    """
    formats = [
        (REWARD_MEAN, "reward {:.2f}"),
        (LOSS, "loss {:+.3f}"),
        (ELIGIBLE, "eligible {:.0f}"),
        (PAIRS, "pairs {:.0f}"),
        (PARSED, "parsed {:.0f}"),
        (CORRECT, "right {:.0f}"),
        (MIXED_REFLECTION_GROUPS, "mixed groups {:.0f}"),
        (TIME_STEP, "{:.1f} s"),
    ]
    return "  ".join(text.format(metrics[name]) for name, text in formats if name in metrics)
