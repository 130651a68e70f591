"""Every name of NeMo-RL that we use, and every argument that we pass, against the checkout at hand."""

from __future__ import annotations

import inspect
import types
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.runtime.nemo_rl import compat

pytestmark = pytest.mark.nemo_rl

# What is called, by name or name.method, with the arguments that we pass by keyword or position.
CALLS: dict[str, tuple[str, ...]] = {
    "RayVirtualCluster": (
        "bundle_ct_per_node_list", "use_gpus", "max_colocated_worker_groups", "num_gpus_per_node", "name",
    ),
    "init_ray": ("log_dir",),
    "load_config": ("config_path",),
    "parse_hydra_overrides": ("cfg", "overrides"),
    "register_omegaconf_resolvers": (),
    "configure_generation_config": ("config", "tokenizer"),
    "get_tokenizer": ("tokenizer_config",),
    "Policy": (
        "cluster", "config", "tokenizer", "name_prefix", "init_optimizer", "weights_path", "optimizer_path",
        "init_reference_model", "worker_extension_cls_fqn",
    ),
    "Policy.train": ("data", "loss_fn", "eval_mode", "gbs", "mbs", "timer"),
    "Policy.get_logprobs": ("data", "timer"),
    "Policy.get_reference_policy_logprobs": ("data", "timer"),
    "Policy.prepare_for_lp_inference": (),
    "Policy.prepare_for_training": (),
    "Policy.offload_before_refit": (),
    "Policy.offload_after_refit": (),
    "Policy.save_checkpoint": ("weights_path", "optimizer_path", "tokenizer_path", "checkpointing_cfg"),
    "Policy.shutdown": (),
    "VllmGeneration": ("cluster", "config", "name_prefix"),
    "VllmGeneration.generate_async": ("data", "greedy"),
    "GenerationInterface.generate": ("data", "greedy"),
    "GenerationInterface.prepare_for_generation": (),
    "GenerationInterface.finish_generation": (),
    "refit_policy_generation": ("policy", "policy_generation", "colocated_inference", "timer"),
    "setup": ("master_config", "tokenizer", "dataset", "val_dataset", "policy_factory"),
    "setup_response_data": ("tokenizer", "data_config", "env_configs"),
    "batched_message_log_to_flat_message": (
        "message_log_batch", "pad_value_dict", "make_sequence_length_divisible_by",
    ),
    "calculate_rewards": ("batch", "task_to_env"),
    "BatchedDataDict.shard_by_batch_size": (
        "shards", "batch_size", "allow_uneven_shards", "dynamic_batching_args", "sequence_packing_args",
    ),
    "BatchedDataDict.slice": ("start", "end"),
    "CheckpointManager": ("config",),
    "CheckpointManager.init_tmp_checkpoint": ("step", "training_info", "run_config"),
    "CheckpointManager.finalize_checkpoint": ("checkpoint_path",),
    "CheckpointManager.get_latest_checkpoint_path": (),
    "CheckpointManager.load_training_info": ("checkpoint_path",),
    "Logger": ("cfg",),
    "Logger.log_metrics": ("metrics", "step", "prefix"),
    "Logger.log_hyperparams": ("params",),
    "Timer": (),
    "Timer.time": ("label",),
    "TimeoutChecker": ("timeout", "fit_last_save_time"),
    "TimeoutChecker.check_save": (),
}  # fmt: skip
ENTRIES = ("grpo", "policy", "loss_fn", "data", "env", "logger", "cluster", "checkpointing")
SETTINGS = (
    "disable_ppo_ratio", "sequence_level_importance_ratios", "ratio_clip_c", "use_cispo", "use_kl_in_reward",
    "use_on_policy_kl_approximation", "positive_example_nll_weight", "ratio_clip_min", "ratio_clip_max",
    "token_level_loss", "reference_policy_kl_penalty", "reference_policy_kl_type", "kl_input_clamp_value",
    "kl_output_clamp_value", "use_importance_sampling_correction", "truncated_importance_sampling_type",
    "truncated_importance_sampling_ratio", "truncated_importance_sampling_ratio_min", "force_on_policy_ratio",
)  # fmt: skip


