"""The stages of the main job, in order, each resumable: base -> cold start -> TAPO -> evaluation -> report.

A stage is done when its result exists under its final name (results appear by one rename), so a run that was
stopped or killed goes on where it was: `nemo-tapo run` with the same output folder.
"""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from nemo_tapo import checkpoint
from nemo_tapo.algorithms.base import Tools, concurrently
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.make import make_algorithm
from nemo_tapo.algorithms.sft import SFT
from nemo_tapo.coldstart import build
from nemo_tapo.config import RunConfig
from nemo_tapo.data import DataReport, QueryOrder, with_prompts
from nemo_tapo.evaluation.stage import evaluate_only, evaluation
from nemo_tapo.filtering import filter_queries
from nemo_tapo.pretrain import corpus_rows
from nemo_tapo.record import RunRecorder
from nemo_tapo.report.progress import Progress, Stage
from nemo_tapo.runtime.interface import Runtime
from nemo_tapo.sections import OptimizerConfig
from nemo_tapo.stop import Stop
from nemo_tapo.tasks.interface import Task
from nemo_tapo.train import Plan, train
from nemo_tapo.types import Group, Query, Row

MODEL = "hf"


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

    def benchmarks(self) -> dict[str, list[Query]]:
        """Each evaluation set with its prompt ids."""
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
        checkpoint.publish(folder, building)


async def supervised(
    session: Session,
    name: str,
    folder: Path,
    steps: int,
    batch: Callable[[int], Sequence[Row]],
    optimizer: OptimizerConfig,
    fingerprint: dict[str, Any],
) -> None:
    """Maximum likelihood on `batch(step)` through the same loop; leaves <folder>/hf."""
    cfg = session.cfg
    plan = Plan(
        folder=folder,
        steps=steps,
        optimizer=optimizer,
        loss=cfg.loss.model_copy(update={"token_mean": True, "updates_per_batch": 1, "kl_coef": 0.0}),
        sample=False,
        checkpoint_every=max(cfg.checkpoint.every, 50),
        checkpoint_keep=1,
        fingerprint=fingerprint,
    )
    recorder = RunRecorder(folder, session.progress, name, steps, session.runtime.tokenizer)
    try:
        watched = session.runtime.recorder(recorder, session.stop)
        await train(plan, SFT(batch), session.runtime, lambda step: (), watched, session.stop)
    finally:
        recorder.close()
    await session.export(folder / MODEL)


async def coldstart(session: Session, folder: Path) -> Path:
    """Section 3.2: returns the Hugging Face directory of the cold-start model; the actor holds it."""
    result = folder / MODEL
    if result.is_dir():
        await session.runtime.actor.load_model(result)
        return result
    folder.mkdir(parents=True, exist_ok=True)
    data = folder / "data.jsonl"
    if not data.is_file():
        await build_coldstart_data(session, data)
    settings = session.cfg.coldstart
    epochs = build.Epochs(build.read(data), settings.examples_per_step, settings.epochs, session.cfg.seed)
    await supervised(
        session,
        "cold start",
        folder,
        epochs.steps,
        epochs.batch,
        settings.optimizer,
        session.cfg.fingerprint("coldstart", "task"),
    )
    return result


async def build_coldstart_data(session: Session, path: Path) -> None:
    """Samples from the base, corrects, writes data.jsonl and its statistics."""
    cfg, settings = session.cfg, session.cfg.coldstart
    queries = session.train_queries()[: settings.queries]
    stage = session.progress.stage("sampling from the base", len(queries), "queries")
    groups = await sample_groups(session, queries, settings.samples_per_query, stage)
    pairs = [p for g in groups for p in build.pairs_of(g, settings.corrections_per_query, cfg.seed)]
    rejected: Counter[str] = Counter()
    corrected = await build.oracle_corrections(pairs, session.tools, cfg.seed, rejected)
    built = build.examples(groups, corrected, cfg, session.tools)
    rollouts = [r for g in groups for r in g.rollouts]
    statistics = {
        "queries": len(groups),
        "base_accuracy": sum(r.reward for r in rollouts) / len(rollouts),
        "pairs": len(pairs),
        "corrected": len(corrected),
        **{f"rejected/{reason}": count for reason, count in sorted(rejected.items())},
        **{f"examples/{origin}": n for origin, n in sorted(Counter(e.origin for e in built).items())},
    }
    path.with_name("statistics.json").write_text(json.dumps(statistics, indent=1) + "\n")
    session.progress.message("cold-start data: " + ", ".join(f"{k} {v:.3g}" for k, v in statistics.items()))
    build.write(path, built)


async def sample_groups(session: Session, queries: Sequence[Query], samples: int, stage: Stage) -> list[Group]:
    """Graded groups of the present policy, in slices so that a request to stop is heard."""
    rollout = session.cfg.rollout.model_copy(update={"samples_per_query": samples, "logprobs": "never"})
    algorithm = GRPO(session.cfg.model_copy(update={"rollout": rollout}), session.tools)

    async def one(query: Query) -> Group:
        group = await algorithm.rollouts(query, step=-1)
        stage.advance(1)
        return group

    groups: list[Group] = []
    for begin in range(0, len(queries), 128):
        session.stop.check("sampling starts again on resume")
        groups += await concurrently(one(query) for query in queries[begin : begin + 128])
    return groups


def rl_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide the numbers of RL: a checkpoint goes on under the same ones only."""
    return cfg.fingerprint("algorithm", "steps", "task", "rollout", "tapo", "loss", "optimizer")


async def reinforce(session: Session, model: Path) -> None:
    """TAPO (or GRPO) from `model`, which is also the reference policy; leaves <output>/hf."""
    cfg = session.cfg
    await session.runtime.actor.load_model(model)
    await session.runtime.actor.set_reference()
    queries = QueryOrder(session.train_queries(), cfg.rollout.queries_per_step, cfg.seed)
    plan = Plan(
        folder=session.output,
        steps=cfg.steps,
        optimizer=cfg.optimizer,
        loss=cfg.loss,
        reflection_weight=cfg.tapo.weight,
        example_weight=cfg.tapo.ift_weight,
        temperature=cfg.rollout.temperature,
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


async def coldstart_only(session: Session) -> None:
    """The cold start alone: <output>/hf."""
    await coldstart(session, session.output)


def report(folder: Path, progress: Progress) -> None:
    """Plots and page from what the folder holds."""
    from nemo_tapo.report.html import write_page
    from nemo_tapo.report.plots import construction_figure, figure3
    from nemo_tapo.report.records import read_metrics

    stage = progress.stage("report", 3, "files")
    metrics = read_metrics(folder).rows
    figure3({folder.name: metrics}, folder / "figure3.png")
    stage.advance()
    construction_figure(metrics, folder / "construction.png")
    stage.advance()
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
        ("cold start", 150),
        ("evaluating (before)", 20),
        ("TAPO", 300),
        ("evaluating (after)", 20),
        ("report", 10),
    ),
}
