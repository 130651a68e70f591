"""Every setting of a run, typed. An unknown key is an error that names the nearest known one.

A config file is YAML; it may inherit from others (`defaults: [base, _self_]`, Hydra's grammar) and takes
Hydra overrides from the command line. This module imports no Hydra: `load.py` composes, this validates.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, model_validator

from nemo_tapo.config.sections import (
    CheckpointConfig,
    ColdStartConfig,
    EvaluationConfig,
    FilterConfig,
    JudgeConfig,
    LocalConfig,
    LossConfig,
    ModelConfig,
    OpsdConfig,
    OptimizerConfig,
    PretrainConfig,
    RolloutConfig,
    Section,
    TapoConfig,
    TaskConfig,
)

Part = Literal["coldstart", "before", "train", "after", "report"]


class RunConfig(Section):
    """One run. The resolved result is printed by --dry-run and stored beside the run's output."""

    output: Path = Field(Path("runs/run"), description="folder of everything the run writes")
    seed: int = Field(0, ge=0)
    runtime: Literal["local", "scripted", "nemo_rl"] = Field(
        "local", description="nemo_rl is not set but follows from a config file with NeMo-RL's sections"
    )
    algorithm: Literal["tapo", "grpo", "opsd", "reflective_sft"] = Field(
        "tapo", description="reflective_sft: maximum likelihood on TAPO's correct constructions (Table 3)"
    )
    parts: tuple[Part, ...] = Field(
        ("coldstart", "before", "train", "after", "report"),
        description="what `nemo-tapo run` does, in this order; without coldstart it starts from model.path",
    )
    pipeline: Literal["overlapped", "barrier"] = Field(
        "overlapped", description="synthesise a query as soon as its own rollouts are graded, or after all"
    )
    steps: int = Field(100, gt=0, description="updates")
    engine_gap_bound: float = Field(
        0.01, gt=0, description="first step: most nats a token that engine and actor may differ by, on average"
    )
    trajectories_per_step: int | None = Field(64, description="records kept of a step for people to read")
    max_bad_rows: float = Field(0.01, ge=0, le=1, description="share of malformed data rows that stops the run")
    task: TaskConfig = TaskConfig()
    model: ModelConfig = ModelConfig()
    rollout: RolloutConfig = RolloutConfig()
    tapo: TapoConfig = TapoConfig()
    opsd: OpsdConfig = OpsdConfig()
    loss: LossConfig = LossConfig()
    optimizer: OptimizerConfig = OptimizerConfig()
    pretrain: PretrainConfig = PretrainConfig()
    coldstart: ColdStartConfig = ColdStartConfig()
    evaluation: EvaluationConfig = EvaluationConfig()
    filter: FilterConfig = FilterConfig()
    judge: JudgeConfig = JudgeConfig()
    local: LocalConfig = LocalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        K, t = self.rollout.samples_per_query, self.tapo
        if self.constructs and t.n_pos + t.n_neg > K:
            raise ValueError(
                f"tapo.n_pos + tapo.n_neg = {t.n_pos + t.n_neg} is more than rollout.samples_per_query = {K}: "
                "no query can have that many right and wrong rollouts. Raise samples_per_query or lower one of them."
            )
        if t.w_min > t.w_max:
            raise ValueError(f"tapo.w_min = {t.w_min} is above tapo.w_max = {t.w_max}.")
        if self.task.arithmetic.min_operations > self.task.arithmetic.max_operations:
            raise ValueError("task.arithmetic.min_operations is above task.arithmetic.max_operations.")
        if self.task.name == "nemo_rl" and self.runtime != "nemo_rl":
            raise ValueError("task.name = nemo_rl needs NeMo-RL's runtime; choose arithmetic or mathematics.")
        if self.algorithm == "opsd":
            self._opsd_consistent()
        if self.algorithm == "reflective_sft":
            self._reflective_sft_consistent()
        if self.constructs:
            self._switches_consistent()
        if self.filter.min_accuracy > self.filter.max_accuracy:
            raise ValueError("filter.min_accuracy is above filter.max_accuracy: nothing could be kept.")
        updates, queries = self.loss.updates_per_batch, self.rollout.queries_per_step
        if updates > queries:
            raise ValueError(
                f"loss.updates_per_batch = {updates} is more than rollout.queries_per_step = {queries}: an update "
                "takes whole queries."
            )
        return self

    def _switches_consistent(self) -> None:
        """Of TAPO's switches: none that another one makes idle."""
        t = self.tapo
        if not t.decoupled and (t.uniform_group != "zero" or t.reflection_baseline != "constructed"):
            raise ValueError(
                "tapo.decoupled = false leaves no reflection group: tapo.uniform_group and tapo.reflection_baseline "
                "would change nothing; leave them out."
            )
        if t.full_reconstruction and (t.prefix_loss != "all" or t.min_kept_share > 0):
            raise ValueError(
                "tapo.full_reconstruction keeps no prefix: tapo.prefix_loss and tapo.min_kept_share would change "
                "nothing; leave them out."
            )

    def _reflective_sft_consistent(self) -> None:
        t = self.tapo
        idle = {"loss.kl_coef": self.loss.kl_coef, "tapo.ift_weight": t.ift_weight}
        if asked := [name for name, weight in idle.items() if weight > 0]:
            raise ValueError(
                f"algorithm: reflective_sft learns its constructions by likelihood alone; set {asked[0]} to 0."
            )
        if t.weight == 0:
            raise ValueError("algorithm: reflective_sft with tapo.lambda = 0 learns nothing.")

    def _opsd_consistent(self) -> None:
        if self.loss.kl_coef > 0:
            raise ValueError("algorithm: opsd has no penalty on the KL to the reference; set loss.kl_coef to 0.")
        if self.loss.updates_per_batch > 1:
            raise ValueError(
                "algorithm: opsd has no importance ratio, so that a rollout serves one update: set "
                "loss.updates_per_batch to 1."
            )
        if self.opsd.privileged == "rollout" and self.rollout.samples_per_query == 1:
            raise ValueError(
                "opsd.privileged = rollout takes another rollout of the same query: raise rollout.samples_per_query "
                "above 1, or set opsd.privileged to solution."
            )
        if self.opsd.privileged == "solution" and self.task.name != "arithmetic":
            train = self.task.mathematics.train
            if self.task.name != "mathematics" or train is None or train.solution is None:
                raise ValueError(
                    "opsd.privileged = solution, but the training data names no field of solutions: set "
                    "task.mathematics.train.solution, or opsd.privileged to rollout."
                )

    @property
    def constructs(self) -> bool:
        """Whether the algorithm makes micro-reflective trajectories."""
        return self.algorithm in ("tapo", "reflective_sft")

    @property
    def synthesis_queries(self) -> int:
        """evaluation.synthesis_queries, resolved."""
        asked = self.evaluation.synthesis_queries
        if asked is not None:
            return asked
        return 64 if self.constructs and self.task.name == "arithmetic" else 0

    def fingerprint(self, *sections: str) -> dict[str, Any]:
        """The settings that decide the numbers of a stage, flat: a checkpoint is resumed only with the same ones.

        Left out are places (output, model.path), what only decides speed (`local`, `pipeline`) and bookkeeping.
        """
        chosen = {"seed": self.seed, **{name: getattr(self, name) for name in sections}}
        return {k: v for k, v in flatten(chosen).items() if k not in ("model.path", "rollout.logprobs")}


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """A plain mapping (from YAML and overrides) to a RunConfig.

    Raises ValueError with one sentence a fault: the key's full path, what was wrong, the nearest known key.
    """
    try:
        return RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Mapping[str, Any]) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        return unknown_key(path)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":  # of a whole section: the sentence says it all
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {error['input']!r})"


