"""The driver's side of the policy: TP x PP x DP Megatron ranks, each a Ray actor, behind `interfaces.Actor`.

```
Batch --deal rows over DP--> rank (tp 0.., dp d, pp 0..)  x TP x PP the same rows
                                 MegatronWorker.train
UpdateResult <--reduce_parts, gather_rows-- the report of (tp 0, pp 0) of every d
```
"""

from __future__ import annotations

import asyncio
import errno
import os
import socket
import tempfile
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.losses.base import Loss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.batch_sharding import deal_rows, gather_rows, select_and_pad
from nemo_tapo.runtime.local import hf_checkpoint, ray_cluster
from nemo_tapo.runtime.local.ray_calls import explain_death
from nemo_tapo.runtime.local.weights import check_layout
from nemo_tapo.types import Batch, UpdateResult
from nemo_tapo.utils.errors import RuntimeFailure, is_full_disk

GRACE_SECONDS = 2.0  # after the first failure, wait this long for the errors of the other ranks


class LocalActor:
    """Implementation of `interfaces.Actor`. It handles one call at a time, and each call waits for all ranks.

    If a rank dies or does not answer within local.call_timeout, the other ranks wait for it in a collective. All ranks
    are then ended, and RuntimeFailure names the rank and the cause.
    """

    def __init__(self, model_path: Path, local: LocalConfig) -> None:
        """Start the processes; `ready` waits until they have loaded the model. Ray must be running.

        Raises ValueError for an architecture that the runtime does not have, and if TP and PP do not divide its sizes.
        """
        import ray

        from nemo_tapo.runtime.local.worker import MegatronWorker

        check_layout(hf_checkpoint.read_model_info(model_path).shape, local.tp, local.pp)
        self.local = local
        self.pids: list[int] = []  # of the ranks, once they are ready
        world = local.tp * local.pp * local.dp
        self._folder = tempfile.TemporaryDirectory(prefix="nemo-tapo-actor-")
        options: dict[str, Any] = {
            "num_cpus": 0,  # sampling and updates take turns on the same cores, or share them: nothing is reserved
            "runtime_env": {"env_vars": make_worker_environment(local)},
        }
        places = ray_cluster.place_ranks(world)
        init_method = f"file://{self._folder.name}/ranks"
        if places.host is not None:
            self._store = serve_store(places.host)  # served as long as this actor is there
            init_method = f"tcp://{places.host}:{self._store.port}"
        remote = ray.remote(MegatronWorker)
        self._ranks = [
            remote.options(**options, **places.options[rank]).remote(rank, world, init_method, model_path, local)
            for rank in range(world)
        ]

    async def ready(self) -> list[int]:
        """Wait until all ranks have loaded the model, at most local.start_timeout, and return their process ids."""
        answers = await self._call("ready", timeout=self.local.start_timeout)
        self.pids = [answer["pid"] for answer in answers]
        return self.pids

    def close(self) -> None:
        """End the ranks. A second call does nothing."""
        import ray

        for rank in self._ranks:
            ray.kill(rank)
        self._ranks = []
        self._folder.cleanup()

    # ---- interfaces.Actor ----------------------------------------------------------------------------------------

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Create a new optimizer and schedule for the present weights; step count 0."""
        await self._call("configure", optimizer=optimizer, total_steps=total_steps)

    async def load_model(self, path: Path) -> None:
        """Load weights from a Hugging Face directory of the same architecture.

        Raises ValueError if its sizes differ.
        """
        await self._call("load_model", path=path)

    async def set_reference(self) -> None:
        """Freeze a copy of the present weights as the reference policy."""
        await self._call("set_reference")

    async def set_teacher(self, path: Path) -> None:
        """Load a frozen teacher from a Hugging Face directory; it replaces the reference policy as teacher.

        Raises ValueError if its sizes differ from the policy's.
        """
        await self._call("set_teacher", path=path)

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Make one optimizer step: forward, loss, backward, update.

        Raises RuntimeFailure if the loss or the gradient is not finite; the weights are then unchanged.
        """
        shares = deal_rows(batch.input_lengths.tolist(), self.local.dp)
        reports = await self._call("train", self._shard_by_rank(batch, shares), loss_fn=loss)
        reports = self._select_one_per_replica(reports)
        weights = [report["token_weights"] for report in reports]
        return UpdateResult(
            loss=reports[0]["loss"],
            grad_norm=reports[0]["grad_norm"],
            learning_rate=reports[0]["lr"],
            metrics=reduce_parts(part for report in reports for part in report["metrics"]),
            token_weights=None if any(w is None for w in weights) else gather_rows(weights, shares, batch, fill=1.0),
        )

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the log-probability of every token under the present weights, [B, S] nats.

        0 outside rows and at column 0.
        """
        return await self._logprobs(batch, "get_logprobs", "logprobs", temperature)

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the reference policy."""
        return await self._logprobs(batch, "get_reference_policy_logprobs", "reference_logprobs", temperature)

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the frozen teacher."""
        return await self._logprobs(batch, "get_teacher_logprobs", "teacher_logprobs", temperature)

    async def weights(self) -> Any:
        """Return a Ray reference to {Hugging Face name: tensor}.

        The tensors go from rank 0 directly to the process that resolves the reference, not through the driver.
        """
        ranks = [rank for rank in range(len(self._ranks)) if self._get_replica(rank) == 0]
        pairs = [self._ranks[rank].export_weights.options(num_returns=2).remote() for rank in ranks]
        await self._await_answers([done for _, done in pairs], ranks, "export_weights", self.local.call_timeout)
        return pairs[0][0]

    async def save(self, path: Path) -> None:
        """Write model.safetensors, optimizer.safetensors and optimizer.json into the existing folder `path`."""
        await self._call("save_checkpoint", weights_path=path, optimizer_path=path)

    async def load(self, path: Path) -> None:
        """Restore what `save` wrote. The layout may differ from the one that saved. Call `configure` first."""
        await self._call("load_checkpoint", path=path)

    async def export(self, path: Path) -> None:
        """Write a Hugging Face model directory: config, weights, tokenizer."""
        path.mkdir(parents=True, exist_ok=True)
        await self._call("save_checkpoint", weights_path=path, tokenizer_path=path)

    # ---- rows over data-parallel ranks ---------------------------------------------------------------------------

    def _shard_by_rank(self, batch: Batch, shares: Sequence[Sequence[int]]) -> list[dict[str, Tensor]]:
        """Return the rows of each rank. Ranks of one replica get the same rows; all replicas get equally many."""
        most = max(len(share) for share in shares)
        parts = [select_and_pad(batch, share, most).as_dict() for share in shares]
        return [parts[self._get_replica(rank)] for rank in range(len(self._ranks))]

    def _get_replica(self, rank: int) -> int:
        return rank // self.local.tp % self.local.dp  # the rank order is in worker.py's module docstring

    def _select_one_per_replica(self, reports: Sequence[Any]) -> list[Any]:
        return [reports[d * self.local.tp] for d in range(self.local.dp)]

    async def _logprobs(self, batch: Batch, method: str, key: str, temperature: float) -> Tensor:
        shares = deal_rows(batch.input_lengths.tolist(), self.local.dp)
        reports = await self._call(method, self._shard_by_rank(batch, shares), temperature=temperature)
        return gather_rows([r[key] for r in self._select_one_per_replica(reports)], shares, batch, fill=0.0)

    # ---- calls ---------------------------------------------------------------------------------------------------

    async def _call(
        self, method: str, data: Sequence[Mapping[str, Tensor]] | None = None, timeout: float | None = None, **same: Any
    ) -> list[Any]:
        """Call `method(**same)` on all ranks and return their answers in rank order.

        `data`, if given, holds one more argument for each rank.
        """
        keywords = [same if data is None else {"data": data[rank], **same} for rank in range(len(self._ranks))]
        object_refs = [
            getattr(worker, method).remote(**keyword) for worker, keyword in zip(self._ranks, keywords, strict=True)
        ]
        return await self._await_answers(
            object_refs, range(len(object_refs)), method, timeout or self.local.call_timeout
        )

    async def _await_answers(
        self, object_refs: Sequence[Any], ranks: Sequence[int], method: str, timeout: float
    ) -> list[Any]:
        if not self._ranks:
            raise RuntimeFailure("the actor's ranks were ended by an earlier failure.")
        tasks = [asyncio.ensure_future(_await_object(ref)) for ref in object_refs]
        started = time.monotonic()
        _, pending = await asyncio.wait(tasks, timeout=timeout, return_when=asyncio.FIRST_EXCEPTION)
        failed = any(task.done() and task.exception() for task in tasks)
        if failed and pending:  # the first rank to report need not be the one that caused the failure
            _, pending = await asyncio.wait(tasks, timeout=GRACE_SECONDS)
        if not failed and not pending:
            return [task.result() for task in tasks]
        for task in pending:
            task.cancel()
        errors_by_rank = {rank: None if t in pending else t.exception() for rank, t in zip(ranks, tasks, strict=True)}
        silent = [rank for rank, t in zip(ranks, tasks, strict=True) if t in pending]
        raise self._make_failure(errors_by_rank, silent, f"in {method} after {time.monotonic() - started:.1f} s")

    def _make_failure(
        self, errors_by_rank: Mapping[int, BaseException | None], silent: Sequence[int], where: str
    ) -> Exception:
        """Return the exception to raise. Ends the ranks, unless all of them rejected the call with an error."""
        from ray.exceptions import RayActorError, RayTaskError

        errors = {rank: error for rank, error in errors_by_rank.items() if error is not None}
        causes = [error.cause for error in errors.values() if isinstance(error, RayTaskError)]
        refusals = [cause for cause in causes if isinstance(cause, ValueError | AssertionError | RuntimeFailure)]
        if len(refusals) == len(errors_by_rank):
            return refusals[0]
        world = len(self._ranks)
        self.close()
        for error in errors.values():
            if isinstance(error, RayTaskError) and is_full_disk(error):
                return OSError(errno.ENOSPC, f"{os.strerror(errno.ENOSPC)}, Megatron rank {where}")
        dead = {rank: error for rank, error in errors.items() if isinstance(error, RayActorError)}
        for rank, error in (dead or errors).items():
            cause = error.cause if isinstance(error, RayTaskError) else explain_death(error)
            return RuntimeFailure(f"Megatron rank {rank} of {world} {'died' if dead else 'failed'} {where}: {cause}")
        return RuntimeFailure(f"Megatron rank {', '.join(map(str, silent))} of {world} did not answer {where}.")


async def start_actor(cfg: RunConfig, progress: Callable[[str], None] = lambda text: None) -> LocalActor:
    """Start the actor of `cfg` and wait until its model is loaded.

    Raises ValueError if the layout does not fit the model, RuntimeFailure if a rank does not start.
    """
    started = time.monotonic()
    actor = LocalActor(cfg.model.path, cfg.local)
    pids = await actor.ready()
    progress(f"Megatron-core ready after {time.monotonic() - started:.1f} s (processes {', '.join(map(str, pids))})")
    return actor


def make_worker_environment(local: LocalConfig) -> dict[str, str]:
    """Return the environment variables of a rank's process.

    Waiting threads sleep instead of spinning. When cores are shared, spinning threads take time from the thread they
    wait for (measured: 5 to 8 times slower with another job on the machine, no gain without one).
    """
    threads = max(1, local.threads // (local.tp * local.pp * local.dp))
    return {"OMP_NUM_THREADS": str(threads), "OMP_WAIT_POLICY": "PASSIVE"}


def serve_store(host: str) -> TCPStore:
    """Serve the store at which the ranks find each other, at a free port of `host`, one of this node's addresses.

    Rank 0 would serve it at a port chosen for it beforehand, which another process may have taken when it starts.
    """
    listener = socket.create_server((host, 0))
    port = int(listener.getsockname()[1])
    return TCPStore(host, port, is_master=True, wait_for_workers=False, master_listen_fd=listener.detach())


async def _await_object(object_ref: Any) -> Any:
    return await object_ref
