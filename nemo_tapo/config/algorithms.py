"""Say what the settings know of each algorithm: its name, its sections, and the combinations that it refuses.

A new algorithm adds one entry to `ALGORITHMS` here, and its class to algorithms/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol

from nemo_tapo.config.sections import LossConfig, OpsdConfig, RolloutConfig, TapoConfig, TaskConfig


class Settings(Protocol):
    """The sections of a RunConfig that an algorithm may look at."""

    @property
    def task(self) -> TaskConfig: ...
    @property
    def rollout(self) -> RolloutConfig: ...
    @property
    def tapo(self) -> TapoConfig: ...
    @property
    def opsd(self) -> OpsdConfig: ...
    @property
    def loss(self) -> LossConfig: ...


def accept_all(cfg: Settings) -> None:
    """Refuse nothing."""


@dataclass(frozen=True)
class AlgorithmSettings:
    """What the settings know of an algorithm.

    >>> ALGORITHMS["tapo"].constructs, ALGORITHMS["grpo"].constructs
    (True, False)
    """

    constructs: bool = False  # it makes micro-reflective trajectories, so the section `tapo` applies
    sections: tuple[str, ...] = ()  # sections of its own: they decide its numbers and nobody else's
    check: Callable[[Settings], None] = accept_all  # raises ValueError for settings that it refuses


def check_construction(cfg: Settings) -> None:
    """Refuse thresholds of Eq. 3 that no query can meet, and switches of TAPO that another one makes idle."""
    t, K = cfg.tapo, cfg.rollout.samples_per_query
    if t.n_pos + t.n_neg > K:
        raise ValueError(
            f"tapo.n_pos + tapo.n_neg = {t.n_pos + t.n_neg} is more than rollout.samples_per_query = {K}: "
            "no query can have that many right and wrong rollouts. Raise samples_per_query or lower one of them."
        )
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


def check_reflective_sft(cfg: Settings) -> None:
    """Refuse loss terms beside the likelihood."""
    idle = {"loss.kl_coef": cfg.loss.kl_coef, "tapo.ift_weight": cfg.tapo.ift_weight}
    if asked := [name for name, weight in idle.items() if weight > 0]:
        raise ValueError(
            f"algorithm: reflective_sft learns its constructions by likelihood alone; set {asked[0]} to 0."
        )
    if cfg.tapo.weight == 0:
        raise ValueError("algorithm: reflective_sft with tapo.lambda = 0 learns nothing.")
    check_construction(cfg)


def check_opsd(cfg: Settings) -> None:
    """Refuse settings of a policy gradient, and a teacher that has nothing to tell."""
    if cfg.loss.kl_coef > 0:
        raise ValueError("algorithm: opsd has no penalty on the KL to the reference; set loss.kl_coef to 0.")
    if cfg.loss.updates_per_batch > 1:
        raise ValueError(
            "algorithm: opsd has no importance ratio, so that a rollout serves one update: set "
            "loss.updates_per_batch to 1."
        )
    if cfg.opsd.privileged == "rollout" and cfg.rollout.samples_per_query == 1:
        raise ValueError(
            "opsd.privileged = rollout takes another rollout of the same query: raise rollout.samples_per_query "
            "above 1, or set opsd.privileged to solution."
        )
    if cfg.opsd.privileged == "solution" and cfg.task.name not in ("arithmetic", "custom"):
        train = cfg.task.mathematics.train
        if cfg.task.name != "mathematics" or train is None or train.solution is None:
            raise ValueError(
                "opsd.privileged = solution, but the training data names no field of solutions: set "
                "task.mathematics.train.solution, or opsd.privileged to rollout."
            )


ALGORITHMS: dict[str, AlgorithmSettings] = {
    "tapo": AlgorithmSettings(constructs=True, check=check_construction),
    "grpo": AlgorithmSettings(),
    "opsd": AlgorithmSettings(sections=("opsd",), check=check_opsd),
    "reflective_sft": AlgorithmSettings(constructs=True, check=check_reflective_sft),
}
