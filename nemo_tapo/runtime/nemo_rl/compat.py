"""Import NeMo-RL's names and hide the differences between its releases. No other module does either.

`load("Policy")` returns NeMo-RL's object; nothing is imported before that. Each difference between v0.7.0 and main has
one small function here. It looks at what the objects offer and never at a version number (main calls itself 0.6.0).
tests/contract/test_compat.py checks every name and every argument that we pass against NeMo-RL's source.
"""

from __future__ import annotations

import importlib
import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

NAMES: Mapping[str, str] = {
    # resources and data
    "RayVirtualCluster": "nemo_rl.distributed.virtual_cluster:RayVirtualCluster",
    "PY_EXECUTABLES": "nemo_rl.distributed.virtual_cluster:PY_EXECUTABLES",
    "init_ray": "nemo_rl.distributed.virtual_cluster:init_ray",
    "ACTOR_ENVIRONMENT_REGISTRY": "nemo_rl.distributed.ray_actor_environment_registry:ACTOR_ENVIRONMENT_REGISTRY",
    "BatchedDataDict": "nemo_rl.distributed.batched_data_dict:BatchedDataDict",
    # configuration
    "setup": "nemo_rl.algorithms.grpo:setup",
    "MasterConfig": "nemo_rl.algorithms.grpo:MasterConfig",
    "ClippedPGLossConfig": "nemo_rl.algorithms.loss.loss_functions:ClippedPGLossConfig",
    "load_config": "nemo_rl.utils.config:load_config",
    "parse_hydra_overrides": "nemo_rl.utils.config:parse_hydra_overrides",
    "register_omegaconf_resolvers": "nemo_rl.utils.config:register_omegaconf_resolvers",
    "configure_generation_config": "nemo_rl.models.generation:configure_generation_config",
    "get_tokenizer": "nemo_rl.algorithms.utils:get_tokenizer",
    # policy and engine
    "Policy": "nemo_rl.models.policy.lm_policy:Policy",
    "VllmGeneration": "nemo_rl.models.generation.vllm:VllmGeneration",
    "GenerationInterface": "nemo_rl.models.generation.interfaces:GenerationInterface",
    "refit_policy_generation": "nemo_rl.algorithms.grpo:refit_policy_generation",
    # the loss's kind
    "LossType": "nemo_rl.algorithms.loss.interfaces:LossType",
    "LossInputType": "nemo_rl.algorithms.loss.interfaces:LossInputType",
    # data sets, environments
    "setup_response_data": "nemo_rl.data.utils:setup_response_data",
    "batched_message_log_to_flat_message": "nemo_rl.data.llm_message_utils:batched_message_log_to_flat_message",
    "calculate_rewards": "nemo_rl.experience.rollouts:calculate_rewards",
    "EnvironmentInterface": "nemo_rl.environments.interfaces:EnvironmentInterface",
    "EnvironmentReturn": "nemo_rl.environments.interfaces:EnvironmentReturn",
    # record and checkpoints
    "CheckpointManager": "nemo_rl.utils.checkpoint:CheckpointManager",
    "Logger": "nemo_rl.utils.logger:Logger",
    "Timer": "nemo_rl.utils.timer:Timer",
    "TimeoutChecker": "nemo_rl.utils.timer:TimeoutChecker",
}


def is_installed() -> bool:
    """Return True if NeMo-RL's package can be found; imports nothing."""
    return find_spec("nemo_rl") is not None


def load(name: str) -> Any:
    """Import and return the object that NeMo-RL calls `name`, one of NAMES.

    Raises ValueError if NeMo-RL is not installed.
    """
    module, attribute = NAMES[name].split(":")
    if not is_installed():
        raise ValueError(
            "NeMo-RL is not importable: run in its container, or put a checkout of NVIDIA-NeMo/RL on PYTHONPATH "
            "(with NO_VCS_VERSION=1)."
        )
    return getattr(importlib.import_module(module), attribute)


def get_logit_loss_types() -> tuple[Any, Any]:
    """Return NeMo-RL's (loss_type, input_type) for a loss that takes raw logits and counts tokens."""
    return load("LossType").TOKEN_LEVEL, load("LossInputType").LOGIT


