"""Compare `nemo-tapo plan` with the steps that NeMo-RL publishes: the table of docs/cluster.md."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.planning.cluster_setup import Assumptions, ClusterSetup
from nemo_tapo.planning.model_shape import KNOWN_SHAPES
from nemo_tapo.planning.step_time import StepTime, estimate_step

DATA = Path(__file__).parents[1] / "docs" / "evidence" / "nemo_rl_steps.yaml"
ENGINE_MEMORY = {True: 0.6, False: 0.8}  # gpu_memory_utilization of the recipes, colocated or not


@dataclass(frozen=True)
class PublishedStep:
    """One row of NeMo-RL's page with the settings of its recipe."""

    release: str
    gpu: str
    model: str
    off_policy: int  # steps
    nodes: int
    engine_nodes: int  # 0: the policy's
    engine_tp: int
    tp: int
    cp: int
    ep: int
    pp: int
    mean: float  # tokens of a response
    seconds: float  # published
    precision: str = "bf16"

    def make_setup(self, model: dict[str, Any], gpus_per_node: int) -> ClusterSetup:
        """Return the settings as the plan wants them; `model` has those of all rows of the model."""
        colocated = self.engine_nodes == 0
        rollouts = model["queries"] * model["samples"]
        return ClusterSetup(
            nodes=self.nodes, gpus_per_node=gpus_per_node, train_gpus=(self.nodes - self.engine_nodes) * gpus_per_node,
            engine_gpus=(self.engine_nodes or self.nodes) * gpus_per_node, megatron=True, tp=self.tp, pp=self.pp,
            cp=self.cp, ep=self.ep, etp=1, sequence_parallel=self.tp > 1,
            recompute=frozenset({"full"} if model["recompute"] else ()), micro_batch_tokens=model["micro_batch"],
            logit_chunk=1024, fp32_logits=False, fp32_gradients=False, distributed_optimizer=True, precision_aware=True,
            offloaded_optimizer=0.0, colocated=colocated, engine_tp=self.engine_tp, engine_pp=1,
            engine_memory=ENGINE_MEMORY[colocated], reference=True, queries=model["queries"], samples=model["samples"],
            most_constructed=0, deferred=False, update_rows=rollouts // model["updates"], updates=model["updates"],
            max_response=model["longest"], max_synthesis=model["longest"], max_row=model["longest"],
            max_model_len=model["longest"], steps=1, save_every=1, kept=None, saves_optimizer=True, lag=self.off_policy,
            scores_old=True, score_batch_tokens=model["scored"],
            engine_bytes=1 if self.precision == "fp8" else 2, fp8_training=self.precision == "fp8",
        )  # fmt: skip


@dataclass(frozen=True)
class Comparison:
    """A published step and what the plan says of it."""

    step: PublishedStep
    gpus: int
    predicted: StepTime

    @property
    def ratio(self) -> float:
        """Predicted seconds over published ones."""
        return self.predicted.total / self.step.seconds


def read_data() -> dict[str, Any]:
    """Return the content of the file with the published steps."""
    return dict(yaml.safe_load(DATA.read_text(encoding="utf-8")))


def compare_steps(**assumed: Any) -> Iterator[Comparison]:
    """Yield every published step with the plan's estimate, under the plan's defaults but for mean lengths."""
    data = read_data()
    for row in data["rows"]:
        step, model = PublishedStep(*row), data["models"][row[2]]
        setup = step.make_setup(model, data["gpus_per_node"][step.gpu])
        assumptions = Assumptions.model_validate(
            {"gpu": step.gpu, "prompt_tokens": data["prompt_tokens"], "response_share": step.mean / model["longest"]}
            | assumed
        )
        estimate = estimate_step(KNOWN_SHAPES[step.model], setup, assumptions)
        yield Comparison(step, setup.nodes * setup.gpus_per_node, estimate)


HEAD = """\
| model | GPUs | steps off policy | mean response | published, s | plan, s | ratio | release |
| --- | --- | --- | --- | --- | --- | --- | --- |
"""


def make_table() -> str:
    """Return the table of docs/cluster.md, in Markdown."""
    rows = []
    for compared in compare_steps():
        step, ratio = compared.step, f"{compared.ratio:.2f}"
        if not 1 / 1.5 < compared.ratio < 1.5:
            ratio = f"**{ratio}**"
        precision = " in FP8" if step.precision == "fp8" else ""
        cells = [
            step.model + precision,
            f"{compared.gpus} {step.gpu}",
            str(step.off_policy),
            f"{step.mean:,}",
            f"{step.seconds:g}",
            f"{compared.predicted.total:.0f}",
            ratio,
            step.release,
        ]
        rows.append(f"| {' | '.join(cells)} |\n")
    return HEAD + "".join(rows)
