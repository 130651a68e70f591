"""Define and validate every setting of a run. An unknown key is an error that names the nearest known one.

A config file is YAML; it may inherit from others (`defaults: [base, _self_]`, Hydra's grammar) and takes
Hydra overrides from the command line. This module imports no Hydra: load.py composes, this file validates.
"""

from __future__ import annotations

import difflib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

import yaml
from pydantic import BaseModel, Field, ValidationError, field_validator, model_validator

from nemo_tapo.config.algorithms import ALGORITHMS, Teacher, check_lag, check_policy_gradient
from nemo_tapo.config.sections import (
    CheckpointConfig,
    ColdStartConfig,
    DiagnoseConfig,
    EvaluationConfig,
    FilterConfig,
    JudgeConfig,
    LocalConfig,
    LoggerConfig,
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
from nemo_tapo.utils.user_code import hash_code

# settings that decide no number at these values, so that a fingerprint need not have them
_OFF: dict[str, Any] = {
    "loss.dual_clip": None,
    "loss.ratio": "token",
    "loss.surrogate": "clipped",
    "rollout.overlong": "keep",
    "tapo.prefix": "copied",
    "tapo.construct": "synthesis",
    "tapo.continue_at": "error",
    "rollout.dynamic_sampling": None,
    "rollout.lag": 0,
}
# how a judge is reached, where its answers are kept, how many processes grade: these may change under a run
_ACCESS = re.compile(
    r"\.judge\.(cache|endpoint\.(url|key_env|concurrency|timeout|attempts|pause))$|^task\.grading\.workers$"
)

Part = Literal["coldstart", "before", "train", "after", "report"]


class RunConfig(Section):
    """One run. The resolved result is printed by --dry-run and stored beside the run's output."""

    output: Path = Field(Path("runs/run"), description="folder of everything the run writes")
    seed: int = Field(0, ge=0, lt=2**63)
    runtime: Literal["local", "scripted", "nemo_rl"] = Field(
        "local", description="nemo_rl is not set but follows from a config file with NeMo-RL's sections"
    )
    algorithm: str = Field(
        "tapo", description="reflective_sft: maximum likelihood on TAPO's correct constructions (Table 3)"
    )
    parts: tuple[Part, ...] = Field(
        ("coldstart", "before", "train", "after", "report"),
        description="what `nemo-tapo run` does, in this order; without coldstart it starts from model.path",
    )
    pipeline: Literal["overlapped", "barrier", "deferred"] = Field(
        "overlapped",
        description="when a query's synthesis begins: once its own rollouts are graded, once all are, or beside the "
        "rollouts of the next step",
    )
    steps: int = Field(100, gt=0, description="updates")
    engine_gap_bound: float = Field(
        0.01, gt=0, description="first step: most nats a token that engine and actor may differ by, on average"
    )
    trajectories_per_step: int | None = Field(64, ge=0, description="records kept of a step for people to read")
    rollouts_gib: float = Field(
        4.0,
        ge=0,
        description="every rollout is kept, compressed, in <output>/rollouts: at most so many GiB, the oldest are "
        "deleted first; 0 keeps none",
    )
    record_groups: bool = Field(
        True,
        description="write groups.jsonl: rewards, lengths and advantages of every rollout and construction, without "
        "text, from which `nemo-tapo replay` computes a step again",
    )
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
    diagnose: DiagnoseConfig = DiagnoseConfig()
    judge: JudgeConfig = JudgeConfig()
    logger: LoggerConfig = LoggerConfig()
    local: LocalConfig = LocalConfig()
    checkpoint: CheckpointConfig = CheckpointConfig()  # the last one: a config.yaml without it was cut short

    @field_validator("algorithm")
    @classmethod
    def _known_algorithm(cls, name: str) -> str:
        if name not in ALGORITHMS:
            *others, last = map(repr, ALGORITHMS)
            raise ValueError(f"Input should be {', '.join(others)} or {last} (got {name!r})")
        return name

    @model_validator(mode="after")
    def _consistent(self) -> RunConfig:
        t = self.tapo
        if t.w_min > t.w_max:
            raise ValueError(f"tapo.w_min = {t.w_min} is above tapo.w_max = {t.w_max}.")
        if self.task.arithmetic.min_operations > self.task.arithmetic.max_operations:
            raise ValueError("task.arithmetic.min_operations is above task.arithmetic.max_operations.")
        if self.task.name == "nemo_rl" and self.runtime != "nemo_rl":
            raise ValueError("task.name = nemo_rl needs NeMo-RL's runtime; choose arithmetic, mathematics or custom.")
        if self.task.name == "reasoning_gym" and t.correct_at is None:
            raise ValueError(
                "task.name = reasoning_gym: some data sets reward a wrong answer a little, and any reward above 0 "
                "would count as correct: set tapo.correct_at, to 1 for exactly right answers alone."
            )
        ALGORITHMS[self.algorithm].check(self)
        check_policy_gradient(self.algorithm, self.rollout, self.loss)
        check_lag(self.algorithm, self.rollout)
        if self.checkpoint.keep_best and self.evaluation.every is None:
            raise ValueError("checkpoint.keep_best needs validations to be the best of: set evaluation.every.")
        if self.filter.min_accuracy > self.filter.max_accuracy:
            raise ValueError("filter.min_accuracy is above filter.max_accuracy: nothing could be kept.")
        updates, queries = self.loss.updates_per_batch, self.rollout.queries_per_step
        if updates > queries:
            raise ValueError(
                f"loss.updates_per_batch = {updates} is more than rollout.queries_per_step = {queries}: an update "
                "takes whole queries."
            )
        return self

    @property
    def constructs(self) -> bool:
        """True if the algorithm makes micro-reflective trajectories."""
        return ALGORITHMS[self.algorithm].constructs

    @property
    def deferred(self) -> bool:
        """True if constructions are made and trained one step after their rollouts, which decides the numbers."""
        return self.constructs and self.pipeline == "deferred"

    @property
    def prefilled(self) -> bool:
        """True if constructions begin with a prefix that is given to the policy, so that requests end at a text."""
        return self.constructs and self.tapo.prefix == "prefilled"

    @property
    def trains_rollouts(self) -> bool:
        """True if the algorithm's rows include rollouts, on which the KL to the reference is measured."""
        return ALGORITHMS[self.algorithm].trains_rollouts

    @property
    def teacher(self) -> Teacher | None:
        """The algorithm's teacher; None if it has none."""
        return ALGORITHMS[self.algorithm].get_teacher(self)

    @property
    def synthesis_queries(self) -> int:
        """evaluation.synthesis_queries, resolved."""
        asked = self.evaluation.synthesis_queries
        if asked is not None:
            return asked
        return 64 if self.constructs and self.task.name in ("arithmetic", "countdown") else 0

    @property
    def grading_identity(self) -> dict[str, Any]:
        """What decides the grade of a response beside the data set, flat; empty where nothing is set.

        Graded samples on disk go on only under the same one.
        """
        threshold = {} if self.tapo.correct_at is None else {"tapo.correct_at": self.tapo.correct_at}
        if not self.task.targets and not self.task.all_rewards:
            return threshold
        own = {name: getattr(self.task, name) for name in ("target", "arguments", "reward", "rewards", "grading")}
        decisive = {k: v for k, v in flatten_settings({"task": own}).items() if not _ACCESS.search(k)}
        return threshold | decisive | self._hash_user_code()

    def _hash_user_code(self) -> dict[str, str]:
        """Return a digest of each file with a function or class of the user. Raises ValueError for a missing one."""
        return {f"the code of {target}": hash_code(target, key) for key, target in self.task.targets.items()}

    def fingerprint(self, *sections: str) -> dict[str, Any]:
        """Return the settings that decide the numbers of a stage, flat: a checkpoint resumes only with the same ones.

        Left out are paths (output, model.path), what only decides speed (`local`) and bookkeeping. `pipeline` decides
        speed alone unless it is deferred, which `rl_fingerprint` adds.
        """
        chosen = {"seed": self.seed, **{name: getattr(self, name) for name in sections}}
        flat = {k: v for k, v in flatten_settings(chosen).items() if k not in ("model.path", "rollout.logprobs")}
        flat = {k: v for k, v in flat.items() if k not in _OFF or v != _OFF[k]}
        if "task" not in sections:
            return flat
        named = ("reasoning_gym", "countdown")
        idle: tuple[str, ...] = tuple(f"task.{name}." for name in named if name != self.task.name)
        idle += () if self.task.grades_in_processes else ("task.grading.",)
        kept = {k: v for k, v in flat.items() if not k.startswith(idle) and not _ACCESS.search(k)}
        return kept | self._hash_user_code()


def validate(raw: Mapping[str, Any]) -> RunConfig:
    """Make a RunConfig of a plain mapping (from YAML and overrides).

    Raises ValueError with one sentence a fault: the key's full path, what is wrong, the nearest known key.

    >>> validate({"steps": 5}).steps
    5
    >>> validate({"step": 5})
    Traceback (most recent call last):
    ValueError: unknown key 'step'; did you mean 'steps'?
    """
    try:
        return RunConfig.model_validate(dict(raw))
    except ValidationError as error:
        raise ValueError("\n".join(_sentence(e) for e in error.errors())) from None


def _sentence(error: Mapping[str, Any]) -> str:
    path = ".".join(str(p) for p in error["loc"])
    if error["type"] == "extra_forbidden":
        return describe_unknown_key(path)
    message = str(error["msg"]).removeprefix("Value error, ")
    if error["type"] == "value_error":  # of a whole section: the sentence says it all
        return f"{path}: {message}" if path else message
    return f"{path}: {message} (got {error['input']!r})"


def flatten_settings(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    """Flatten nested sections to {dotted path: JSON value}.

    >>> flatten_settings({"loss": {"clip": {"low": 0.2}}})
    {'loss.clip.low': 0.2}
    """
    flat: dict[str, Any] = {}
    for name, value in values.items():
        if isinstance(value, BaseModel):
            value = value.model_dump(mode="json", by_alias=True)
        if isinstance(value, Mapping):
            flat |= flatten_settings(value, f"{prefix}{name}.")
        else:
            flat[prefix + name] = value
    return flat


def describe_unknown_key(path: str) -> str:
    """Return one sentence for a key that no section has, with the nearest one that exists."""
    known = list_known_keys(RunConfig, path)
    leaf = [k for k in known if k.rsplit(".", 1)[-1] == path.rsplit(".", 1)[-1]]
    return f"unknown key '{path}'; did you mean '{difflib.get_close_matches(path, leaf or known, n=1, cutoff=0.0)[0]}'?"


def list_known_keys(section: type[BaseModel], asked: str = "", prefix: str = "") -> list[str]:
    """List every settable key below `section`, as dotted paths.

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
            keys += list_known_keys(model, asked, path + ".")
    return keys


def to_yaml(cfg: RunConfig) -> str:
    """Return the configuration as YAML that `load_config` reads back."""
    return yaml.safe_dump(cfg.model_dump(mode="json", by_alias=True), sort_keys=False)


def rl_fingerprint(cfg: RunConfig) -> dict[str, Any]:
    """Return the settings that decide the numbers of RL: a checkpoint resumes only under the same ones."""
    own = ALGORITHMS[cfg.algorithm].sections
    decisive = cfg.fingerprint("algorithm", "steps", "task", "model", "rollout", "tapo", "loss", "optimizer", *own)
    return decisive | ({"pipeline": "deferred"} if cfg.deferred else {})
