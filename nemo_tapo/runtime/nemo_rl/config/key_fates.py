"""Say of each key of NeMo-RL's GRPO files what becomes of it here. docs/cluster.md has the table that this writes.

served    this loop reads it, perhaps as a setting of its own
passed    NeMo-RL's own setup, workers, engines, checkpoint manager or loggers read it, as they do under its trainer
set       this package gives it a value, whatever the recipe says
refused   another value than the neutral one ends `plan` with a sentence
unused    nothing reads it in a run of this loop

tests/contract/test_config.py asks this of every key of NeMo-RL's own exemplar files; a key that it does not know is
told in a plan's notes.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from fnmatch import fnmatchcase
from functools import cache
from typing import Any, Literal

from nemo_tapo.runtime.nemo_rl.config.translate import DERIVED
from nemo_tapo.runtime.nemo_rl.config.validate import ALLOWED_SETTINGS, UNSUPPORTED_LOSSES

What = Literal["served", "passed", "set", "refused", "unused"]


@dataclass(frozen=True)
class Fate:
    """What becomes of the keys that a pattern names.

    >>> Fate("grpo.val_*", "unused", "tapo.evaluation.every").matches("grpo.val_period")
    True
    """

    pattern: str  # a dotted path; * stands for anything, further sections included
    what: What
    text: str  # who reads it, the value that is set, or what is neutral

    def matches(self, path: str) -> bool:
        """Return True for a key that the pattern names."""
        return fnmatchcase(path, self.pattern)


_WORKERS, _ENGINE = "the policy's workers", "the engines"
HAND_WRITTEN: tuple[Fate, ...] = (
    Fate("grpo.use_dynamic_sampling", "served", "rollout.dynamic_sampling"),
    Fate("grpo.async_grpo.max_trajectory_age_steps", "served", "1; others are refused where async_grpo is enabled"),
    Fate("grpo.async_grpo.in_flight_weight_updates", "served", "false; true is refused where async_grpo is enabled"),
    Fate("grpo.async_grpo.max_generation_failures", "served", "0; others are refused where async_grpo is enabled"),
    Fate("grpo.async_grpo.recompute_kv_cache_after_weight_updates", "unused", "the caches are always dropped"),
    Fate("grpo.skip_reference_policy_logprobs_calculation", "served", "refused beside a KL penalty"),
    Fate("loss_fn.force_on_policy_ratio", "served", "with one update a batch the ratio is 1; refused with more"),
    Fate("loss_fn.reference_policy_kl_type", "served", "k3; others are refused beside a KL penalty"),
    Fate("loss_fn.kl_*_clamp_value", "served", "bounds of the KL penalty"),
    Fate("loss_fn.*importance_sampling*", "served", "the correction for engines that differ from the actor"),
    Fate("cluster.num_nodes", "served", "layout and plan"),
    Fate("cluster.gpus_per_node", "served", "layout and plan"),
    Fate("cluster.*", "passed", "Ray's cluster"),
    Fate("checkpointing.metric_name", "served", "train:<key> or, with tapo.evaluation.every, val:<key>"),
    Fate("checkpointing.checkpoint_must_save_by", "served", "a stop with a checkpoint"),
    Fate("checkpointing.checkpoint_dir", "served", "checkpoints, and the output folder unless tapo.output is set"),
    Fate("checkpointing.*", "passed", "the checkpoint manager"),
    Fate("policy.train_global_batch_size", "set", "the rows of an update; auto, or that number"),
    Fate("policy.megatron_cfg.checkpoint.async_save", "set", "false"),
    Fate("policy.megatron_cfg.checkpoint.ckpt_assume_constant_structure", "set", "false"),
    Fate("policy.generation.val_*", "set", "as the rollouts'"),
    Fate("policy.generation.max_new_tokens", "served", "rollout.max_tokens; the engines get the larger of it and "
         "tapo.max_tokens"),
    Fate("policy.generation.colocated.*", "served", "layout, plan, hand-over of weights"),
    Fate("policy.generation.mcore_generation_config*", "unused", "of another engine"),
    Fate("policy.generation.sglang_cfg.*", "unused", "of another engine"),
    Fate("policy.generation.trtllm_cfg.*", "unused", "of another engine"),
    Fate("policy.generation.*_cfg.*", "passed", _ENGINE),
    Fate("policy.generation.vllm_kwargs*", "passed", _ENGINE),
    Fate("policy.generation.stop_token_ids", "passed", _ENGINE),
    Fate("policy.generation.port_range_*", "passed", _ENGINE),
    Fate("policy.generation.refit_transport", "passed", "hand-over of weights"),
    Fate("policy.generation.model_name", "set", "policy.model_name"),
    Fate("policy.generation.num_prompts_per_step", "unused", "grpo.num_prompts_per_step"),
    Fate("policy.tokenizer.*", "passed", "the tokenizer; enable_thinking is model.enable_thinking"),
    Fate("policy.megatron_cfg.*", "passed", _WORKERS),
    Fate("policy.dtensor_cfg.*", "passed", _WORKERS),
    Fate("policy.draft.*", "unused", "with policy.draft.enabled alone, which is refused"),
    Fate("policy.router_replay.*", "unused", "with policy.router_replay.enabled alone, which is refused"),
    Fate("policy.sequence_packing.*", "passed", _WORKERS),
    Fate("policy.dynamic_batching.*", "passed", _WORKERS),
    Fate("policy.optimizer*", "passed", _WORKERS),
    Fate("policy.scheduler*", "passed", _WORKERS),
    Fate("policy.reward_model_cfg.*", "unused", "of reward models"),
    Fate("policy.hf_config_overrides*", "passed", _WORKERS),
    *(
        Fate(f"policy.{name}", "passed", _WORKERS)
        for name in (
            "train_micro_batch_size", "logprob_batch_size", "logprob_chunk_size", "max_grad_norm", "precision",
            "offload_optimizer_for_logprob", "make_sequence_length_divisible_by", "refit_buffer_size_gb",
        )
    ),
    Fate("policy.generation_batch_size", "unused", "of engines that generate with Hugging Face"),
    Fate("data.shuffle", "set", "false: queries come in the order of tapo"),
    Fate("data.num_workers", "set", "0"),
    Fate("data.*", "passed", "data sets, with tapo.task.name: nemo_rl; else unused"),
    Fate("env.*", "passed", "environments, with tapo.task.name: nemo_rl; else unused"),
    Fate("logger.num_val_samples_to_print", "unused", "the page shows responses"),
    Fate("logger.*", "passed", "NeMo-RL's Logger, which gets the numbers of every step"),
    Fate("grpo.val_period", "set", "0; tapo.evaluation.every validates between steps"),
    Fate("grpo.val_at_*", "set", "false"),
    Fate("grpo.val_*", "unused", "tapo.evaluation.every"),
    Fate("grpo.max_val_samples", "unused", "tapo.evaluation.validation_problems"),
    Fate("grpo.stop_at_validation_threshold", "unused", "with stop_at_validation_metric alone, which is refused"),
    Fate("grpo.max_num_epochs", "unused", "the run ends after grpo.max_num_steps"),
    Fate("grpo.use_leave_one_out_baseline", "unused", "a group's mean is over all its rows (Eq. 1)"),
    Fate("grpo.adv_estimator.*", "unused", "advantages are Eq. 1, 4 and 5 (tapo.*)"),
    Fate("grpo.calculate_advantages_on_gpu", "unused", "advantages are computed by the driver"),
    Fate("grpo.debug_payload_metrics", "unused", "of the data plane"),
    *(
        Fate(f"{section}.*", "unused", f"with {section}.enabled alone, which is refused")
        for section in ("grpo.reward_scaling", "grpo.reward_shaping", "data_plane")
    ),
    *(
        Fate(section, "unused", "null: nothing is enabled")
        for section in ("grpo.async_grpo", "grpo.reward_scaling", "grpo.reward_shaping", "data_plane")
    ),
    Fate("grpo.num_val_generations_per_prompt", "unused", "tapo.evaluation.validation_samples"),
    Fate("grpo.best_at_k_*", "unused", "with grpo.use_best_at_k alone, which is refused"),
    Fate("grpo.combined_training_*", "unused", "with grpo.use_combined_training alone, which is refused"),
    Fate("grpo.invalid_tool_call_strategy", "unused", "there are no tool calls"),
    Fate("grpo.dynamic_sampling_oversample_ratio", "unused", "a further query is sampled only where it replaces one"),
    Fate("policy.quant_*", "unused", "with policy.quant_cfg alone, which is refused"),
    Fate("policy.disable_modelopt_layer_spec", "unused", "with policy.quant_cfg alone, which is refused"),
    Fate("_teachers.*", "unused", "for other keys to refer to"),
    Fate("sif_dir", "unused", "for other keys to refer to"),
    Fate("async_rl.*", "unused", "of NeMo-RL's single controller"),
    Fate("on_policy_distillation.*", "unused", "the section is refused"),
    Fate("policy.generation.real_quant_*", "unused", "with real_quant alone, which is refused"),
    Fate("policy.generation.trtllm_kwargs*", "unused", "of another engine"),
    Fate("policy.generation.use_async_rollouts", "unused", "of another engine; vllm_cfg.async_engine is served"),
    Fate("policy.activation_checkpointing_enabled", "unused", "nothing in NeMo-RL reads it"),
    Fate("reward_penalties.*", "unused", "the penalties themselves are refused"),
)  # fmt: skip


@cache
def list_fates() -> tuple[Fate, ...]:
    """Return all fates; of those that match a key the first one holds."""
    fates = [_describe_refusal(path, allowed) for path, allowed, _ in ALLOWED_SETTINGS]
    fates += [
        Fate(f"loss_fn.{name}", "refused", f"unless {json.dumps(off)}") for name, (off, _) in UNSUPPORTED_LOSSES.items()
    ]
    fates += [Fate(nemo_key, "served", key) for key, nemo_key in DERIVED.items()]
    return (*fates, *HAND_WRITTEN)


def _describe_refusal(path: str, allowed: tuple[Any, ...]) -> Fate:
    return Fate(path, "refused", f"unless {' or '.join(json.dumps(value) for value in allowed)}")


def get_fate(path: str) -> Fate | None:
    """Return what becomes of a key; None if nobody has said.

    >>> get_fate("grpo.seed").text, get_fate("grpo.brand_new")
    ('seed', None)
    """
    return next((fate for fate in list_fates() if fate.matches(path)), None)


def find_unexplained(master: Mapping[str, Any]) -> list[str]:
    """Return the keys of a file of which `get_fate` knows nothing; `tapo` is this package's own.

    >>> find_unexplained({"grpo": {"seed": 1, "brand_new": 2}, "tapo": {"n_pos": 2}})
    ['grpo.brand_new']
    """
    theirs = {name: value for name, value in master.items() if name != "tapo"}
    return [path for path in list_leaves(theirs) if get_fate(path) is None]


def list_leaves(values: Mapping[str, Any], prefix: str = "") -> Iterable[str]:
    """Yield the dotted path of every key that has no further keys below it."""
    for name, value in values.items():
        if isinstance(value, Mapping) and value:
            yield from list_leaves(value, f"{prefix}{name}.")
        else:
            yield f"{prefix}{name}"


def make_table() -> str:
    """Return the table of docs/cluster.md."""
    head = "| key of NeMo-RL | here | |\n| --- | --- | --- |\n"
    return head + "".join(f"| `{f.pattern}` | {f.what} | {f.text} |\n" for f in list_fates())
