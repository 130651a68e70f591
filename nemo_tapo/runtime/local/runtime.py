"""`LocalRuntime`: one policy on one machine without a GPU. Its processes are Ray actors.

```
driver (train.py) --Ray--> vLLM engine
                  --Ray--> Megatron rank 0 .. tp*pp*dp-1, gloo between them
```
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Generator
from nemo_tapo.runtime.defaults import RuntimeDefaults
from nemo_tapo.runtime.hf_tokenizer import HFTokenizer
from nemo_tapo.runtime.local import hf_checkpoint, ray_cluster
from nemo_tapo.runtime.local.actor import LocalActor, start_actor
from nemo_tapo.runtime.local.engine import EngineInfo, VllmEngine, make_engine_environment
from nemo_tapo.runtime.local.generator import LocalGenerator
from nemo_tapo.runtime.local.ray_calls import await_ray_answer
from nemo_tapo.types import Completion, Request

Progress = Callable[[str], None]


class LocalRuntime(RuntimeDefaults):
    """Implementation of `interfaces.Runtime`: Ray actors, Megatron-core over gloo, vLLM on CPU."""

    def __init__(
        self, cluster: ray_cluster.RayCluster, tokenizer: HFTokenizer, generator: Generator, actor: LocalActor | None
    ) -> None:
        self._cluster: ray_cluster.RayCluster | None = cluster
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
        """Start Ray, then the engine and the actor at the same time.

        A command that samples nothing needs no engine, one that trains nothing no actor. Raises ValueError if
        `model.path` is not a model directory, RuntimeFailure if a process does not start.
        """
        cfg = resolve_model_path(cfg)
        if cfg.teacher is not None and cfg.teacher.path is not None:
            hf_checkpoint.require_same_architecture(cfg.model.path, cfg.teacher.path, cfg.teacher.path_key)
        progress("starting Ray")
        cluster = ray_cluster.start()
        starts: list[asyncio.Task[Any]] = []
        try:
            progress(f"starting {' and '.join(['vLLM'] * with_engine + ['Megatron-core'] * with_actor)}")
            starts.append(asyncio.create_task(start_engine(cfg, progress) if with_engine else skip_engine()))
            starts.append(asyncio.create_task(start_actor(cfg, progress) if with_actor else skip_actor()))
            await asyncio.sleep(0)  # both processes are starting; load the tokenizer meanwhile
            tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
            generator, actor = await asyncio.gather(*starts)
        except BaseException:  # also on Ctrl-C, no process may be left behind
            for task in starts:
                task.cancel()
            await asyncio.gather(*starts, return_exceptions=True)
            ray_cluster.stop(cluster)
            raise
        return cls(cluster, tokenizer, generator, actor)

    @property
    def actor(self) -> LocalActor:
        """The policy's ranks."""
        assert self._actor is not None, "this command trains nothing, so no actor was started"
        return self._actor

    def processes(self) -> Mapping[str, Sequence[int]]:
        """Return the engine's process and the ranks'; nothing on a job's Ray, whose nodes count processes anew."""
        if self._cluster is None or self._cluster.folder is None:
            return {}
        engine = [self.generator.pid] if isinstance(self.generator, LocalGenerator) else []
        return {"engine": engine, "ranks": self._actor.pids if self._actor is not None else []}

    def close(self) -> None:
        """End every process that `start` started. A second call does nothing."""
        if self._cluster is not None:
            if self._actor is not None:
                self._actor.close()
            ray_cluster.stop(self._cluster)
            self._cluster = None


def resolve_model_path(cfg: RunConfig) -> RunConfig:
    """Return `cfg` with an absolute model.path, because workers may have another working directory.

    Raises ValueError if there is no Hugging Face model at that path.
    """
    path = cfg.model.path.resolve()
    if not (path / "config.json").is_file():
        raise ValueError(f"model.path: no Hugging Face model in '{cfg.model.path}' (config.json is missing).")
    return cfg.model_copy(update={"model": cfg.model.model_copy(update={"path": path})})


class NoGenerator:
    """A stand-in for the engine when none was started. Its methods raise AssertionError."""

    max_model_len = 0

    async def generate(self, request: Request) -> Completion:
        """Raise AssertionError."""
        raise AssertionError("this command samples nothing, so no engine was started")

    async def update_weights(self, weights: Any) -> None:
        """Raise AssertionError."""
        raise AssertionError("this command samples nothing, so no engine was started")


async def skip_engine() -> Generator:
    """Return a stand-in for the engine."""
    return NoGenerator()


async def skip_actor() -> None:
    """Return None, the value for "no actor"."""


async def start_engine(cfg: RunConfig, progress: Progress) -> LocalGenerator:
    """Start the engine's process and return the generator that talks to it. `cfg.model.path` must be absolute."""
    import ray

    started = time.monotonic()
    options: dict[str, Any] = {"num_cpus": 0, "runtime_env": {"env_vars": make_engine_environment(cfg)}}
    options |= ray_cluster.place_ranks(1).options[0]
    engine = ray.remote(VllmEngine).options(**options).remote(cfg)
    info: EngineInfo = await await_ray_answer(engine.info.remote(), "the vLLM engine", cfg.local.start_timeout)
    progress(f"vLLM ready after {time.monotonic() - started:.1f} s (process {info.pid})")
    return LocalGenerator(engine, info, cfg.local.call_timeout)
