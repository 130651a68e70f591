"""Run the stages of a command: start the runtime that the config names, run them on it, close it."""

from __future__ import annotations

from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.utils.signals import Stop


async def run_stages(cfg: RunConfig, command: str, master: dict[str, Any] | None = None) -> str | None:
    """Start the runtime, run the command's stages on it and close it. Return the text to print at the end, or None.

    `master` is NeMo-RL's configuration. It is given exactly when the run uses the NeMo-RL runtime.
    """
    from nemo_tapo.runtime.registry import start_runtime
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
