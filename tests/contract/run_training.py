"""A driver for tests: TAPO through NeMo-RL on CPUs, as `nemo-tapo train` runs it.

Arguments: folder, steps; and settings of `nemo_parts.run_config` as JSON, if others are meant.
"""

from __future__ import annotations

import asyncio
import json
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import nemo_parts as parts

from nemo_tapo.runtime.local import ray_cluster
from nemo_tapo.runtime.nemo_rl.runtime import NemoRLRuntime
from nemo_tapo.stages.reinforce import reinforce
from nemo_tapo.stages.session import Session
from nemo_tapo.utils.signals import Stop


async def main(folder: Path, steps: int, changes: dict[str, Any]) -> None:
    from nemo_tapo.tracking.progress import Progress

    cfg = parts.run_config(folder, steps=steps, **changes)
    stop = Stop()
    with parts.on_cpus(folder) as factory, Progress() as progress:
        runtime = await NemoRLRuntime.start(parts.master_config(folder, steps), cfg, policy_factory=factory)
        stop.install()
        # NeMo-RL's converter reads Megatron's own checkpoints.
        runtime.actor._adapters = replace(runtime.actor._adapters, export=lambda path: path.mkdir())
        session = Session(cfg, runtime, progress, stop)
        try:
            await reinforce(session, cfg.model.path)
        finally:
            session.task.close()
            runtime.close()


if __name__ == "__main__":
    here = ray_cluster.start(parts.CPUS)
    try:
        asyncio.run(main(Path(sys.argv[1]), int(sys.argv[2]), json.loads((sys.argv[3:] or ["{}"])[0])))
    finally:
        ray_cluster.stop(here)