def flatten(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested sections as {dotted path: JSON value}."""
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", by_alias=True)
        if isinstance(value, Mapping):
            flat |= flatten(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def unknown_key(path: str) -> str:
    """One sentence for a key that no section has, with the nearest one that exists."""
    known = known_keys(RunConfig, path)
    leaf = [k for k in known if k.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    return f"unknown key '{path}'; did you mean '{difflib.get_close_matches(path, leaf or known, n=1, cutoff=0.0)[0]}'?"


def known_keys(section: type[BaseModel], asked: str = "", prefix: str = "") -> list[str]:
    """Every settable key below `section`, as dotted paths.

    Where names are the user's own (`benchmarks.NAME.path`, `extra_body.NAME`), the one that `asked` goes through
    stands for all of them, or else NAME.
    """
    keys: list[str] = []
    for name, info in section.model_fields.items():
        path = f"{prefix}{info.alias or name}"
        keys.append(path)
        inner = [t for t in (info.annotation, *get_args(info.annotation)) if isinstance(t, type)]
        model = next((t for t in inner if issubclass(t, BaseModel)), None)
        if get_origin(info.annotation) is dict:
            through = asked.startswith(path + ".")
            path += "." + (asked.removeprefix(path + ".").split(".")[0] if through else "NAME")
            keys.append(asked if through and model is None else path)
        if model is not None:
            keys += known_keys(model, asked, path + ".")
    return keys


def as_yaml(cfg: RunConfig) -> str:
    """The configuration as YAML that `load` reads back."""
    return yaml.safe_dump(cfg.model_dump(mode="json", by_alias=True), sort_keys=False)


def rl_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """The settings that decide the numbers of RL: a checkpoint goes on under the same ones only."""
    own = ("opsd",) if cfg.algorithm == "opsd" else ()
    return cfg.fingerprint("algorithm", "steps", "task", "model", "rollout", "tapo", "loss", "optimizer", *own)
