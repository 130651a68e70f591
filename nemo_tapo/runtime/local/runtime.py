"""`LocalRuntime`: one policy on one machine without a GPU. Ray holds the processes together.

```
driver (train.py) --Ray--> vLLM engine
                  --Ray--> Megatron rank 0 .. tp*pp*dp-1, gloo between them
```
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Generator
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.local import hf_checkpoint
from nemo_tapo.runtime.local import ray_cluster as ray_cluster
from nemo_tapo.runtime.local.actor import LocalActor, start_actor
from nemo_tapo.runtime.local.engine import EngineInfo, VllmEngine, engine_environment
from nemo_tapo.runtime.local.generator import LocalGenerator
from nemo_tapo.runtime.local.ray_calls import answer
from nemo_tapo.types import Completion, Request

Progress = Callable[[str], None]


class LocalRuntime(RuntimeDefaults):
    """`interface.Runtime`: Ray actors, Megatron-core over gloo, vLLM on CPU."""

    def __init__(
        self, cluster: ray_cluster.Cluster, tokenizer: HFTokenizer, generator: Generator, actor: LocalActor | None
    ) -> None:
        self._cluster: ray_cluster.Cluster | None = cluster
        self.tokenizer = tokenizer
        self.generator = generator
        self._actor = actor

    @classmethod
    async def start(
        cls,
        cfg: RunConfig,
        progress: Progress = lambda text: None,
        with_engine: bool = True,
        with_actor: bool = True,
    ) -> LocalRuntime:
        """Start Ray, then engine and actor at the same time; no engine for a command that samples nothing, no actor
        for one that trains nothing.

        Raises ValueError if `model.path` is no model, RuntimeFailure if a process does not come up.
        """
        cfg = with_absolute_model(cfg)
        if cfg.algorithm == "opsd" and cfg.opsd.teacher_path is not None:
            hf_checkpoint.require_same_kind(cfg.model.path, cfg.opsd.teacher_path)
        progress("starting Ray")
        cluster = ray_cluster.start()
        parts: list[asyncio.Task[Any]] = []
        try:
            progress(f"starting {' and '.join(['vLLM'] * with_engine + ['Megatron-core'] * with_actor)}")
            parts.append(asyncio.create_task(start_engine(cfg, progress) if with_engine else no_engine()))
            parts.append(asyncio.create_task(start_actor(cfg, progress) if with_actor else no_actor()))
            await asyncio.sleep(0)  # both have called their processes; load ours meanwhile
            tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
            generator, actor = await asyncio.gather(*parts)
        except BaseException:  # also Ctrl-C: nothing may be left behind
            for part in parts:
                part.cancel()
            await asyncio.gather(*parts, return_exceptions=True)
            ray_cluster.stop(cluster)
            raise
        return cls(cluster, tokenizer, generator, actor)

    @property
    def actor(self) -> LocalActor:
        """The policy's ranks."""
        assert self._actor is not None, "this command trains nothing, so no actor was started"
        return self._actor

    def close(self) -> None:
        """End every process that `start` started. A second call does nothing."""
        if self._cluster is not None:
            if self._actor is not None:
                self._actor.close()
            ray_cluster.stop(self._cluster)
            self._cluster = None


def with_absolute_model(cfg: RunConfig) -> RunConfig:
    """`cfg` with an absolute model.path that exists: the workers need not share this process's folder."""
    path = cfg.model.path.resolve()
    if not (path / "config.json").is_file():
        raise ValueError(f"model.path: no Hugging Face model in '{cfg.model.path}' (config.json is missing).")
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"path": path})})


class NoGenerator:
    """Stands where no engine was started."""

    max_model_len = 0

    async def generate(self, request: Request) -> Completion:
        raise AssertionError("this command samples nothing, so no engine was started")

    async def update_weights(self, weights: Any) -> None:
        raise AssertionError("this command samples nothing, so no engine was started")


async def no_engine() -> Generator:
    return NoGenerator()


async def no_actor() -> None:
    return None


async def start_engine(cfg: RunConfig, progress: Progress) -> LocalGenerator:
    """The engine's process and the driver's side of it. `cfg.model.path` is absolute."""
    import ray

    started = time.monotonic()
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": engine_environment(cfg)}}
    options |= ray_cluster.places(1).options[0]
    engine = ray.remote(VllmEngine).options(**options).remote(cfg)
    info: EngineInfo = await answer(engine.info.remote(), "the vLLM engine", cfg.local.start_timeout)
    progress(f"vLLM ready after {time.monotonic() - started:.1f} s (process {info.pid})")
    return LocalGenerator(engine, info, cfg.local.call_timeout)
