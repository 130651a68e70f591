"""Record the metrics, trajectories and progress of one stage, as they arrive from the loop."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.equations.selection import Zone, classify_zone
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.metrics import CORRECT, ELIGIBLE, LOSS, MIXED_REFLECTION_GROUPS, PAIRS, PARSED, REWARD_MEAN, TIME_STEP
from nemo_tapo.tracking.progress import Progress, ProgressStage
from nemo_tapo.tracking.records import (
    MetricsWriter,
    TrajectoryWriter,
    decode_token_pieces,
    make_skipped_record,
    make_trajectory_record,
)
from nemo_tapo.types import Construction, Row, StepRecord, UpdateResult


@dataclass(frozen=True)
class TrajectoryRecording:
    """Settings for recording constructions so that people can read them."""

    tokenizer: Tokenizer
    tapo: TapoConfig  # n_pos and n_neg decide why a query was not eligible
    per_step: int | None = None  # maximum number of records per step; None: all


class RunRecorder:
    """Write `metrics.jsonl`, TensorBoard events and, for TAPO, `trajectories.jsonl` into a stage's folder."""

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        stage: str,
        steps: int,
        trajectories: TrajectoryRecording | None = None,
    ) -> None:
        """Open the folder's files; `stage` is its name in the progress display.

        Without `trajectories` no trajectories are written (supervised stages, GRPO).
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.progress, self.name, self.steps = progress, stage, steps
        self.recording = trajectories
        self.stage: ProgressStage | None = None
        self.metrics = MetricsWriter(folder)
        self.trajectories = TrajectoryWriter(folder, trajectories.per_step) if trajectories else None

    def phase(self, text: str) -> None:
        self.progress.set_phase(text)

    def warn(self, text: str) -> None:
        self.progress.message(text)

    def resume(self, step: int) -> None:
        self.metrics.truncate_after(step - 1)
        if self.trajectories:
            self.trajectories.truncate_after(step - 1)
        self.stage = self.progress.start_stage(self.name, self.steps, "step", done=step - 1)

    def step(self, record: StepRecord) -> None:
        """Write a finished step and show its numbers."""
        self.metrics.write(record.step, record.metrics)
        if self.trajectories and self.recording:
            self.trajectories.write(record.step, make_trajectory_records(record, self.recording))
        assert self.stage is not None, "the loop resumes before it steps"
        self.stage.set_note(format_step_summary(record.metrics))
        self.stage.advance()

    def close(self) -> None:
        self.metrics.close()
        if self.trajectories:
            self.trajectories.close()


def make_trajectory_records(record: StepRecord, recording: TrajectoryRecording) -> list[dict[str, object]]:
    """Return the trajectory records of a step, in query order.

    They are every pair with its weights and advantage, and every ineligible query with its zone.
    """
    weights = collect_weights(record.rows, record.results)
    advantages = {row.uid: row.advantage for row in record.rows}
    by_query: dict[str, list[Construction]] = defaultdict(list)
    for construction in record.experience.constructions:
        by_query[construction.pair.wrong.query.uid].append(construction)
    records: list[dict[str, object]] = []
    for group in record.experience.groups:
        query_zone = classify_zone(group, recording.tapo.n_pos, recording.tapo.n_neg)
        if query_zone is not Zone.ELIGIBLE:
            records.append(make_skipped_record(group, query_zone.value))
        for construction in by_query[group.query.uid]:
            uid = construction.pair.uid
            trained = weights.get(uid, [])
            pieces = decode_token_pieces(construction.response_ids if trained else (), recording.tokenizer.decode)
            records.append(make_trajectory_record(construction, pieces, trained, advantages.get(uid)))
    return records


def collect_weights(rows: Sequence[Row], results: Sequence[UpdateResult]) -> dict[str, list[float]]:
    """Return {uid: OTS weights of the row's response tokens}, if the actor returned them.

    Rows are in the order of the updates.
    """
    weights: dict[str, list[float]] = {}
    if len(results) != 1 or results[0].token_weights is None:
        return weights  # with several updates a row has several weights, so there is no single number to show
    for i, row in enumerate(rows):
        values = results[0].token_weights[i, len(row.prompt_ids) : row.length]
        weights[row.uid] = [float(v) for v in values]
    return weights


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
