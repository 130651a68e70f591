"""Check a NeMo-RL config file and describe its plan, before anything is started."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.config.algorithms import list_own_sections
from nemo_tapo.planning import plan_text
from nemo_tapo.planning.model_shape import ModelShape, get_model_shape
from nemo_tapo.runtime.nemo_rl.config import cluster_run, validate
from nemo_tapo.runtime.nemo_rl.config.cluster_run import ClusterRun
from nemo_tapo.runtime.nemo_rl.config.validate import get_at_path

SHOWN_KEYS = (
    "output",
    "seed",
    "algorithm",
    "pipeline",
    "steps",
    "model",
    "rollout",
    "tapo",
    *list_own_sections(),
    "loss",
    "optimizer",
    "checkpoint",
)
SHOWN_NEMO_KEYS = (  # NeMo-RL's keys that a plan shows in addition to those of RunConfig
    "policy.train_global_batch_size",
    "policy.train_micro_batch_size",
    "policy.logprob_batch_size",
    "policy.sequence_packing.enabled",
    "policy.megatron_cfg.optimizer.use_distributed_optimizer",
    "policy.megatron_cfg.optimizer.use_precision_aware_optimizer",
    "policy.megatron_cfg.scheduler.lr_decay_style",
    "policy.megatron_cfg.scheduler.lr_decay_iters",
    "policy.generation.max_new_tokens",
    "policy.generation.vllm_cfg.async_engine",
    "policy.generation.vllm_cfg.gpu_memory_utilization",
    "checkpointing.checkpoint_dir",
    "checkpointing.checkpoint_must_save_by",
    "logger.log_dir",
)


def load_checked_run(path: Path, overrides: Sequence[str] = ()) -> ClusterRun:
    """Load the run that a config file describes and check it against the model's shape and the GPUs' memory.

    Raises ValueError with one sentence for each reason why it could not run on its cluster.
    """
    run = cluster_run.load_cluster_run(path, overrides)
    shape = _read_shape(run)
    if shape is not None:
        faults = list(validate.check_model(shape, run.setup))
        if run.setup.megatron and not faults:
            faults = list(plan_text.find_faults(shape, run.setup, run.assumed))
        if faults:
            raise ValueError("\n".join(faults))
    return run


def require_environment(run: ClusterRun) -> None:
    """Raise ValueError for what the driver's environment lacks; called when a run starts, not for a plan."""
    faults = list(validate.check_environment(run.setup))
    if faults:
        raise ValueError("\n".join(faults))


def describe(run: ClusterRun, full: bool = False) -> str:
    """Return the resolved configuration and the plan as text.

    It has this package's settings and the most important ones of NeMo-RL's; with `full` all of both.
    """
    ours = run.cfg.model_dump(mode="json", by_alias=True, include=None if full else set(SHOWN_KEYS))
    if not full:
        ours = {key: ours[key] for key in SHOWN_KEYS} | {"task": run.cfg.task.name}
    theirs: Any = run.master
    if not full:
        theirs = {
            key: get_at_path(run.master, key) for key in SHOWN_NEMO_KEYS if get_at_path(run.master, key) is not None
        }
    plan = "\n".join(f"#  {line}" for line in _make_plan(run))
    return "\n".join(
        [
            "# this package's settings" + ("" if full else "; --full shows all of them and of NeMo-RL's"),
            yaml.safe_dump(ours, sort_keys=False),
            "# NeMo-RL's configuration" if full else "# of NeMo-RL's",
            yaml.safe_dump(theirs, sort_keys=False),
            "# plan",
            plan,
        ]
    )


def _make_plan(run: ClusterRun) -> Iterable[str]:
    shape = _read_shape(run)
    yield f"output: {run.cfg.output}, checkpoints: {get_at_path(run.master, 'checkpointing.checkpoint_dir')}"
    if shape is None:
        yield from plan_text.describe_step(run.setup)
        yield f"no estimate of memory and time: {_explain_missing_shape(run)}"
    else:
        yield from plan_text.describe_plan(shape, run.setup, run.assumed)
    yield from (f"note: {note}" for note in run.notes)


def _read_shape(run: ClusterRun) -> ModelShape | None:
    try:
        return get_model_shape(run.master["policy"]["model_name"])
    except ValueError:
        return None  # not a fault: NeMo-RL may support the model; the plan says why there is no estimate


def _explain_missing_shape(run: ClusterRun) -> str:
    try:
        get_model_shape(run.master["policy"]["model_name"])
    except ValueError as error:
        return str(error)
    raise AssertionError("asked only when there is no shape")


def as_yaml(run: ClusterRun) -> str:
    """Return the whole resolved configuration as YAML; `nemo-tapo train --config` can read it, without other files."""
    return yaml.safe_dump(run.master, sort_keys=False)
