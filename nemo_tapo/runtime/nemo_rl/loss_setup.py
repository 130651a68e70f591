"""Make a LogitLoss from NeMo-RL's `loss_fn` settings, ship its code to the workers, and reduce their metrics.

Runs in the driver.
"""

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
from nemo_tapo.runtime.nemo_rl.config.validate import UNSUPPORTED_LOSSES
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss, from_numbers

TRUNCATIONS = ("tis", "icepop", "seq-mask-tis")

# The code of a loss: all that workers need of this package (see ship_by_value). A package includes its modules.
SHIPPED_MODULES = (
    "nemo_tapo.types",
    "nemo_tapo.metrics",
    "nemo_tapo.equations",
    "nemo_tapo.losses",
    "nemo_tapo.runtime.nemo_rl.logit_loss",
)
# Entries that NeMo-RL itself adds to the metrics of every micro-batch.
NEMO_METRICS = ("lr", "wd", "global_valid_seqs", "global_valid_toks")


@dataclass(frozen=True)
class LossSettings:
    """The settings of NeMo-RL's `loss_fn` section that LossConfig lacks."""

    kl: KLRules
    importance: ImportanceRules | None  # None: no correction for the gap between engine and actor


def read_loss_settings(loss_fn: Mapping[str, Any]) -> LossSettings:
    """Read NeMo-RL's `loss_fn` section. Raises ValueError for unsupported settings, one sentence a setting.

    >>> read_loss_settings({"kl_input_clamp_value": 5.0}).importance is None
    True
    >>> read_loss_settings({"use_importance_sampling_correction": True}).importance
    ImportanceRules(truncation='none', low=0.0, high=inf, sequence=False)
    """
    faults = [
        f"loss_fn.{name} = {loss_fn[name]}: TAPO's loss has no {meaning}; set it to {_yaml(neutral)}."
        for name, (neutral, meaning) in UNSUPPORTED_LOSSES.items()
        if loss_fn.get(name, neutral) not in (neutral, None)
    ]
    kind = loss_fn.get("reference_policy_kl_type", "k3")
    if kind != "k3" and loss_fn.get("reference_policy_kl_penalty", 0.0):
        faults.append(f"loss_fn.reference_policy_kl_type = {kind}: the penalty is k3; set it, or the penalty to 0.")
    faults += _find_importance_faults(loss_fn)
    if faults:
        raise ValueError("\n".join(faults))
    kl = KLRules(True, loss_fn.get("kl_input_clamp_value", 20.0), loss_fn.get("kl_output_clamp_value", 10.0))
    return LossSettings(kl, _read_importance(loss_fn))


def _yaml(value: Any) -> str:
    return {None: "null", False: "false"}.get(value, str(value))


def _find_importance_faults(loss_fn: Mapping[str, Any]) -> list[str]:
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
    if kind == "seq-mask-tis" and loss_fn.get("sequence_level_importance_ratios"):
        faults.append(f"loss_fn.{prefix}_type = {kind} corrects by token, sequence_level_importance_ratios by row.")
    if low is None and kind != "tis":
        faults.append(f"loss_fn.{prefix}_type = {kind} needs {prefix}_ratio_min.")
    return faults


def _read_importance(loss_fn: Mapping[str, Any]) -> ImportanceRules | None:
    if not loss_fn.get("use_importance_sampling_correction", False):
        return None
    kind = loss_fn.get("truncated_importance_sampling_type")
    sequence = bool(loss_fn.get("sequence_level_importance_ratios", False))
    if kind is None:
        return ImportanceRules(sequence=sequence)
    low, high = (loss_fn.get(f"truncated_importance_sampling_{name}") for name in ("ratio_min", "ratio"))
    return ImportanceRules(kind, 0.0 if low is None else float(low), float(high), sequence)  # type: ignore[arg-type]


def make_logit_loss(loss: Loss, loss_fn: Mapping[str, Any], temperature: float, chunk: int | None) -> LogitLoss:
    """Wrap `loss` for NeMo-RL's workers.

    `loss_fn` is the config's section. `temperature` is the engine's (`policy.generation.temperature`), by which workers
    divide the logits. `chunk` is `policy.logprob_chunk_size` in tokens; None means the default of LogitLoss. Raises
    ValueError for unsupported settings.
    """
    assert isinstance(loss, TokenLoss), "config/validate.py refuses losses that need more than each token's scores"
    if isinstance(loss, PolicyLoss):
        settings = read_loss_settings(loss_fn)
        loss = replace(loss, kl_rules=settings.kl, importance=settings.importance)
    logit_loss = LogitLoss(loss, *compat.get_logit_loss_types(), logits_temperature=temperature)
    return logit_loss if chunk is None else replace(logit_loss, chunk=chunk)


def ship_by_value() -> None:
    """Make Ray send the loss's code to the workers from now on, so that they need not have this package installed."""
    import ray

    for name in SHIPPED_MODULES:
        ray.cloudpickle.register_pickle_by_value(importlib.import_module(name))


def reduce_worker_metrics(all_mb_metrics: Mapping[str, Sequence[float]]) -> dict[str, float]:
    """Reduce the metrics of `Policy.train`, {name: one number a micro-batch of every DP rank}, to the step's metrics.

    Leaves out NeMo-RL's own entries, which are the same in every micro-batch.

    >>> entropy = {"entropy:sum": [2.0, 4.0], "entropy:count": [1, 2]}
    >>> reduce_worker_metrics({"loss": [0.5, 0.25], **entropy, "lr": [0.1, 0.1]})
    {'loss': 0.75, 'entropy': 2.0}
    """
    ours = {name: float(sum(values)) for name, values in all_mb_metrics.items() if name not in NEMO_METRICS}
    return reduce_parts([from_numbers(ours)])
