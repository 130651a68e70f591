"""One rank of the actor: a shard of the policy, its optimizer, its frozen reference.

Method names and data formats are those of NeMo-RL's policy workers. A method takes a mapping of tensors (this
data-parallel rank's share of a Batch, `Batch.as_dict()`) and returns a mapping. [B, S] tensors have the log-probability
of token i in column i. Every method that computes is collective: it must be called on all ranks. This module does not
use Ray; actor.py wraps the worker in a Ray actor.

    rank = tp_rank + TP * (dp_rank + DP * pp_rank)      (Megatron's default order)
"""

from __future__ import annotations

import datetime
import json
import os
import socket
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from functools import partial
from itertools import repeat
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import psutil  # type: ignore[import-untyped]
import torch
import torch.distributed as dist
from torch import Tensor
from torch.distributed import FileStore, Store, TCPStore  # type: ignore[attr-defined]

from nemo_tapo.batch import micro_batches
from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Loss, LossNeeds, TeacherKind, next_token_scores
from nemo_tapo.metrics import LOSS, Part, Parts, Sum
from nemo_tapo.runtime.local import hf_checkpoint
from nemo_tapo.runtime.local.weights import ModelParallelRank, StateDict, check_layout, merge_weights, split_weights
from nemo_tapo.types import Batch
from nemo_tapo.utils.errors import RuntimeFailure

Data = Mapping[str, Tensor]
OPTIMIZER_WEIGHTS, OPTIMIZER_STATE = "optimizer.safetensors", "optimizer.json"


