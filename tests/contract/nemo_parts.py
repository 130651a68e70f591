"""NeMo-RL's own `setup` on CPUs: its config files, cluster, Policy and checkpoints, with two of its names replaced.

The Megatron worker and vLLM need GPUs; in their place stand the classes of runtime/nemo_rl/cpu/, and the
virtual cluster is asked for CPUs. Everything else is NeMo-RL's.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from nemo_tapo.config.run_config import RunConfig, validate

ROOT = Path(__file__).parents[2]
MODEL = ROOT / "assets" / "tiny-coldstart"
SOURCE = Path(os.environ.get("NEMO_RL_SRC", "."))
CPUS = 16  # pretended: NeMo-RL reserves some for every rank
QUERIES, SAMPLES, ROWS = 4, 8, 48  # an update: 32 original rows and at most 16 constructed ones


def run_config(folder: Path, **changes: Any) -> RunConfig:
    """What a NeMo-RL configuration would be read as."""
    raw: dict[str, Any] = {
        "output": str(folder),
        "runtime": "nemo_rl",
        "steps": 2,
        "model": {"path": str(MODEL), "max_length": 400},
        "rollout": {
            "queries_per_step": QUERIES, "samples_per_query": SAMPLES, "max_tokens": 96, "logprobs": "always",
        },
        "tapo": {"max_tokens": 160},
        "loss": {"kl_rows": 0},
        "checkpoint": {"every": 1},
    }  # fmt: skip
    for path, value in changes.items():
        section, _, leaf = path.partition("__")
        if leaf:
            raw.setdefault(section, {})[leaf] = value
        else:
            raw[section] = value
    return validate(raw)


def master_config(folder: Path, steps: int, *overrides: str) -> dict[str, Any]:
    """NeMo-RL's Megatron example, by NeMo-RL's loader, made tiny."""
    from omegaconf import OmegaConf

    from nemo_tapo.runtime.nemo_rl import compat

    compat.load("register_omegaconf_resolvers")()
    example = compat.load("load_config")(str(SOURCE / "examples/configs/grpo_math_1B_megatron.yaml"))
    tiny = [
        f"policy.model_name={MODEL}", f"policy.train_global_batch_size={ROWS}", "policy.train_micro_batch_size=4",
        "policy.max_total_sequence_length=400", "policy.precision=float32", "policy.sequence_packing.enabled=false",
        "policy.megatron_cfg.optimizer.lr=3e-4", "policy.megatron_cfg.optimizer.min_lr=3e-4",
        "policy.megatron_cfg.scheduler.lr_warmup_iters=2", "policy.megatron_cfg.scheduler.lr_warmup_init=1.5e-4",
        "policy.generation.vllm_cfg.max_model_len=400",
        f"grpo.num_prompts_per_step={QUERIES}", f"grpo.num_generations_per_prompt={SAMPLES}",
        f"grpo.max_num_steps={steps}", "grpo.max_num_epochs=1", "loss_fn.reference_policy_kl_penalty=0",
        "cluster.gpus_per_node=2", "cluster.num_nodes=1", f"checkpointing.checkpoint_dir={folder / 'checkpoints'}",
        "checkpointing.enabled=true", "checkpointing.metric_name=train:reward/mean", "checkpointing.keep_top_k=2",
        "checkpointing.save_period=1", f"logger.log_dir={folder / 'logs'}", "logger.tensorboard_enabled=true",
        "logger.wandb_enabled=false", "logger.monitor_gpus=false",
    ]  # fmt: skip
    whole = compat.load("parse_hydra_overrides")(example, [*tiny, *overrides])
    resolved = OmegaConf.to_container(whole, resolve=True)
    assert isinstance(resolved, dict)
    return {str(k): v for k, v in resolved.items()}


@contextmanager
def on_cpus(folder: Path, engine: Any = None) -> Iterator[Any]:
    """Inside, `grpo.setup` uses CPUs; gives the policy factory for it. `engine`: a class in CpuGeneration's place."""
    import pytest
    from nemo_rl.algorithms import grpo

    from nemo_tapo.runtime.nemo_rl import compat
    from nemo_tapo.runtime.nemo_rl.cpu.generation import get_generation_class
    from nemo_tapo.runtime.nemo_rl.cpu.policy_worker import POLICY_WORKER, REFIT_FOLDER

    handed_over = folder / "handed-over"
    handed_over.mkdir(parents=True, exist_ok=True)
    registry = compat.load("ACTOR_ENVIRONMENT_REGISTRY")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(REFIT_FOLDER, str(handed_over))
        patch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
        patch.setenv("NRL_MEGATRON_CHECKPOINT_DIR", str(folder / "megatron"))  # not in the home folder
        patch.setitem(registry, POLICY_WORKER, compat.load("PY_EXECUTABLES").SYSTEM)
        patch.setattr(grpo, "VllmGeneration", engine or get_generation_class())
        patch.setattr(grpo, "RayVirtualCluster", _cluster_of_cpus)
        yield partial(compat.load("Policy"), worker_extension_cls_fqn=POLICY_WORKER)


def _cluster_of_cpus(**asked: Any) -> Any:
    from nemo_tapo.runtime.nemo_rl import compat

    return compat.load("RayVirtualCluster")(**{**asked, "use_gpus": False})
