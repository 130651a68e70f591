"""The loop's Recorder: metrics, trajectories and progress of one stage, written as they come."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.equations.selection import Zone, zone
from nemo_tapo.interfaces import Tokenizer
from nemo_tapo.tracking.progress import Progress, Stage
from nemo_tapo.tracking.records import MetricsWriter, TrajectoryWriter, skipped_record, token_pieces, trajectory_record
from nemo_tapo.types import Construction, Experience, Row, UpdateResult


class RunRecorder:
    """Writes `metrics.jsonl`, TensorBoard events and, for TAPO, `trajectories.jsonl` into a stage's folder."""

    def __init__(
        self,
        folder: Path,
        progress: Progress,
        stage: str,
        steps: int,
        tokenizer: Tokenizer,
        tapo: TapoConfig | None = None,
        trajectories_per_step: int | None = None,
    ) -> None:
        """`stage` names it in the progress display; `tapo` None: no trajectories (supervised stages, GRPO)."""
        folder.mkdir(parents=True, exist_ok=True)
        self.progress, self.tokenizer, self.tapo = progress, tokenizer, tapo
        self.name, self.steps = stage, steps
        self.stage: Stage | None = None
        self.metrics = MetricsWriter(folder)
        self.trajectories = TrajectoryWriter(folder, trajectories_per_step) if tapo else None

    def phase(self, text: str) -> None:
        self.progress.status(text)

    def warn(self, text: str) -> None:
        self.progress.message(text)

    def resume(self, step: int) -> None:
        self.metrics.truncate_after(step - 1)
        if self.trajectories:
            self.trajectories.truncate_after(step - 1)
        self.stage = self.progress.stage(self.name, self.steps, "step", done=step - 1)

    def step(
        self,
        step: int,
        metrics: dict[str, float],
        experience: Experience,
        rows: Sequence[Row],
        results: Sequence[UpdateResult],
    ) -> None:
        self.metrics.write(step, metrics)
        if self.trajectories and self.tapo:
            self.trajectories.write(step, self._records(experience, rows, results, self.tapo))
        assert self.stage is not None, "the loop resumes before it steps"
        self.stage.note(summary(metrics))
        self.stage.advance()

    def close(self) -> None:
        self.metrics.close()
        if self.trajectories:
            self.trajectories.close()

    def _records(
        self, experience: Experience, rows: Sequence[Row], results: Sequence[UpdateResult], tapo: TapoConfig
    ) -> list[dict[str, object]]:
        """Every pair with its weights and advantage, every ineligible query with its zone, in query order."""
        trained = weights_by_uid(rows, results)
        advantages = {row.uid: row.advantage for row in rows}
        by_query: dict[str, list[Construction]] = defaultdict(list)
        for construction in experience.constructions:
            by_query[construction.pair.wrong.query.uid].append(construction)
        records: list[dict[str, object]] = []
        for group in experience.groups:
            where = zone(group, tapo.n_pos, tapo.n_neg)
            if where is not Zone.ELIGIBLE:
                records.append(skipped_record(group, where.value))
            for construction in by_query[group.query.uid]:
                uid = construction.pair.uid
                weights = trained.get(uid, [])
                ids = construction.response_ids if weights else ()
                pieces = token_pieces(ids, self.tokenizer.decode)
                records.append(trajectory_record(construction, pieces, weights, advantages.get(uid)))
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


def summary(metrics: dict[str, float]) -> str:
    """One line for the progress display."""
    shown = [
        ("reward/mean", "reward {:.2f}"),
        ("loss", "loss {:+.3f}"),
        ("tapo/eligible", "eligible {:.0f}"),
        ("tapo/pairs", "pairs {:.0f}"),
        ("tapo/parsed", "parsed {:.0f}"),
        ("tapo/correct", "right {:.0f}"),
        ("tapo/mixed_groups", "mixed groups {:.0f}"),
        ("time/step", "{:.1f} s"),
    ]
    return "  ".join(text.format(metrics[name]) for name, text in shown if name in metrics)
