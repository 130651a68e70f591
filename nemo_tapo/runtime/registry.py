"""Load the configuration of a run for any runtime, and start the runtime that it names."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig

if TYPE_CHECKING:
    from nemo_tapo.interfaces import Runtime

SAMPLING_COMMANDS = ("evaluate", "filter", "diagnose")  # commands that change no weights, and so need no actor


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a config file in either format: this package's own, or NeMo-RL's with a `tapo:` block.

    Raises the same errors as `load_config`.
    """
    from nemo_tapo.runtime.nemo_rl.config import cluster_run as nemo_rl

    if path is not None and nemo_rl.is_nemo_rl_config(path):
        return nemo_rl.load_cluster_run(path, overrides).cfg
    return load_config(path, overrides)


async def start_runtime(
    cfg: RunConfig, command: str, status: Callable[[str], None], master: dict[str, Any] | None = None
) -> Runtime:
    """Start the runtime that the config names. Only then are the heavy packages imported.

    Raises ValueError if the config says `runtime: nemo_rl` and `master` is missing.
    """
    if command == "evaluate" and cfg.evaluation.endpoint.url:
        from nemo_tapo.runtime.endpoint_runtime import EndpointRuntime

        return EndpointRuntime()
    if master is not None:
        from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime

        return await NemoRLRuntime.start(master, cfg, status, command)
    if cfg.runtime == "nemo_rl":
        raise ValueError("runtime: nemo_rl needs a config file with NeMo-RL's sections (policy, cluster, ...).")
    if command == "evaluate":
        from nemo_tapo.evaluation.model_files import resolve_model_path

        cfg = resolve_model_path(cfg)
    if cfg.runtime == "scripted":
        from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script, countdown_script

        script = countdown_script if cfg.task.name == "countdown" else arithmetic_script
        return ScriptedRuntime(script, cfg.model.max_length)
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    samples_only = command in SAMPLING_COMMANDS
    return await LocalRuntime.start(cfg, status, with_engine=command != "pretrain", with_actor=not samples_only)
