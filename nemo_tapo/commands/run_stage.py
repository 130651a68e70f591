"""Run the stages of a command: start the runtime that the config names, run them on it, close it."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.utils.signals import Stop

if TYPE_CHECKING:
    from nemo_tapo.interfaces import Runtime


async def run_stages(cfg: RunConfig, command: str, master: dict[str, Any] | None = None) -> str | None:
    """Start the runtime, run the command's stages on it and close it. Return the text to print at the end, or None.

    `master` is NeMo-RL's configuration. It is given exactly when the run uses the NeMo-RL runtime.
    """
    from nemo_tapo.stages.registry import STAGE_WEIGHTS, STAGES
    from nemo_tapo.stages.session import Session
    from nemo_tapo.tracking.progress import Progress

    stop = Stop()
    with Progress(STAGE_WEIGHTS.get(command, ())) as progress:
        progress.start_stage("starting engines")
        runtime = await start_runtime(cfg, command, progress.set_phase, master)
        stop.install()
        try:
            session = Session(cfg, runtime, progress, stop)
            try:
                return await STAGES[command](session)
            finally:
                session.close()
        finally:
            runtime.close()


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
        from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script

        return ScriptedRuntime(arithmetic_script, cfg.model.max_length)
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    samples_only = command in ("evaluate", "filter")
    return await LocalRuntime.start(cfg, status, with_engine=command != "pretrain", with_actor=not samples_only)
