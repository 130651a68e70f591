"""The session that every stage works with: configuration, runtime, task, tools and data."""

from __future__ import annotations

import copy
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path

from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.checkpoint import remove_on_failure
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.datasets.data_report import DataReport
from nemo_tapo.datasets.query_order import add_prompts
from nemo_tapo.grading.pool import list_grader_processes
from nemo_tapo.interfaces import Algorithm, Runtime, Task, Validation
from nemo_tapo.tasks.rewarded_task import RewardedTask
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.tracking.recorder import RunRecorder
from nemo_tapo.tracking.ungraded import UngradedLog
from nemo_tapo.train import train
from nemo_tapo.types import Query
from nemo_tapo.utils import files
from nemo_tapo.utils.signals import Stop

MODEL_FOLDER = "hf"  # name of the folder of a trained model, an ordinary Hugging Face directory


@dataclass
class Session:
    """The configuration and the running parts that every stage works with."""

    cfg: RunConfig
    runtime: Runtime
    progress: Progress
    stop: Stop
    task: Task = field(init=False)
    tools: Tools = field(init=False)
    data_report: DataReport = field(init=False)
    ungraded: UngradedLog = field(init=False)

    def __post_init__(self) -> None:
        self.task = self.runtime.task(self.cfg)
        self.data_report = DataReport(self.output, self.cfg.max_bad_rows)
        self.ungraded = UngradedLog(self.output, self.progress.message)
        self.tools = Tools(
            self.runtime.generator,
            self.runtime.tokenizer,
            self.task,
            self.cfg.tapo.correct_at,
            self.ungraded,
        )

    def close(self) -> None:
        """End what the task has started, and tell what its rewards could not grade and what its judges were asked."""
        judges = self.task.judges.values() if isinstance(self.task, RewardedTask) else ()
        for sentence in (*self.ungraded.describe(), *(judge.describe() for judge in judges)):
            self.progress.message(sentence)
        self.ungraded.close()
        self.task.close()

    def with_model(self, path: Path) -> Session:
        """Return this session with another `model.path`; the running parts are shared."""
        other = copy.copy(self)
        other.cfg = self.cfg.model_copy(update={"model": self.cfg.model.model_copy(update={"path": path})})
        return other

    @property
    def output(self) -> Path:
        return self.cfg.output

    def prepare_queries(
        self, name: str, queries: Sequence[Query], max_tokens: int, most: int | None = None
    ) -> list[Query]:
        """Return the first `most` queries of the set `name` with their prompt ids.

        Queries whose prompt leaves no room for `max_tokens` are left out. data.json accounts for every row of the set.
        """
        longest = self.cfg.model.max_length - max_tokens
        usable, aside = add_prompts(queries[:most], self.runtime.tokenizer, longest)
        left_out = len(queries[most:]) if most is not None else 0
        found = self.task.provenance(name)
        for sentence in (self.data_report.add(name, found, len(usable), left_out, aside), *found.notes):
            self.progress.message(sentence)
        return usable

    def train_queries(self, max_tokens: int | None = None) -> list[Query]:
        """Return the training set with its prompt ids. Room is left for `max_tokens`, by default those of a rollout."""
        self.progress.set_phase("reading the training queries")  # parsing thousands of gold answers takes seconds
        return self.prepare_queries("train", self.task.train_queries(), max_tokens or self.cfg.rollout.max_tokens)

    @cached_property
    def benchmarks(self) -> dict[str, list[Query]]:
        """The evaluation sets by name, with prompt ids. They are read once."""
        e = self.cfg.evaluation
        return {
            name: self.prepare_queries(name, queries, e.max_tokens, e.problems)
            for name, queries in self.task.benchmarks().items()
        }

    async def run_loop(
        self,
        loop: LoopConfig,
        algorithm: Algorithm,
        queries: Callable[[int], Sequence[Query]],
        recorder: RunRecorder,
        validation: Validation | None = None,
    ) -> None:
        """Train to the end of `loop`, close `recorder`, and write the model to <loop.folder>/hf."""
        recorder.list_processes = self.list_processes
        try:
            watched = self.runtime.wrap_recorder(recorder, self.stop)
            await train(loop, algorithm, self.runtime, queries, watched, self.stop, validation)
        finally:
            recorder.close()
        await self.export(loop.folder / MODEL_FOLDER)

    def list_processes(self) -> Mapping[str, Sequence[int]]:
        """Return the ids of the run's processes on this machine, by part."""
        return {"driver": [os.getpid()], **self.runtime.processes(), "graders": list_grader_processes()}

    async def export(self, folder: Path) -> None:
        """Write the actor's model to `folder` as a Hugging Face directory, which appears only when it is complete."""
        building = folder.with_name(f"tmp-{folder.name}")
        if building.is_symlink():  # what is written belongs into the run's folder
            building.unlink()
        with remove_on_failure(building, folder):
            await self.runtime.actor.export(building)
            files.publish_folder(folder, building)
