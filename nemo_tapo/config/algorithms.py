"""Say what the settings know of each algorithm: its name, its sections, its teacher, and what it refuses.

A new algorithm adds one entry to `ALGORITHMS` here, and its class to algorithms/registry.py.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from nemo_tapo.config.sections import LossConfig, OpsdConfig, RolloutConfig, TapoConfig, TaskConfig


class Settings(Protocol):
    """The part of a RunConfig that an algorithm may look at."""

    @property
    def pipeline(self) -> str: ...
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
class Teacher:
    """The model that an algorithm asks what it would have said at each token of a rollout.

    >>> Teacher("opsd", "frozen", None, "sampled", "the initial policy").path_key
    'opsd.teacher_path'
    """

    section: str  # the section that holds its settings, for refusals to name
    weights: Literal["frozen", "live"]  # of the policy: the initial ones or the present ones
    path: Path | None  # another model, frozen, in the place of the policy
    divergence: Literal["jsd", "sampled"]  # sampled: one log-probability a token is enough; else all its logits
    description: str  # one sentence for --dry-run

    @property
    def path_key(self) -> str:
        """The dotted key of `path`."""
        return f"{self.section}.teacher_path"


def learn_from_no_teacher(cfg: Settings) -> Teacher | None:
    """Return None: most algorithms have no teacher."""
    return None


@dataclass(frozen=True)
class AlgorithmSettings:
    """What the settings know of an algorithm.

    >>> ALGORITHMS["tapo"].constructs, ALGORITHMS["grpo"].constructs
    (True, False)
    """

    constructs: bool = False  # it makes micro-reflective trajectories, so the section `tapo` applies
    trains_rollouts: bool = True  # rollouts are among its rows, so the KL to the reference can be measured
    loss_without_ratio: str = ""  # what its loss is called if it has no importance ratio
    sections: tuple[str, ...] = ()  # sections of its own: they decide its numbers and nobody else's
    get_teacher: Callable[[Settings], Teacher | None] = learn_from_no_teacher
    check: Callable[[Settings], None] = accept_all  # raises ValueError for settings that it refuses


def check_construction(cfg: Settings) -> None:
    """Refuse thresholds of Eq. 3 that no query can meet, and switches of TAPO that another one makes idle."""
    t, K = cfg.tapo, cfg.rollout.samples_per_query
    if t.n_pos + t.n_neg > K:
        raise ValueError(
            f"tapo.n_pos + tapo.n_neg = {t.n_pos + t.n_neg} is more than rollout.samples_per_query = {K}: "
            "no query can have that many right and wrong rollouts. Raise samples_per_query or lower one of them."
        )
    if not t.decoupled and cfg.pipeline == "deferred":
        raise ValueError(
            "tapo.decoupled = false compares constructions with the rollouts that they come from, in one group; under "
            "pipeline: deferred these are trained a step apart. Use pipeline: overlapped."
        )
    if not t.decoupled and (t.uniform_group != "zero" or t.reflection_baseline != "constructed"):
        raise ValueError(
            "tapo.decoupled = false leaves no reflection group: tapo.uniform_group and tapo.reflection_baseline "
            "would change nothing; leave them out."
        )
    if t.construction == "continue_from_prefix":
        if t.prefix_loss != "none":
            raise ValueError(
                "tapo.construct = continue_from_prefix samples from a wrong prefix, which is context and no target: "
                "set tapo.prefix_loss to none."
            )
        idle = {
            "tapo.prefix": t.prefix != "copied",
            "tapo.full_reconstruction": t.full_reconstruction,
            "tapo.prompt": t.prompt is not None,
            "tapo.min_kept_share": t.min_kept_share > 0,
            "tapo.ift_weight": t.ift_weight > 0,
            "tapo.keep_error": not t.keep_error,
        }
        if asked := [name for name, is_set in idle.items() if is_set]:
            raise ValueError(
                f"tapo.construct = continue_from_prefix asks for no synthesis: {asked[0]} would change nothing; leave "
                "it out."
            )
    elif t.continue_at != "error":
        raise ValueError("tapo.continue_at is where tapo.construct = continue_from_prefix cuts: set that, or neither.")
    if t.full_reconstruction and (t.prefix_loss != "all" or t.min_kept_share > 0 or t.prefix != "copied"):
        raise ValueError(
            "tapo.full_reconstruction keeps no prefix: tapo.prefix, tapo.prefix_loss and tapo.min_kept_share would "
            "change nothing; leave them out."
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


def check_policy_gradient(algorithm: str, rollout: RolloutConfig, loss: LossConfig) -> None:
    """Refuse variants of the policy gradient that exclude each other, or that the algorithm does not have.

    The sentences name settings without their values, which NeMo-RL's keys have others of.
    """
    own, sequence, cispo = ALGORITHMS[algorithm].loss_without_ratio, loss.ratio == "sequence", loss.surrogate == "cispo"
    if own and (sequence or cispo or loss.dual_clip is not None):
        raise ValueError(f"{own} has no ratio to bound: leave loss.ratio, loss.surrogate and loss.dual_clip out.")
    if own and rollout.dynamic_sampling is not None:
        raise ValueError(f"rollout.dynamic_sampling looks for advantages, and {own} has none: leave it out.")
    if own and rollout.overlong == "mask":
        raise ValueError(f"rollout.overlong leaves rows out of the policy gradient, and {own} is none: leave it out.")
    if sequence and cispo:
        raise ValueError("CISPO (loss.surrogate) weighs token by token, GSPO (loss.ratio) row by row: choose one.")
    if sequence and loss.token_mean:
        raise ValueError("GSPO (loss.ratio) is a mean over rows: set loss.token_mean to false.")
    if cispo and loss.dual_clip is not None:
        raise ValueError("CISPO (loss.surrogate) bounds the weight of every token already: set loss.dual_clip to null.")
    if cispo and not loss.token_mean:
        raise ValueError("CISPO (loss.surrogate) is a mean over tokens: set loss.token_mean to true.")


def check_lag(algorithm: str, rollout: RolloutConfig) -> None:
    """Refuse a lag where nothing corrects for the weights that sampled (equations/importance.py)."""
    if not rollout.lag:
        return
    if own := ALGORITHMS[algorithm].loss_without_ratio:
        raise ValueError(
            f"rollout.lag trains on rollouts of the weights before, and {own} has no ratio to correct for that: leave "
            "it out."
        )
    if rollout.top_p < 1:
        raise ValueError(
            "rollout.lag corrects by the engine's log-probabilities, which with rollout.top_p below 1 are of another "
            "distribution: set rollout.top_p to 1."
        )
    if rollout.logprobs != "always":
        raise ValueError(
            "rollout.lag corrects by the log-probabilities that the engine reports of every rollout: set "
            f"rollout.logprobs to always (it is {rollout.logprobs})."
        )


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


def get_opsd_teacher(cfg: Settings) -> Teacher:
    """Return OPSD's teacher, which is told a solution."""
    o = cfg.opsd
    who = (
        str(o.teacher_path)
        if o.teacher_path
        else {"frozen": "the initial policy", "live": "the present policy"}[o.teacher]
    )
    privileged = {"rollout": "a correct rollout of the same group", "solution": "the data's solution"}[o.privileged]
    clip = "" if o.entry_clip is None else f", each entry at most {o.entry_clip:g} nats"
    loss = "the sampled token alone" if o.divergence == "sampled" else f"divergence of beta {o.beta:g}{clip}"
    return Teacher("opsd", o.teacher, o.teacher_path, o.divergence, f"{who}, told {privileged}; {loss}")


ALGORITHMS: dict[str, AlgorithmSettings] = {
    "tapo": AlgorithmSettings(constructs=True, check=check_construction),
    "grpo": AlgorithmSettings(),
    "opsd": AlgorithmSettings(
        loss_without_ratio="OPSD's loss", sections=("opsd",), get_teacher=get_opsd_teacher, check=check_opsd
    ),
    "reflective_sft": AlgorithmSettings(
        constructs=True, trains_rollouts=False, loss_without_ratio="likelihood", check=check_reflective_sft
    ),
}


def list_own_sections(leave_out: str | None = None) -> list[str]:
    """List the sections that belong to one algorithm, except those of the algorithm `leave_out`.

    >>> list_own_sections(), list_own_sections(leave_out="opsd")
    (['opsd'], [])
    """
    kept = ALGORITHMS[leave_out].sections if leave_out is not None else ()
    return [name for each in ALGORITHMS.values() for name in each.sections if name not in kept]
