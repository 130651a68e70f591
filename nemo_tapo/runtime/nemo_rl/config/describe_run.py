"""What the command line does with a NeMo-RL config file before anything is started: check it, print the plan."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.planning import plan_text
from nemo_tapo.planning.model_shape import ModelShape, shape_of
from nemo_tapo.runtime.nemo_rl.config import cluster_run, validate
from nemo_tapo.runtime.nemo_rl.config.cluster_run import ClusterRun
from nemo_tapo.runtime.nemo_rl.config.validate import at

SHOWN = (
    "output",
    "seed",
    "algorithm",
    "pipeline",
    "steps",
    "model",
    "rollout",
    "tapo",
    "opsd",
    "loss",
    "optimizer",
    "checkpoint",
)
BEHIND = (  # NeMo-RL's keys that a reader of a plan looks for, beside those that RunConfig shows
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


def checked(path: Path, overrides: Sequence[str] = ()) -> ClusterRun:
    """The run of a config file. Raises ValueError with one sentence a reason why it could not run on its cluster."""
    run = cluster_run.load(path, overrides)
    shape = _shape(run)
    if shape is not None:
        faults = list(validate.model(shape, run.setup))
        if run.setup.megatron and not faults:
            faults = list(plan_text.faults(shape, run.setup, run.assumed))
        if faults:
            raise ValueError("\n".join(faults))
    return run


def require_environment(run: ClusterRun) -> None:
    """Raises ValueError for what the driver's environment lacks; asked when a run starts, not for a plan."""
    faults = list(validate.environment(run.setup))
    if faults:
        raise ValueError("\n".join(faults))


def describe(run: ClusterRun, full: bool = False) -> str:
    """The resolved configuration, ours and the part of NeMo-RL's that belongs to it (`full`: all), and the plan."""
    ours = run.cfg.model_dump(mode="json", by_alias=True, include=None if full else set(SHOWN))
    if not full:
        ours = {key: ours[key] for key in SHOWN} | {"task": run.cfg.task.name}
    theirs: Any = run.master
    if not full:
        theirs = {key: at(run.master, key) for key in BEHIND if at(run.master, key) is not None}
    plan = "\n".join(f"#  {line}" for line in _plan(run))
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


def _plan(run: ClusterRun) -> Iterable[str]:
    shape = _shape(run)
    yield f"output: {run.cfg.output}, checkpoints: {at(run.master, 'checkpointing.checkpoint_dir')}"
    if shape is None:
        yield from plan_text.rows(run.setup)
        yield f"no estimate of memory and time: {_why_no_shape(run)}"
    else:
        yield from plan_text.lines(shape, run.setup, run.assumed)
    yield from (f"note: {note}" for note in run.notes)


def _shape(run: ClusterRun) -> ModelShape | None:
    try:
        return shape_of(run.master["policy"]["model_name"])
    except ValueError:
        return None  # the plan says why there is no estimate; NeMo-RL may well know the model


def _why_no_shape(run: ClusterRun) -> str:
    try:
        shape_of(run.master["policy"]["model_name"])
    except ValueError as error:
        return str(error)
    raise AssertionError("asked only when there is no shape")


def as_yaml(run: ClusterRun) -> str:
    """The whole configuration as a file that needs nothing else: `nemo-tapo train --config` takes it again."""
    return yaml.safe_dump(run.master, sort_keys=False)
