"""From NeMo-RL's `loss_fn` settings to a LogitLoss, and its way to the workers and back. Runs in the driver."""

from __future__ import annotations

import importlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from nemo_tapo.equations.importance import ImportanceRules
from nemo_tapo.equations.surrogate import KLRules
from nemo_tapo.losses.base import Loss, TokenLoss
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss, from_numbers

# Settings that ask for another loss than the paper's, with the value at which they ask for nothing.
OTHER_LOSSES: Mapping[str, tuple[Any, str]] = {
    "disable_ppo_ratio": (False, "REINFORCE without a ratio"),
    "sequence_level_importance_ratios": (False, "GSPO's ratio of whole sequences"),
    "ratio_clip_c": (None, "dual clipping"),
    "use_cispo": (False, "CISPO"),
    "use_kl_in_reward": (False, "a KL penalty in the reward"),
    "use_on_policy_kl_approximation": (False, "a KL reweighted from the engine's probabilities"),
    "positive_example_nll_weight": (0.0, "VAPO's likelihood of right answers"),
}
TRUNCATIONS = ("tis", "icepop", "seq-mask-tis")

# What a loss is made of; workers need nothing else of this package (see ship_by_value). A package stands for all of it.
TRAVELLING = (
    "nemo_tapo.types",
    "nemo_tapo.metrics",
    "nemo_tapo.equations",
    "nemo_tapo.losses",
    "nemo_tapo.runtime.nemo_rl.logit_loss",
)
# What NeMo-RL itself puts beside every micro-batch's metrics.
WORKERS_OWN = ("lr", "wd", "global_valid_seqs", "global_valid_toks")


@dataclass(frozen=True)
class LossSettings:
    """What NeMo-RL's `loss_fn` section says beyond our LossConfig (clip, KL weight, token mean)."""

    kl: KLRules
    importance: ImportanceRules | None


def read_settings(loss_fn: Mapping[str, Any]) -> LossSettings:
    """Raises ValueError for settings that this loss does not have, one sentence a setting."""
    faults = [
        f"loss_fn.{name} = {loss_fn[name]}: TAPO's loss has no {meaning}; set it to {_yaml(neutral)}."
        for name, (neutral, meaning) in OTHER_LOSSES.items()
        if loss_fn.get(name, neutral) not in (neutral, None)
    ]
    kind = loss_fn.get("reference_policy_kl_type", "k3")
    if kind != "k3" and loss_fn.get("reference_policy_kl_penalty", 0.0):
        faults.append(f"loss_fn.reference_policy_kl_type = {kind}: the penalty is k3; set it, or the penalty to 0.")
    faults += _importance_faults(loss_fn)
    if faults:
        raise ValueError("\n".join(faults))
    kl = KLRules(True, loss_fn.get("kl_input_clamp_value", 20.0), loss_fn.get("kl_output_clamp_value", 10.0))
    return LossSettings(kl, _importance(loss_fn))


def _yaml(value: Any) -> str:
    return {None: "null", False: "false"}.get(value, str(value))


def _importance_faults(loss_fn: Mapping[str, Any]) -> list[str]:
    prefix = "truncated_importance_sampling"
    kind, high, low = (loss_fn.get(f"{prefix}_{name}") for name in ("type", "ratio", "ratio_min"))
    faults = []
    if kind is None:
        if high is not None:
            faults.append(f"loss_fn.{prefix}_ratio is set without {prefix}_type: name {', '.join(TRUNCATIONS)}.")
        return faults
    if kind not in TRUNCATIONS:
        faults.append(f"loss_fn.{prefix}_type = {kind} is none of {', '.join(TRUNCATIONS)}.")
    if not loss_fn.get("use_importance_sampling_correction", False):
        faults.append(f"loss_fn.{prefix}_type needs use_importance_sampling_correction=true.")
    if high is None or high <= 0:
        faults.append(f"loss_fn.{prefix}_type needs a positive {prefix}_ratio.")
    elif low is not None and low > high:
        faults.append(f"loss_fn.{prefix}_ratio_min = {low} is above {prefix}_ratio = {high}.")
    if low is None and kind != "tis":
        faults.append(f"loss_fn.{prefix}_type = {kind} needs {prefix}_ratio_min.")
    return faults


def _importance(loss_fn: Mapping[str, Any]) -> ImportanceRules | None:
    if not loss_fn.get("use_importance_sampling_correction", False):
        return None
    kind = loss_fn.get("truncated_importance_sampling_type")
    if kind is None:
        return ImportanceRules()
    low, high = (loss_fn.get(f"truncated_importance_sampling_{name}") for name in ("ratio_min", "ratio"))
    return ImportanceRules(kind, 0.0 if low is None else float(low), float(high))  # type: ignore[arg-type]


def make_loss(loss: Loss, loss_fn: Mapping[str, Any], temperature: float, chunk: int | None) -> LogitLoss:
    """`loss` as NeMo-RL's workers take it.

    `loss_fn` is the config's section, `temperature` the engine's (`policy.generation.temperature`), by which workers
    divide the logits, `chunk` the tokens of `policy.logprob_chunk_size`, None for our own default.
    """
    assert isinstance(loss, TokenLoss), "config/validate.py refuses losses that need more than each token's scores"
    if isinstance(loss, PolicyLoss):
        settings = read_settings(loss_fn)
        loss = replace(loss, kl_rules=settings.kl, importance=settings.importance)
    made = LogitLoss(loss, *compat.logit_loss_kind(), logits_temperature=temperature)
    return made if chunk is None else replace(made, chunk=chunk)


def ship_by_value() -> None:
    """From now on Ray carries the loss's code to the workers: their environments need nothing of this package."""
    import ray

    for name in TRAVELLING:
        ray.cloudpickle.register_pickle_by_value(importlib.import_module(name))


def reduce_worker_metrics(all_mb_metrics: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """What `Policy.train` reports ({name: one number a micro-batch, all data-parallel ranks}) as the step's metrics.

    NeMo-RL's own entries, the same in every micro-batch, are left out.
    """
    ours = {name: float(sum(values)) for name, values in all_mb_metrics.items() if name not in WORKERS_OWN}
    return reduce_parts([from_numbers(ours)])
