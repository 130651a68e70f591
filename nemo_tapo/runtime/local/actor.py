"""The driver's side of the policy: TP x PP x DP Megatron ranks, each a Ray actor, behind `interface.Actor`.

```
Batch --deal rows over DP--> rank (tp 0.., dp d, pp 0..)  x TP x PP the same rows
                                 MegatronWorker.train
UpdateResult <--reduce_parts, rows put back-- the report of (tp 0, pp 0) of every d
```
"""

from __future__ import annotations

import asyncio
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.losses.base import Loss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.batch_sharding import deal, filled, gather
from nemo_tapo.runtime.local import hf_checkpoint, ray_cluster
from nemo_tapo.runtime.local.ray_calls import why_dead
from nemo_tapo.runtime.local.weights import check_layout
from nemo_tapo.types import Batch, UpdateResult
from nemo_tapo.utils.errors import RuntimeFailure

GRACE = 2.0  # seconds to wait, after a first failure, for the others to tell theirs


class LocalActor:
    """`interface.Actor`. One call at a time; each waits for all ranks.

    A rank that dies or does not answer within local.call_timeout takes the others with it, for they wait for it in
    a collective: all are ended and RuntimeFailure names the rank and the cause.
    """

    def __init__(self, model_path: Path, local: LocalConfig) -> None:
        """Starts the processes; `ready` waits until they stand. Ray has to run.

        Raises ValueError for a model that is no Qwen3 or that the layout does not divide.
        """
        import ray

        from nemo_tapo.runtime.local.worker import MegatronWorker

        check_layout(hf_checkpoint.read_info(model_path).shape, local.tp, local.pp)
        self.local = local
        world = local.tp * local.pp * local.dp
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-tapo-actor-")
        options: dict[str, Any] = {
            "num_cpus": 0,  # sampling and updates take turns on the same cores: nothing to reserve
            "runtime_env": {"env_vars": worker_environment(local)},
        }
        places = ray_cluster.places(world)
        meeting = f"file://{self._folder.name}/ranks"  # where the ranks find each other
        if places.host is not None:
            port = ray.remote(free_port).options(num_cpus=0, **places.options[0]).remote(places.host)
            meeting = f"tcp://{places.host}:{ray.get(port, timeout=local.start_timeout)}"
        remote = ray.remote(MegatronWorker)
        self._ranks = [
            remote.options(**options, **places.options[rank]).remote(rank, world, meeting, model_path, local)
            for rank in range(world)
        ]

    async def ready(self) -> list[int]:
        """The process ids of all ranks, once they have loaded the model; within local.start_timeout."""
        answers = await self._call("ready", timeout=self.local.start_timeout)
        return [answer["pid"] for answer in answers]

    def close(self) -> None:
        """Ends the ranks. A second call does nothing."""
        import ray

        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        self._folder.cleanup()

    # ---- interface.Actor -----------------------------------------------------------------------------------------

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """A new optimizer and schedule on the present weights; step count 0."""
        await self._call("configure", optimizer=optimizer, total_steps=total_steps)

    async def load_model(self, path: Path) -> None:
        """Weights from a Hugging Face directory of the same architecture; ValueError if its sizes differ."""
        await self._call("load_model", path=path)

    async def set_reference(self) -> None:
        """The present weights become the frozen reference policy."""
        await self._call("set_reference")

    async def set_teacher(self, path: Path) -> None:
        """Weights of a Hugging Face directory teach instead of the reference policy's; ValueError if sizes differ."""
        await self._call("set_teacher", path=path)

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Forward, loss, backward, one optimizer step.

        RuntimeFailure if the loss or the gradient is not finite; the weights are then unchanged.
        """
        shares = deal(batch.input_lengths.tolist(), self.local.dp)
        reports = await self._call("train", self._dealt(batch, shares), loss_fn=loss)
        reports = self._one_per_replica(reports)
        weights = [report["token_weights"] for report in reports]
        return UpdateResult(
            loss=reports[0]["loss"],
            grad_norm=reports[0]["grad_norm"],
            learning_rate=reports[0]["lr"],
            metrics=reduce_parts(part for report in reports for part in report["metrics"]),
            token_weights=None if any(w is None for w in weights) else gather(weights, shares, batch, fill=1.0),
        )

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """[B, S] nats, log-probability of every token under the present weights; 0 outside rows and at column 0."""
        return await self._logprobs(batch, "get_logprobs", "logprobs", temperature)

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same under the reference policy."""
        return await self._logprobs(batch, "get_reference_policy_logprobs", "reference_logprobs", temperature)

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same under the frozen teacher."""
        return await self._logprobs(batch, "get_teacher_logprobs", "teacher_logprobs", temperature)

    async def weights(self) -> Any:
        """A Ray reference to {Hugging Face name: tensor}: they go from rank 0 to whoever gets it, not through here."""
        asked = [rank for rank in range(len(self._ranks)) if self._replica_of(rank) == 0]
        pairs = [self._ranks[rank].export_weights.options(num_returns=2).remote() for rank in asked]
        await self._answers([done for _, done in pairs], asked, "export_weights", self.local.call_timeout)
        return pairs[0][0]

    async def save(self, path: Path) -> None:
        """model.safetensors, optimizer.safetensors and optimizer.json into the existing folder `path`."""
        await self._call("save_checkpoint", weights_path=path, optimizer_path=path)

    async def load(self, path: Path) -> None:
        """The inverse of `save`; the layout may differ from the one that saved. `configure` comes before."""
        await self._call("load_checkpoint", path=path)

    async def export(self, path: Path) -> None:
        """A Hugging Face model directory: config, weights, tokenizer."""
        path.mkdir(parents=True, exist_ok=True)
        await self._call("save_checkpoint", weights_path=path, tokenizer_path=path)

    # ---- rows over data-parallel ranks ---------------------------------------------------------------------------

    def _dealt(self, batch: Batch, shares: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """What each rank gets: the ranks of one replica the same rows, all replicas the same number of them."""
        most = max(len(share) for share in shares)
        parts = [filled(batch, share, most).as_dict() for share in shares]
        return [parts[self._replica_of(rank)] for rank in range(len(self._ranks))]

    def _replica_of(self, rank: int) -> int:
        return rank // self.local.tp % self.local.dp  # tp runs fastest, pp slowest: see worker.py

    def _one_per_replica(self, reports: Sequence[Any]) -> list[Any]:
        return [reports[d * self.local.tp] for d in range(self.local.dp)]

    async def _logprobs(self, batch: Batch, method: str, key: str, temperature: float) -> Tensor:
        shares = deal(batch.input_lengths.tolist(), self.local.dp)
        reports = await self._call(method, self._dealt(batch, shares), temperature=temperature)
        return gather([r[key] for r in self._one_per_replica(reports)], shares, batch, fill=0.0)

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, data: Sequence[Mapping[str, Tensor]] | None = None, timeout: float | None = None, **same: Any
    ) -> list[Any]:
        """All ranks' answers to `method(**same)`, in rank order; `data` holds one more argument for each rank."""
        keywords = [same if data is None else {"data": data[rank], **same} for rank in range(len(self._ranks))]
        references = [
            getattr(worker, method).remote(**keyword) for worker, keyword in zip(self._ranks, keywords, strict=True)
        ]
        return await self._answers(references, range(len(references)), method, timeout or self.local.call_timeout)

    async def _answers(self, references: Sequence[Any], ranks: Sequence[int], method: str, timeout: float) -> list[Any]:
        if not self._ranks:
            raise RuntimeFailure("the actor's ranks were ended by an earlier failure.")
        tasks = [asyncio.ensure_future(_value(reference)) for reference in references]
        started = time.monotonic()
        _, pending = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        failed = any(task.done() and task.exception() for task in tasks)
        if failed and pending:  # the others fail because of it, or hang: the first to speak need not be the culprit
            _, pending = await asyncio.wait(tasks, timeout=GRACE)
        if not failed and not pending:
            return [task.result() for task in tasks]
        for task in pending:
            task.cancel()
        told = {rank: None if t in pending else t.exception() for rank, t in zip(ranks, tasks, strict=True)}
        silent = [rank for rank, t in zip(ranks, tasks, strict=True) if t in pending]
        raise self._failure(told, silent, f"in {method} after {time.monotonic() - started:.1f} s")

    def _failure(self, told: Mapping[int, BaseException | None], silent: Sequence[int], where: str) -> Exception:
        """The exception to raise; ends the ranks unless all of them refused the call alike."""
        from ray.exceptions import RayActorError, RayTaskError

        errors = {rank: error for rank, error in told.items() if error is not None}
        causes = [error.cause for error in errors.values() if isinstance(error, RayTaskError)]
        refusals = [cause for cause in causes if isinstance(cause, ValueError | AssertionError | RuntimeFailure)]
        if len(refusals) == len(told):
            return refusals[0]
        world = len(self._ranks)
        self.close()
        dead = {rank: error for rank, error in errors.items() if isinstance(error, RayActorError)}
        for rank, error in (dead or errors).items():
            cause = error.cause if isinstance(error, RayTaskError) else why_dead(error)
            return RuntimeFailure(f"Megatron rank {rank} of {world} {'died' if dead else 'failed'} {where}: {cause}")
        return RuntimeFailure(f"Megatron rank {', '.join(map(str, silent))} of {world} did not answer {where}.")


async def start_actor(cfg: RunConfig, progress: Callable[[str], None] = lambda text: None) -> LocalActor:
    """The actor of `cfg`, its model loaded.

    Raises ValueError for a model that the layout does not fit, RuntimeFailure if a rank does not start.
    """
    started = time.monotonic()
    actor = LocalActor(cfg.model.path, cfg.local)
    pids = await actor.ready()
    progress(f"Megatron-core ready after {time.monotonic() - started:.1f} s (processes {', '.join(map(str, pids))})")
    return actor


def worker_environment(local: LocalConfig) -> dict[str, str]:
    """Environment of a rank's process. A waiting thread sleeps: spinning ones starve the thread they wait for when
    cores are shared (measured: 5 to 8 times slower with another job on the machine, nothing gained without one).
    """
    threads = max(1, local.threads // (local.tp * local.pp * local.dp))
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def free_port(host: str) -> int:
    """A TCP port of this node on which nobody listens at the moment."""
    with socket.socket() as probe:
        probe.bind((host, 0))
        return int(probe.getsockname()[1])


async def _value(reference: Any) -> Any:
    return await reference
