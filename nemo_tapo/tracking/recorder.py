"""The loop's Recorder: metrics, trajectories and progress of one stage, written as they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.equations.selection import Zone, zone
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.metrics import CORRECT, ELIGIBLE, LOSS, MIXED_REFLECTION_GROUPS, PAIRS, PARSED, REWARD_MEAN, TIME_STEP
from nemo_tapo.tracking.progress import Progress, Stage
from nemo_tapo.tracking.records import MetricsWriter, TrajectoryWriter, skipped_record, token_pieces, trajectory_record
from nemo_tapo.types import Construction, Row, StepRecord, UpdateResult


@dataclass(frozen=True)
class TrajectoryRecording:
    """How constructions are written down for people to read."""

    tokenizer: Tokenizer
    tapo: TapoConfig  # n_pos and n_neg say why a query was not eligible
    per_step: int | None = None  # most records of a step; None: all


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
        """Open the folder's files; `stage` names it in the progress display.

        Without `trajectories` none are written (supervised stages, GRPO).
        """
        folder.mkdir(parents=True, exist_ok=True)
        self.progress, self.name, self.steps = progress, stage, steps
        self.recording = trajectories
        self.stage: Stage | None = None
        self.metrics = MetricsWriter(folder)
        self.trajectories = TrajectoryWriter(folder, trajectories.per_step) if trajectories else None

    def phase(self, text: str) -> None:
        self.progress.status(text)

    def warn(self, text: str) -> None:
        self.progress.message(text)

    def resume(self, step: int) -> None:
        self.metrics.truncate_after(step - 1)
        if self.trajectories:
            self.trajectories.truncate_after(step - 1)
        self.stage = self.progress.stage(self.name, self.steps, "step", done=step - 1)

    def step(self, record: StepRecord) -> None:
        """Write a finished step and show its numbers."""
        self.metrics.write(record.step, record.metrics)
        if self.trajectories and self.recording:
            self.trajectories.write(record.step, trajectory_records(record, self.recording))
        assert self.stage is not None, "the loop resumes before it steps"
        self.stage.note(summary(record.metrics))
        self.stage.advance()

    def close(self) -> None:
        self.metrics.close()
        if self.trajectories:
            self.trajectories.close()


def trajectory_records(record: StepRecord, how: TrajectoryRecording) -> list[dict[str, object]]:
    """Return every pair with its weights and advantage and every ineligible query with its zone, in query order."""
    weights = weights_by_uid(record.rows, record.results)
    advantages = {row.uid: row.advantage for row in record.rows}
    by_query: dict[str, list[Construction]] = defaultdict(list)
    for construction in record.experience.constructions:
        by_query[construction.pair.wrong.query.uid].append(construction)
    records: list[dict[str, object]] = []
    for group in record.experience.groups:
        where = zone(group, how.tapo.n_pos, how.tapo.n_neg)
        if where is not Zone.ELIGIBLE:
            records.append(skipped_record(group, where.value))
        for construction in by_query[group.query.uid]:
            uid = construction.pair.uid
            trained = weights.get(uid, [])
            pieces = token_pieces(construction.response_ids if trained else (), how.tokenizer.decode)
            records.append(trajectory_record(construction, pieces, trained, advantages.get(uid)))
    return records


def weights_by_uid(rows: Sequence[Row], results: Sequence[UpdateResult]) -> dict[str, list[float]]:
    """OTS weights of each row's response tokens, where the actor returned them. Rows in the order of the updates."""
    weights: dict[str, list[float]] = {}
    if len(results) != 1 or results[0].token_weights is None:
        return weights  # several updates weigh a row several times: there is no one number to show
    for i, row in enumerate(rows):
        values = results[0].token_weights[i, len(row.prompt_ids) : row.length]
        weights[row.uid] = [float(v) for v in values]
    return weights


def summary(metrics: Mapping[str, float]) -> str:
    """One line for the progress display."""
    shown = [
        (REWARD_MEAN, "reward {:.2f}"),
        (LOSS, "loss {:+.3f}"),
        (ELIGIBLE, "eligible {:.0f}"),
        (PAIRS, "pairs {:.0f}"),
        (PARSED, "parsed {:.0f}"),
        (CORRECT, "right {:.0f}"),
        (MIXED_REFLECTION_GROUPS, "mixed groups {:.0f}"),
        (TIME_STEP, "{:.1f} s"),
    ]
    return "  ".join(text.format(metrics[name]) for name, text in shown if name in metrics)
