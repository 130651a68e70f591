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
from nemo_tapo.algorithms.sft import SFT
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.coldstart import build
from nemo_tapo.config import OptimizerConfig, RunConfig
from nemo_tapo.data import QueryOrder, check_quarantine, with_prompts
from nemo_tapo.evaluation.evaluate import evaluate, measure_synthesis
from nemo_tapo.pretrain import corpus_rows
from nemo_tapo.record import RunRecorder
from nemo_tapo.report.progress import Progress, Stage
from nemo_tapo.runtime.interface import Runtime
from nemo_tapo.stop import Stop
from nemo_tapo.tasks.generated import ArithmeticTask
from nemo_tapo.train import Plan, train
from nemo_tapo.types import Group, Query, Row

MODEL, EVALUATION, QUARANTINE = "hf", "evaluation.json", "quarantine.jsonl"


@dataclass
class Session:
    """What every stage works with."""

    cfg: RunConfig
    runtime: Runtime
    progress: Progress
    stop: Stop
    task: ArithmeticTask = field(init=False)
    tools: Tools = field(init=False)

    def __post_init__(self) -> None:
        self.task = ArithmeticTask(self.cfg.task.arithmetic, self.cfg.seed)
        self.tools = Tools(self.runtime.generator, self.runtime.tokenizer, self.task)

    @property
    def output(self) -> Path:
        return self.cfg.output

    def usable(self, queries: Sequence[Query], max_tokens: int) -> list[Query]:
        """Queries with their prompt ids; the unusable ones go to quarantine.jsonl with the reason."""
        longest = self.cfg.model.max_length - max_tokens
        usable, bad = with_prompts(queries, self.runtime.tokenizer, longest)
        if bad:
            lines = [json.dumps({"uid": q.uid, "question": q.question, "reason": why}) for q, why in bad]
            (self.output / QUARANTINE).write_text("\n".join(lines) + "\n")
            self.progress.message(f"{len(bad)} of {len(queries)} queries set aside, see {self.output / QUARANTINE}")
        check_quarantine(len(bad), len(queries), self.cfg.max_bad_rows)
        return usable

    def train_queries(self) -> list[Query]:
        return self.usable(self.task.train_queries(), self.cfg.rollout.max_tokens)

    def held_out_queries(self) -> list[Query]:
        queries = self.task.held_out_queries()[: self.cfg.evaluation.problems]
        return self.usable(queries, self.cfg.evaluation.max_tokens)

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
        await train(plan, SFT(batch), session.runtime, lambda step: (), recorder, session.stop)
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
        temperature=cfg.rollout.temperature,
        checkpoint_every=cfg.checkpoint.every,
        checkpoint_keep=cfg.checkpoint.keep,
        fingerprint=cfg.fingerprint("algorithm", "steps", "task", "rollout", "tapo", "loss", "optimizer"),
        engine_gap_bound=cfg.engine_gap_bound,
    )
    kind = TAPO if cfg.algorithm == "tapo" else GRPO
    algorithm = kind(cfg, session.tools)
    recorder = RunRecorder(
        session.output,
        session.progress,
        cfg.algorithm.upper(),
        cfg.steps,
        session.runtime.tokenizer,
        cfg.tapo if cfg.algorithm == "tapo" else None,
        cfg.trajectories_per_step,
    )
    try:
        await train(plan, algorithm, session.runtime, queries.queries, recorder, session.stop)
    finally:
        recorder.close()
    await session.export(session.output / MODEL)


async def evaluation(session: Session, name: str) -> dict[str, Any]:
    """Evaluates the weights that the engine holds; stored in evaluation.json under `name`, done once."""
    path = session.output / EVALUATION
    stored: dict[str, Any] = json.loads(path.read_text()) if path.is_file() else {}
    if name in stored:
        return dict(stored[name])
    cfg = session.cfg
    queries = session.held_out_queries()
    total = len(queries) * cfg.evaluation.samples * cfg.evaluation.runs
    stage = session.progress.stage(f"evaluating ({name})", total, "samples")
    result = await evaluate(cfg, session.tools, queries, stage.advance)
    if cfg.evaluation.synthesis_queries:
        session.progress.status("measuring synthesis")
        chosen = queries[: cfg.evaluation.synthesis_queries]
        result["synthesis"] = await measure_synthesis(cfg, session.tools, chosen)
    stored[name] = result
    temporary = path.with_suffix(".tmp")
    temporary.write_text(json.dumps(stored, indent=1) + "\n")
    temporary.replace(path)
    session.stop.check(f"{path} written")
    return result


async def main_job(session: Session) -> None:
    """Cold start, evaluation before, TAPO, evaluation after, report."""
    cold = await coldstart(session, session.output / "coldstart")
    await session.hand_over()
    await evaluation(session, "before")
    await reinforce(session, cold)
    await evaluation(session, "after")
    report(session.output, session.progress)


async def train_only(session: Session) -> None:
    """RL from model.path."""
    await reinforce(session, session.cfg.model.path)
    report(session.output, session.progress)


async def evaluate_only(session: Session) -> None:
    """Evaluates model.path."""
    await evaluation(session, session.cfg.model.path.name)


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


STAGES: dict[str, Callable[[Session], Awaitable[None]]] = {
    "run": main_job,
    "pretrain": pretrain,
    "coldstart": coldstart_only,
    "train": train_only,
    "evaluate": evaluate_only,
}

# Stages as the progress display names them, with rough weights (seconds of the demo on two cores).
WEIGHTS: dict[str, Sequence[tuple[str, float]]] = {
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