def get_section(master: Any, name: str) -> dict[str, Any]:
    """Return a section of a MasterConfig as a plain dict.

    Some sections are pydantic models and others TypedDicts. Which ones depends on the release: `grpo` is a TypedDict on
    v0.7.0 and a model on main.

    >>> from types import SimpleNamespace
    >>> get_section(SimpleNamespace(grpo={"seed": 1}), "grpo")
    {'seed': 1}
    """
    value = getattr(master, name)
    return dict(value.model_dump() if hasattr(value, "model_dump") else value)


def uses_async_engine(master: Any) -> bool:
    """Return True if generation runs in vLLM's asynchronous engine.

    v0.7.0 decides this in a private function of grpo.py that takes the whole configuration, main in a public one that
    takes the engine's.
    """
    interfaces = importlib.import_module("nemo_rl.models.generation.interfaces")
    if hasattr(interfaces, "should_use_async_rollouts"):
        return bool(interfaces.should_use_async_rollouts(get_section(master, "policy")["generation"]))
    return bool(importlib.import_module("nemo_rl.algorithms.grpo")._should_use_async_rollouts(master))


def configure_generation(policy: Mapping[str, Any], tokenizer: Any, reads_text: bool) -> dict[str, Any]:
    """Return policy.generation with what NeMo-RL's launcher adds: padding, stop tokens, how to load the first weights.

    `reads_text`: requests may end at a text, for which the engine needs a tokenizer. NeMo-RL leaves it out by default.
    Later releases added arguments for refitting drafts and MTP layers one by one. They are passed if they exist.
    """
    configure = load("configure_generation_config")
    extra = {
        "has_refit_draft_weights": bool((policy.get("draft") or {}).get("enabled")),
        "trains_mtp": bool((policy.get("megatron_cfg") or {}).get("mtp_num_layers")),
    }
    accepted = inspect.signature(configure).parameters
    generation = policy["generation"]
    if reads_text:
        generation = {**generation, "vllm_cfg": {**generation["vllm_cfg"], "skip_tokenizer_init": False}}
    return dict(configure(generation, tokenizer, **{k: v for k, v in extra.items() if k in accepted}))


@dataclass(frozen=True)
class NemoParts:
    """The part of the result of NeMo-RL's `setup` that is used here."""

    policy: Any
    engine: Any
    clusters: tuple[Any, ...]
    dataloader: Any
    logger: Any
    checkpointer: Any
    master: Any


def run_setup(master: Any, tokenizer: Any, dataset: Any, policy_factory: Any = None) -> NemoParts:
    """Run NeMo-RL's `setup` and name the entries of the long tuple it returns (the same on v0.7.0 and main)."""
    policy, engine, _, clusters, dataloader, _, _, logger, checkpointer, _, master, *_ = load("setup")(
        master, tokenizer, dataset, None, policy_factory=policy_factory
    )
    return NemoParts(policy, engine, tuple(clusters), dataloader, logger, checkpointer, master)


def begin_checkpoint(manager: Any, folder: str | Path, policy: Any, seal: Callable[[], None]) -> None:
    """Begin to rename a temporary checkpoint folder to its final name; `end_checkpoints` waits for the end.

    `seal` is called when all files are written and before the folder gets its name. main does both in a background
    thread, after the policy's own asynchronous writing has ended; v0.7.0 at once.
    """
    if hasattr(manager, "begin_finalization"):

        def finish_writing() -> None:
            policy.finalize_async_save()
            seal()

        manager.begin_finalization(folder, wait_fn=finish_writing)
    else:
        seal()
        manager.finalize_checkpoint(folder)


def end_checkpoints(manager: Any) -> None:
    """Wait for everything that `begin_checkpoint` began, including the removal of old checkpoints."""
    if hasattr(manager, "begin_finalization"):
        manager.shutdown()


def save_dataloader(dataloader: Any, folder: Path) -> None:
    """Save the dataloader's state in the file that `setup` reads."""
    import torch

    torch.save(dataloader.state_dict(), folder / "train_dataloader.pt")