class MegatronWorker:
    """One rank of the policy, with the interface of NeMo-RL's policy workers; see the module docstring."""

    def __init__(
        self, rank: int, world_size: int, init_method: str, model_path: str | Path, local: LocalConfig
    ) -> None:
        """Join the other ranks and load the model.

        `init_method` is file://<new file>, or tcp://<host>:<port> of a store that another process serves. Raises
        ValueError if the model is of an architecture that `hf_checkpoint` does not read, or if TP and PP do not divide
        its sizes.
        """
        assert world_size == local.tp * local.pp * local.dp
        self.local, self.model_path = local, Path(model_path)
        self.info = hf_checkpoint.read_model_info(self.model_path)
        check_layout(self.info.shape, local.tp, local.pp)
        torch.set_num_threads(max(1, local.threads // world_size))
        self._join(rank, world_size, init_method)
        from nemo_tapo.runtime.local import model

        self.model = model.build_model(self.info, local.tp, local.pp)
        self.parameters = model.get_named_parameters(self.model)
        self._reference: StateDict | None = None
        self._teacher: StateDict | None = None  # None: the reference policy is the teacher
        self._optimizer: Any = None
        self.load_model(self.model_path)

    def _join(self, rank: int, world_size: int, init_method: str) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = find_network_interface(init_method)
        from nemo_tapo.runtime.local import cpu_shim

        cpu_shim.apply()
        from megatron.core import parallel_state as mpu

        timeout = datetime.timedelta(seconds=self.local.call_timeout)
        store = open_store(init_method, world_size, timeout)
        dist.init_process_group("gloo", store=store, rank=rank, world_size=world_size, timeout=timeout)
        mpu.initialize_model_parallel(self.local.tp, self.local.pp, create_gloo_process_groups=False)
        self.mp_rank = ModelParallelRank(
            self.local.tp, self.local.pp, mpu.get_tensor_model_parallel_rank(), mpu.get_pipeline_model_parallel_rank()
        )
        self.dp_rank = mpu.get_data_parallel_rank()
        self._pipeline_group = mpu.get_pipeline_model_parallel_group()
        self._model_parallel_group = mpu.get_model_parallel_group()
        width = self.info.shape.padded_vocab(self.local.tp) // self.local.tp
        self.vocab = VocabShard(
            start=self.mp_rank.tp_rank * width,
            size=self.info.shape.vocab,
            chunk=self.local.logprob_chunk,
            group=mpu.get_tensor_model_parallel_group() if self.local.tp > 1 else None,
        )

    # ---- weights -------------------------------------------------------------------------------------------------

    def load_model(self, path: str | Path) -> None:
        """Load weights from a Hugging Face directory. Raises ValueError if it is of another architecture or size."""
        self._set_weights(self._read_weights(path))

    def _read_weights(self, path: str | Path) -> StateDict:
        path = Path(path)
        info = hf_checkpoint.read_model_info(path)
        for name, given, own in hf_checkpoint.find_differences(info, self.info):
            raise ValueError(f"{path} is another model than {self.model_path}: {name} is {given} instead of {own}.")
        return hf_checkpoint.read_weights(path)

    def _set_weights(self, full: Mapping[str, Tensor]) -> None:
        shard = self._split_for_rank(full)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(shard[name])

    def _split_for_rank(self, full: Mapping[str, Tensor]) -> StateDict:
        shard = split_weights(full, self.info.shape, self.mp_rank)
        assert shard.keys() == self.parameters.keys(), "weights.py and Megatron disagree about names"
        return shard

    def set_reference(self) -> None:
        """Freeze a copy of the present weights as the reference policy."""
        self._reference = {name: p.detach().clone() for name, p in self.parameters.items()}

    def set_teacher(self, path: str | Path) -> None:
        """Load a frozen teacher from a Hugging Face directory; it replaces the reference policy as teacher.

        Raises ValueError as `load_model` does.
        """
        self._teacher = {
            name: tensor.clone() for name, tensor in self._split_for_rank(self._read_weights(path)).items()
        }

    @contextmanager
    def _with_reference_weights(self) -> Iterator[None]:
        assert self._reference is not None, "set_reference comes before reference log-probabilities"
        with self._with_weights(self._reference):
            yield

    @contextmanager
    def _with_teacher_weights(self, kind: TeacherKind) -> Iterator[None]:
        if kind == "live":
            yield
            return
        weights = self._teacher or self._reference
        assert weights is not None, "set_reference or set_teacher comes before a frozen teacher"
        with self._with_weights(weights):
            yield

    @contextmanager
    def _with_weights(self, weights: StateDict) -> Iterator[None]:
        live_weights = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = weights[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = live_weights[name]

    def export_shard(self, kind: str = "weights") -> StateDict:
        """Return this rank's shard of "weights", "gradients", "exp_avg" or "exp_avg_sq", by Megatron name."""
        if kind == "weights":
            return {name: p.detach() for name, p in self.parameters.items()}
        if kind == "gradients":
            from nemo_tapo.runtime.local.model import get_gradient

            return {name: get_gradient(p) for name, p in self.parameters.items()}
        return dict(self._optimizer.moments(kind))

    def export_full(self, kind: str = "weights") -> StateDict | None:
        """Return the full tensors of `kind` (see `export_shard`) by Hugging Face name. Collective.

        Only the first rank of the first data-parallel replica gets them; the others get None.
        """
        if self.dp_rank:
            return None
        shard, key = self.export_shard(kind), (self.mp_rank.tp_rank, self.mp_rank.pp_rank)
        if dist.get_world_size(self._model_parallel_group) == 1:
            return merge_weights({key: shard}, self.info.shape)
        first = dist.get_process_group_ranks(self._model_parallel_group)[0]
        parts: list[Any] | None = [None] * self.mp_rank.tp * self.mp_rank.pp if dist.get_rank() == first else None
        dist.gather_object((key, shard), parts, dst=first, group=self._model_parallel_group)
        return merge_weights(dict(parts), self.info.shape) if parts is not None else None

    def export_weights(self) -> tuple[StateDict | None, None]:
        """Return `export_full()` and None, as two values.

        A Ray caller waits for the second value and passes on the reference to the first without fetching it.
        """
        return self.export_full(), None

    # ---- log-probabilities ---------------------------------------------------------------------------------------

    def get_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """Return {"logprobs": [B, S] nats} under the present weights; 0 at column 0 and outside the rows."""
        return {"logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def get_reference_policy_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """Return {"reference_logprobs": [B, S] nats}, the same under the reference policy."""
        with self._with_reference_weights():
            return {"reference_logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def get_teacher_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """Return {"teacher_logprobs": [B, S] nats}, the same under the frozen teacher."""
        with self._with_teacher_weights("frozen"):
            return {"teacher_logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def _logprobs(self, data: Data, micro_batch_size: int | None, temperature: float) -> Tensor:
        from nemo_tapo.runtime.local import pipeline_schedule

        batch = _make_forward_batch(data)
        micro_batch_rows = self._plan_micro_batches(batch, micro_batch_size)

        def score(logits: Tensor, part: Batch) -> tuple[Tensor, Tensor]:
            logp, _ = next_token_scores(logits, part, self.vocab, False, temperature)
            return logp.new_zeros(()), logp

        parts = pipeline_schedule.run(
            self.model, [batch.select(rows) for rows in micro_batch_rows], score, forward_only=True
        )
        out: Tensor = self._broadcast_from_last_stage(_assemble(parts, micro_batch_rows, batch, fill=0.0))
        return out

    # ---- training ------------------------------------------------------------------------------------------------

    def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Create a new optimizer and schedule for the present weights; step count 0.

        Raises ValueError for muon with TP > 1.
        """
        from nemo_tapo.runtime.local.optimizer import NormOwnership, Optimizer

        if optimizer.name == "muon" and self.mp_rank.tp > 1:
            raise ValueError(
                f"muon works on whole matrices, local.tp = {self.mp_rank.tp} splits them: take adamw or tp = 1."
            )
        copies = self.info.shape.tied and self.mp_rank.is_last_stage and not self.mp_rank.is_first_stage
        ownership = NormOwnership(self.mp_rank.tp_rank, self.dp_rank, copies)
        self._optimizer = Optimizer(self.parameters, ownership, optimizer, total_steps)

    def train(
        self, data: Data, loss_fn: Loss, eval_mode: bool = False, gbs: int | None = None, mbs: int | None = None
    ) -> dict[str, Any]:
        """Make one optimizer step on the rows of all ranks: forward, loss, backward, update.

        With `eval_mode`, only the forward pass and the loss. `mbs` sets the rows of a micro-batch; without it,
        local.micro_batch_tokens decides. `gbs`, if given, must be the number of rows over all data-parallel ranks,
        because one call is one step; else ValueError.

        Returns {"loss", "grad_norm", "lr": floats over all ranks, "metrics": the additive parts of this data-parallel
        rank (see metrics.reduce_parts), "token_weights": [B, S] or None}. Raises RuntimeFailure, and changes nothing,
        if the loss or the gradient is not finite.
        """
        from nemo_tapo.runtime.local import pipeline_schedule

        batch = Batch.from_dict(data)
        if gbs is not None and gbs != batch.rows * self.local.dp:
            raise ValueError(f"gbs = {gbs}, but the call holds {batch.rows * self.local.dp} rows: a call is one step.")
        micro_batch_rows = self._plan_micro_batches(batch, mbs)
        micro_batches = [batch.select(rows) for rows in micro_batch_rows]
        teacher_logits = self._teacher_logits(micro_batches, loss_fn.needs)

        def score(logits: Tensor, part: Batch) -> tuple[Tensor, tuple[Parts, Tensor | None]]:
            output = loss_fn(logits, part, self.vocab, next(teacher_logits))
            return output.loss, (output.parts, output.token_weights)

        if not eval_mode:
            self.model.zero_grad_buffer()
        reports = pipeline_schedule.run(self.model, micro_batches, score, forward_only=eval_mode)
        local_loss = sum(_get_loss_value(metrics[LOSS]) for metrics, _ in reports) if self.mp_rank.tp_rank == 0 else 0.0
        if eval_mode:
            loss, norm, rate = _sum_over_ranks(local_loss), 0.0, 0.0
        else:
            loss, norm, rate = self._optimizer.step(local_loss)
        weights = [w for _, w in reports if w is not None]
        report = {
            "metrics": [metrics for metrics, _ in reports],
            "token_weights": _assemble(weights, micro_batch_rows, batch, 1.0) if len(weights) == len(reports) else None,
        }
        return {"loss": loss, "grad_norm": norm, "lr": rate, **self._broadcast_from_last_stage(report)}

    def _teacher_logits(self, micro_batches: Sequence[Batch], needs: LossNeeds) -> Iterator[Tensor | None]:
        """Iterate over the teacher's logits [n, V/TP] of each micro-batch's taught tokens; None if not needed."""
        if needs.teacher_logits is None:
            return repeat(None)
        from nemo_tapo.runtime.local.teacher_logits import compute_teacher_logits

        return compute_teacher_logits(
            self.model, micro_batches, partial(self._with_teacher_weights, needs.teacher_logits), self.mp_rank.pp
        )

    def _plan_micro_batches(self, batch: Batch, rows: int | None) -> list[list[int]]:
        if rows is not None:
            return [list(range(i, min(i + rows, batch.rows))) for i in range(0, batch.rows, rows)]
        lengths = batch.input_lengths
        if batch.teacher_input_lengths is not None:
            lengths = torch.maximum(lengths, batch.teacher_input_lengths)
        return micro_batches(lengths.tolist(), self.local.micro_batch_tokens)

    def _broadcast_from_last_stage(self, report: Any) -> Any:
        """Return the last pipeline stage's `report` on every stage."""
        if self.mp_rank.pp == 1:
            return report
        box = [report]
        dist.broadcast_object_list(
            box, src=dist.get_process_group_ranks(self._pipeline_group)[-1], group=self._pipeline_group
        )
        return box[0]

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(
        self,
        weights_path: str | Path,
        optimizer_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        checkpointing_cfg: Any = None,
    ) -> None:
        """Write a checkpoint into existing folders. Collective; rank 0 writes.

        It holds the weights (Hugging Face names, fp32) and, where their folders are given, the optimizer's moments and
        step count, and the files beside the weights (config, tokenizer). No file depends on the layout.
        """
        weights = self.export_full("weights")
        if weights is not None:
            hf_checkpoint.write_tensors(weights, Path(weights_path) / hf_checkpoint.WEIGHTS)
        if tokenizer_path is not None and dist.get_rank() == 0:
            hf_checkpoint.copy_files_beside_weights(self.model_path, Path(tokenizer_path))
        if optimizer_path is not None:
            self._save_optimizer(Path(optimizer_path))

    def _save_optimizer(self, folder: Path) -> None:
        from nemo_tapo.runtime.local.optimizer import MOMENTS

        full = {kind: self.export_full(kind) for kind in MOMENTS}
        if dist.get_rank() != 0:
            return
        moments = {f"{kind}.{name}": t for kind, state in full.items() for name, t in (state or {}).items()}
        hf_checkpoint.write_tensors(moments, folder / OPTIMIZER_WEIGHTS)
        state = {
            "steps_done": self._optimizer.steps_done,
            "total_steps": self._optimizer.total_steps,
            "settings": self._optimizer.settings.model_dump(),
        }
        (folder / OPTIMIZER_STATE).write_text(json.dumps(state, indent=2) + "\n")

    def load_checkpoint(self, path: str | Path, optimizer_path: str | Path | None = None) -> None:
        """Restore what `save_checkpoint(path, optimizer_path or path)` wrote, in any layout.

        Call `configure` first.
        """
        from safetensors.torch import load_file

        from nemo_tapo.runtime.local.optimizer import MOMENTS

        assert self._optimizer is not None, "configure comes before load_checkpoint"
        path = Path(path)
        optimizer_folder = Path(optimizer_path or path)
        state = json.loads((optimizer_folder / OPTIMIZER_STATE).read_text())
        self._set_weights(hf_checkpoint.read_weights(path))
        full = load_file(optimizer_folder / OPTIMIZER_WEIGHTS)
        moments = {
            kind: {n.removeprefix(f"{kind}."): t for n, t in full.items() if n.startswith(f"{kind}.")}
            for kind in MOMENTS
        }
        moments = {kind: split_weights(state, self.info.shape, self.mp_rank) for kind, state in moments.items()}
        self._optimizer.restore(state["steps_done"], moments)

    # ---- phases: NeMo-RL moves memory in these; on a CPU there is nothing to move ---------------------------------

    def ready(self) -> dict[str, int]:
        """Return {"rank", "pid"}. As the first call to the Ray actor, it returns once the model is loaded."""
        return {"rank": dist.get_rank(), "pid": os.getpid()}

    def prepare_for_lp_inference(self) -> None: ...

    def prepare_for_training(self, *args: Any, **kwargs: Any) -> None: ...

    def offload_before_refit(self) -> None: ...

    def offload_after_refit(self) -> None: ...

    def shutdown(self) -> None:
        """Leave the process groups. The worker cannot be used afterwards; its process can create another worker."""
        from megatron.core import parallel_state as mpu

        mpu.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()


def open_store(init_method: str, world_size: int, timeout: datetime.timedelta) -> Store:
    """Open the store at which the ranks find each other; see `MegatronWorker` for `init_method`."""
    place = urlsplit(init_method)
    if place.scheme == "file":
        store = FileStore(place.path, world_size)
        store.set_timeout(timeout)
        return store
    assert place.hostname is not None and place.port is not None
    return TCPStore(place.hostname, place.port, is_master=False, timeout=timeout)


def find_network_interface(init_method: str) -> str:
    """Return the network interface through which ranks that meet at `init_method` communicate.

    For a file it is the loopback interface, which other machines cannot reach. For tcp://<host>:<port> it is the
    interface that routes to the host. Raises RuntimeFailure if no interface has that route's address.

    >>> find_network_interface("file:///tmp/ranks")
    'lo'
    """
    host = urlsplit(init_method).hostname
    if host is None:
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing, but makes the kernel choose the route
        own_address = str(probe.getsockname()[0])
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own_address for address in addresses):
            return str(name)
    raise RuntimeFailure(
        f"no network interface of this node has the address {own_address}, by which {host} is reached."
    )


def _make_forward_batch(data: Data) -> Batch:
    """Return a Batch for a forward pass without loss. NeMo-RL may pass only ids and lengths."""
    ids, lengths = data["input_ids"], data["input_lengths"]
    zeros = torch.zeros(len(lengths))
    return Batch(ids, lengths, torch.zeros(ids.shape), zeros, zeros, zeros, zeros.bool())


def _assemble(parts: Sequence[Tensor], micro_batch_rows: list[list[int]], batch: Batch, fill: float) -> Tensor:
    """Combine the micro-batches' [b, s] results into one [B, S] tensor in the caller's row order.

    Positions outside the rows are set to `fill`.
    """
    out = torch.full(batch.input_ids.shape, fill)
    for part, rows in zip(parts, micro_batch_rows, strict=False):  # there are no parts on stages before the last
        out[rows, : part.shape[1]] = part
    outside = torch.arange(out.shape[1]) >= batch.input_lengths[:, None]
    return out.masked_fill_(outside, fill)


def _sum_over_ranks(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return float(total)


def _get_loss_value(part: Part) -> float:
    assert isinstance(part, Sum), "a loss is a sum over micro-batches"
    return part.value
