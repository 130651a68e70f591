"""The stages of the main job, in order, each resumable: base -> cold start -> TAPO -> evaluation -> report.

A stage is done when its result exists under its final name (results appear by one rename), so a run that was
stopped or killed goes on where it was: `nemo-tapo run` with the same output folder.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

from nemo_tapo.algorithms.base import Tools
from nemo_tapo.algorithms.registry import make_algorithm
from nemo_tapo.coldstart.stage import coldstart, coldstart_only
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.data import DataReport, QueryOrder, with_prompts
from nemo_tapo.evaluation.stage import evaluate_only, evaluation
from nemo_tapo.filtering import filter_queries
from nemo_tapo.interfaces import Runtime, Task
from nemo_tapo.pretrain import corpus_rows
from nemo_tapo.supervised import MODEL, supervised
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.tracking.recorder import RunRecorder
from nemo_tapo.train import Plan, train
from nemo_tapo.types import Query
from nemo_tapo.utils import files
from nemo_tapo.utils.signals import Stop


@dataclass
class Session:
    """What every stage works with."""

    cfg: RunConfig
    runtime: Runtime
    progress: Progress
    stop: Stop
    task: Task = field(init=False)
    tools: Tools = field(init=False)
    data: DataReport = field(init=False)

    def __post_init__(self) -> None:
        self.task = self.runtime.task(self.cfg)
        self.data = DataReport(self.output, self.cfg.max_bad_rows)
        self.tools = Tools(self.runtime.generator, self.runtime.tokenizer, self.task)

    @property
    def output(self) -> Path:
        return self.cfg.output

    def usable(self, name: str, queries: Sequence[Query], max_tokens: int, most: int | None = None) -> list[Query]:
        """The first `most` queries of a set with their prompt ids; data.json accounts for every row of it."""
        longest = self.cfg.model.max_length - max_tokens
        usable, aside = with_prompts(queries[:most], self.runtime.tokenizer, longest)
        left_out = len(queries[most:]) if most is not None else 0
        found = self.task.provenance(name)
        for sentence in (self.data.add(name, found, len(usable), left_out, aside), *found.notes):
            self.progress.message(sentence)
        return usable

    def train_queries(self, max_tokens: int | None = None) -> list[Query]:
        """The training set with its prompt ids; room is left for `max_tokens`, by default those of a rollout."""
        self.progress.status("reading the training queries")  # gold answers are parsed: seconds for thousands
        return self.usable("train", self.task.train_queries(), max_tokens or self.cfg.rollout.max_tokens)

    @cached_property
    def benchmarks(self) -> dict[str, list[Query]]:
        """Each evaluation set with its prompt ids, read once."""
        e = self.cfg.evaluation
        return {
            name: self.usable(name, queries, e.max_tokens, e.problems)
            for name, queries in self.task.benchmarks().items()
        }

    async def hand_over(self) -> None:
        """The actor's weights to the engine."""
        await self.runtime.generator.update_weights(await self.runtime.actor.weights())

    async def export(self, folder: Path) -> None:
        """A Hugging Face directory under `folder`, which appears only when it is whole."""
        building = folder.with_name(f"tmp-{folder.name}")
        await self.runtime.actor.export(building)
        files.publish(folder, building)


def rl_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide the numbers of RL: a checkpoint goes on under the same ones only."""
    own = ("opsd",) if cfg.algorithm == "opsd" else ()
    return cfg.fingerprint("algorithm", "steps", "task", "model", "rollout", "tapo", "loss", "optimizer", *own)


async def reinforce(session: Session, model: Path) -> None:
    """TAPO (or GRPO) from `model`, which is also the reference policy; leaves <output>/hf."""
    cfg = session.cfg
    await session.runtime.actor.load_model(model)
    await session.runtime.actor.set_reference()
    if cfg.algorithm == "opsd" and cfg.opsd.teacher_path is not None:
        await session.runtime.actor.set_teacher(cfg.opsd.teacher_path.resolve())
    queries = QueryOrder(session.train_queries(), cfg.rollout.queries_per_step, cfg.seed)
    plan = Plan(
        folder=session.output,
        steps=cfg.steps,
        optimizer=cfg.optimizer,
        loss=cfg.loss,
        reflection_weight=cfg.tapo.weight,
        example_weight=cfg.tapo.ift_weight,
        temperature=cfg.rollout.temperature,
        teacher=cfg.opsd.teacher if cfg.algorithm == "opsd" and cfg.opsd.divergence == "sampled" else None,
        checkpoint_every=cfg.checkpoint.every,
        checkpoint_keep=cfg.checkpoint.keep,
        fingerprint=rl_fingerprint(cfg),
        engine_gap_bound=cfg.engine_gap_bound,
    )
    algorithm = make_algorithm(cfg, session.tools)
    recorder = RunRecorder(
        session.output,
        session.progress,
        cfg.algorithm.upper(),
        cfg.steps,
        session.runtime.tokenizer,
        cfg.tapo if cfg.constructs else None,
        cfg.trajectories_per_step,
    )
    try:
        watched = session.runtime.recorder(recorder, session.stop)
        await train(plan, algorithm, session.runtime, queries.queries, watched, session.stop)
    finally:
        recorder.close()
    await session.export(session.output / MODEL)


async def main_job(session: Session) -> None:
    """Cold start, evaluation before, RL, evaluation after, report; or those of them that `parts` names."""
    parts, model = session.cfg.parts, session.cfg.model.path
    if "coldstart" in parts:
        model = await coldstart(session, session.output / "coldstart")
        await session.hand_over()
    if "before" in parts:
        await evaluation(session, "before", model)
    if "train" in parts:
        await reinforce(session, model)
        model = session.output / MODEL
    if "after" in parts:
        await evaluation(session, "after", model, against="before" if "before" in parts else None)
    if "report" in parts:
        report(session.output, session.progress)


async def train_only(session: Session) -> None:
    """RL from model.path."""
    await reinforce(session, session.cfg.model.path)
    report(session.output, session.progress)


def report(folder: Path, progress: Progress) -> None:
    """Plots and page from what the folder holds."""
    from nemo_tapo.report.html import write_page

    stage = progress.stage("report", 1, "page")
    write_page(folder)
    stage.advance()


async def pretrain(session: Session) -> None:
    """A base from nothing (generated tasks): <output>/hf."""
    cfg, tokenizer = session.cfg, session.runtime.tokenizer
    await supervised(
        session,
        "pre-training",
        session.output,
        cfg.pretrain.steps,
        lambda step: corpus_rows(cfg, tokenizer, step),
        cfg.pretrain.optimizer,
        cfg.fingerprint("pretrain"),
    )


# What a stage returns is printed at the end.
STAGES: dict[str, Callable[[Session], Awaitable[str | None]]] = {
    "run": main_job,
    "pretrain": pretrain,
    "coldstart": coldstart_only,
    "train": train_only,
    "filter": filter_queries,
    "evaluate": evaluate_only,
}

# Stages as the progress display names them, with rough weights (seconds of the demo on two cores).
WEIGHTS: dict[str, Sequence[tuple[str, float]]] = {
    "filter": (("starting engines", 20), ("filtering", 300)),
    "run": (
        ("starting engines", 20),
        ("sampling from the base", 30),
        ("correcting", 2),
        ("cold start", 150),
        ("evaluating (before)", 20),
        ("TAPO", 300),
        ("evaluating (after)", 20),
        ("report", 10),
    ),
}