@pytest.mark.parametrize("name", compat.NAMES)
def test_every_name_is_there(name: str) -> None:
    try:
        assert compat.load(name) is not None
    except ModuleNotFoundError as error:  # a part that only the container has: say which, do not pass silently
        pytest.skip(f"{name} needs {error.name}, which is not in this environment")


@pytest.mark.parametrize("call", CALLS)
def test_every_call_is_possible(call: str) -> None:
    """All arguments that we pass exist, and nothing else is required."""
    name, _, method = call.partition(".")
    function = getattr(compat.load(name), method) if method else compat.load(name)
    parameters = list(inspect.signature(function).parameters.values())
    if method and not inspect.ismethod(function) and parameters and parameters[0].name == "self":
        parameters = parameters[1:]
    open_ended = any(p.kind is p.VAR_KEYWORD for p in parameters)
    named = {p.name for p in parameters}
    assert open_ended or set(CALLS[call]) <= named
    required = {p.name for p in parameters if p.default is p.empty and p.kind not in (p.VAR_KEYWORD, p.VAR_POSITIONAL)}
    assert required <= set(CALLS[call])


def test_a_batch_is_a_mapping_of_tensors() -> None:
    import torch

    batch = compat.load("BatchedDataDict")({"a": torch.arange(4)})
    assert batch.size == 4 and torch.equal(batch.slice(1, 3)["a"], torch.tensor([1, 2]))


def test_the_configuration_has_the_sections_and_settings_that_are_read() -> None:
    assert set(ENTRIES) <= set(compat.load("MasterConfig").model_fields)
    assert set(SETTINGS) <= set(compat.load("ClippedPGLossConfig").model_fields)


def test_a_loss_may_take_logits() -> None:
    loss_type, input_type = compat.get_logit_loss_types()
    assert (loss_type.value, input_type.value) == ("token_level", "logit")


def master(**grpo: Any) -> Any:
    """As much of a MasterConfig as `section` and `uses_async_engine` look at, with this release's class of `grpo`."""
    from typing import get_type_hints

    kind = get_type_hints(compat.load("MasterConfig"))["grpo"]
    value = kind.model_construct(**grpo) if hasattr(kind, "model_construct") else kind(**grpo)
    return types.SimpleNamespace(
        grpo=value, policy={"generation": {"backend": "vllm", "vllm_cfg": {"async_engine": True}}}
    )


def test_a_section_is_a_mapping_whatever_class_it_has() -> None:
    assert compat.get_section(master(max_num_steps=7), "grpo")["max_num_steps"] == 7


@pytest.mark.parametrize("asynchronous", [True, False])
def test_which_engine(asynchronous: bool) -> None:
    cfg = master()
    cfg.policy["generation"]["vllm_cfg"]["async_engine"] = asynchronous
    assert compat.uses_async_engine(cfg) is asynchronous


def test_a_checkpoint_becomes_final(tmp_path: Path) -> None:
    from pydantic import BaseModel

    class Policy:
        """Writes synchronously."""

        def finalize_async_save(self) -> None: ...

    class Settings(BaseModel):
        steps: int = 3

    settings = {"checkpoint_dir": str(tmp_path), "metric_name": None, "higher_is_better": True, "keep_top_k": 2}
    manager = compat.load("CheckpointManager")(settings | {"enabled": True, "save_period": 1, "save_optimizer": True})
    folder = manager.init_tmp_checkpoint(4, {"step": 4}, Settings())
    sealed: list[bool] = []  # whether the folder had its final name when it was sealed
    compat.begin_checkpoint(manager, folder, Policy(), lambda: sealed.append((tmp_path / "step_4").exists()))
    compat.end_checkpoints(manager)
    assert sealed == [False]
    assert (tmp_path / "step_4" / "training_info.json").is_file()
    assert Path(manager.get_latest_checkpoint_path()) == tmp_path / "step_4"
