"""One rank of the actor: a part of the policy, its optimizer, its frozen reference.

Method names and data are those of NeMo-RL's policy workers: a mapping of tensors in (this data-parallel rank's
share of a Batch, `Batch.as_dict()`), a mapping out; [B, S] tensors have the log-probability of token i in column i.
Every method that computes is collective: all ranks have to be called. No Ray here; actor.py wraps it.

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

from nemo_tapo.batch import micro_batches
from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import Loss, LossNeeds, TeacherKind, next_token_scores
from nemo_tapo.metrics import LOSS, Part, Parts, Sum
from nemo_tapo.runtime.local import hf_checkpoint
from nemo_tapo.runtime.local.weights import Place, State, check_layout, merge, split
from nemo_tapo.types import Batch
from nemo_tapo.utils.errors import RuntimeFailure

Data = Mapping[str, Tensor]
OPTIMIZER_WEIGHTS, OPTIMIZER_STATE = "optimizer.safetensors", "optimizer.json"


class MegatronWorker:
    """See the module's text."""

    def __init__(
        self, rank: int, world_size: int, init_method: str, model_path: str | Path, local: LocalConfig
    ) -> None:
        """Joins the other ranks at `init_method` (tcp://<host of rank 0>:<port> or file://<new file>), loads the model.

        Raises ValueError for a model that is no Qwen3, or that the layout does not divide.
        """
        assert world_size == local.tp * local.pp * local.dp
        self.local, self.model_path = local, Path(model_path)
        self.info = hf_checkpoint.read_info(self.model_path)
        check_layout(self.info.shape, local.tp, local.pp)
        torch.set_num_threads(max(1, local.threads // world_size))
        self._join(rank, world_size, init_method)
        from nemo_tapo.runtime.local import model

        self.model = model.build_model(self.info, local.tp, local.pp)
        self.parameters = model.named_parameters(self.model)
        self._reference: State | None = None
        self._teacher: State | None = None  # other weights than the reference's, where a teacher was given
        self._updater: Any = None
        self.load_model(self.model_path)

    def _join(self, rank: int, world_size: int, init_method: str) -> None:
        os.environ["GLOO_SOCKET_IFNAME"] = interface_towards(init_method)
        from nemo_tapo.runtime.local import cpu_shim

        cpu_shim.apply()
        from megatron.core import parallel_state as mpu

        timeout = datetime.timedelta(seconds=self.local.call_timeout)
        dist.init_process_group("gloo", init_method=init_method, rank=rank, world_size=world_size, timeout=timeout)
        mpu.initialize_model_parallel(self.local.tp, self.local.pp, create_gloo_process_groups=False)
        self.place = Place(
            self.local.tp, self.local.pp, mpu.get_tensor_model_parallel_rank(), mpu.get_pipeline_model_parallel_rank()
        )
        self.dp_rank = mpu.get_data_parallel_rank()
        self._pipeline, self._replica = mpu.get_pipeline_model_parallel_group(), mpu.get_model_parallel_group()
        width = self.info.shape.padded_vocab(self.local.tp) // self.local.tp
        self.vocab = VocabShard(
            start=self.place.tp_rank * width,
            size=self.info.shape.vocab,
            chunk=self.local.logprob_chunk,
            group=mpu.get_tensor_model_parallel_group() if self.local.tp > 1 else None,
        )

    # ---- weights -------------------------------------------------------------------------------------------------

    def load_model(self, path: str | Path) -> None:
        """Weights from a Hugging Face directory; ValueError if its sizes are not this model's."""
        self._set_weights(self._weights_of(path))

    def _weights_of(self, path: str | Path) -> State:
        path = Path(path)
        shape = hf_checkpoint.read_info(path).shape
        if shape != self.info.shape:
            raise ValueError(f"{path} is another model than {self.model_path}: {shape} instead of {self.info.shape}.")
        return hf_checkpoint.read_weights(path)

    def _set_weights(self, full: Mapping[str, Tensor]) -> None:
        shard = self._shard(full)
        with torch.no_grad():
            for name, parameter in self.parameters.items():
                parameter.copy_(shard[name])

    def _shard(self, full: Mapping[str, Tensor]) -> State:
        shard = split(full, self.info.shape, self.place)
        assert shard.keys() == self.parameters.keys(), "weights.py and Megatron disagree about names"
        return shard

    def set_reference(self) -> None:
        """The present weights become the frozen reference policy."""
        self._reference = {name: p.detach().clone() for name, p in self.parameters.items()}

    def set_teacher(self, path: str | Path) -> None:
        """Weights of a Hugging Face directory teach instead of the reference policy's; ValueError as `load_model`."""
        self._teacher = {name: tensor.clone() for name, tensor in self._shard(self._weights_of(path)).items()}

    @contextmanager
    def _as_reference(self) -> Iterator[None]:
        assert self._reference is not None, "set_reference comes before reference log-probabilities"
        with self._as(self._reference):
            yield

    @contextmanager
    def _as_teacher(self, kind: TeacherKind) -> Iterator[None]:
        if kind == "live":
            yield
            return
        weights = self._teacher or self._reference
        assert weights is not None, "set_reference or set_teacher comes before a frozen teacher"
        with self._as(weights):
            yield

    @contextmanager
    def _as(self, weights: State) -> Iterator[None]:
        own = {name: p.data for name, p in self.parameters.items()}
        try:
            for name, parameter in self.parameters.items():
                parameter.data = weights[name]
            yield
        finally:
            for name, parameter in self.parameters.items():
                parameter.data = own[name]

    def export_shard(self, kind: str = "weights") -> State:
        """This rank's part, Megatron names, of "weights", "gradients", "exp_avg" or "exp_avg_sq"."""
        if kind == "weights":
            return {name: p.detach() for name, p in self.parameters.items()}
        if kind == "gradients":
            from nemo_tapo.runtime.local.model import gradient_of

            return {name: gradient_of(p) for name, p in self.parameters.items()}
        return dict(self._updater.moments(kind))

    def export_full(self, kind: str = "weights") -> State | None:
        """The whole of it under Hugging Face names, on rank 0 of the model; None elsewhere. Collective."""
        if self.dp_rank:
            return None
        shard, key = self.export_shard(kind), (self.place.tp_rank, self.place.pp_rank)
        if dist.get_world_size(self._replica) == 1:
            return merge({key: shard}, self.info.shape)
        first = dist.get_process_group_ranks(self._replica)[0]
        parts: list[Any] | None = [None] * self.place.tp * self.place.pp if dist.get_rank() == first else None
        dist.gather_object((key, shard), parts, dst=first, group=self._replica)
        return merge(dict(parts), self.info.shape) if parts is not None else None

    def export_weights(self) -> tuple[State | None, None]:
        """`export_full()`, and a second value: a Ray caller waits for that and passes the first on unseen."""
        return self.export_full(), None

    # ---- log-probabilities ---------------------------------------------------------------------------------------

    def get_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """{"logprobs": [B, S] nats} under the present weights; 0 at column 0 and outside the rows."""
        return {"logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def get_reference_policy_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """{"reference_logprobs": [B, S] nats}, the same under the reference policy."""
        with self._as_reference():
            return {"reference_logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def get_teacher_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> dict[str, Tensor]:
        """{"teacher_logprobs": [B, S] nats}, the same under the frozen teacher."""
        with self._as_teacher("frozen"):
            return {"teacher_logprobs": self._logprobs(data, micro_batch_size, temperature)}

    def _logprobs(self, data: Data, micro_batch_size: int | None, temperature: float) -> Tensor:
        from nemo_tapo.runtime.local import pipeline_schedule

        batch = _without_loss(data)
        plan = self._plan(batch, micro_batch_size)

        def score(logits: Tensor, part: Batch) -> tuple[Tensor, Tensor]:
            logp, _ = next_token_scores(logits, part, self.vocab, False, temperature)
            return logp.new_zeros(()), logp

        parts = pipeline_schedule.run(self.model, [batch.select(rows) for rows in plan], score, forward_only=True)
        out: Tensor = self._from_last_stage(_assemble(parts, plan, batch, fill=0.0))
        return out

    # ---- training ------------------------------------------------------------------------------------------------

    def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """A new optimizer and schedule on the present weights; step count 0. ValueError for muon with TP > 1."""
        from nemo_tapo.runtime.local.optimizer import Ownership, Updater

        if optimizer.name == "muon" and self.place.tp > 1:
            raise ValueError(
                f"muon works on whole matrices, local.tp = {self.place.tp} splits them: take adamw or tp = 1."
            )
        copies = self.info.shape.tied and self.place.last and not self.place.first
        ownership = Ownership(self.place.tp_rank, self.dp_rank, copies)
        self._updater = Updater(self.parameters, ownership, optimizer, total_steps)

    def train(
        self, data: Data, loss_fn: Loss, eval_mode: bool = False, gbs: int | None = None, mbs: int | None = None
    ) -> dict[str, Any]:
        """Forward, loss, backward and one optimizer step on all ranks' rows; with `eval_mode` the forward alone.

        `mbs` fixes the rows of a micro-batch; else local.micro_batch_tokens decides. `gbs`, if given, must be all
        ranks' rows: one call is one step. Returns {"loss", "grad_norm", "lr": floats over all ranks, "metrics": the
        additive parts of this data-parallel rank (see metrics.reduce_parts), "token_weights": [B, S] or None}.
        Raises RuntimeFailure, and changes nothing, if the loss or the gradient is not finite.
        """
        from nemo_tapo.runtime.local import pipeline_schedule

        batch = Batch.from_dict(data)
        if gbs is not None and gbs != batch.rows * self.local.dp:
            raise ValueError(f"gbs = {gbs}, but the call holds {batch.rows * self.local.dp} rows: a call is one step.")
        plan = self._plan(batch, mbs)
        parts = [batch.select(rows) for rows in plan]
        teacher_logits = self._teacher_logits(parts, loss_fn.needs)

        def score(logits: Tensor, part: Batch) -> tuple[Tensor, tuple[Parts, Tensor | None]]:
            output = loss_fn(logits, part, self.vocab, next(teacher_logits))
            return output.loss, (output.metrics, output.token_weights)

        if not eval_mode:
            self.model.zero_grad_buffer()
        reports = pipeline_schedule.run(self.model, parts, score, forward_only=eval_mode)
        own = sum(_value(metrics[LOSS]) for metrics, _ in reports) if self.place.tp_rank == 0 else 0.0
        loss, norm, rate = self._updater.step(own) if not eval_mode else (_summed(own), 0.0, 0.0)
        weights = [w for _, w in reports if w is not None]
        report = {
            "metrics": [metrics for metrics, _ in reports],
            "token_weights": _assemble(weights, plan, batch, 1.0) if len(weights) == len(reports) else None,
        }
        return {"loss": loss, "grad_norm": norm, "lr": rate, **self._from_last_stage(report)}

    def _teacher_logits(self, micro_batches: Sequence[Batch], needs: LossNeeds) -> Iterator[Tensor | None]:
        """Yield for each micro-batch the teacher's logits [n, V/TP] of its taught tokens, if the loss needs them."""
        if needs.teacher_logits is None:
            return repeat(None)
        from nemo_tapo.runtime.local.teacher_logits import teacher_logits

        return teacher_logits(self.model, micro_batches, partial(self._as_teacher, needs.teacher_logits), self.place.pp)

    def _plan(self, batch: Batch, rows: int | None) -> list[list[int]]:
        if rows is not None:
            return [list(range(i, min(i + rows, batch.rows))) for i in range(0, batch.rows, rows)]
        lengths = batch.input_lengths
        if batch.teacher_input_lengths is not None:
            lengths = torch.maximum(lengths, batch.teacher_input_lengths)
        return micro_batches(lengths.tolist(), self.local.micro_batch_tokens)

    def _from_last_stage(self, report: Any) -> Any:
        """What the last pipeline stage knows, on every stage."""
        if self.place.pp == 1:
            return report
        box = [report]
        dist.broadcast_object_list(box, src=dist.get_process_group_ranks(self._pipeline)[-1], group=self._pipeline)
        return box[0]

    # ---- checkpoints ---------------------------------------------------------------------------------------------

    def save_checkpoint(
        self,
        weights_path: str | Path,
        optimizer_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        checkpointing_cfg: Any = None,
    ) -> None:
        """Writes into existing folders: weights under Hugging Face names, fp32; AdamW's moments and step; the files
        beside the weights (config, tokenizer). None of it depends on the layout. Collective; rank 0 writes.
        """
        weights = self.export_full("weights")
        if weights is not None:
            hf_checkpoint.write_tensors(weights, Path(weights_path) / hf_checkpoint.WEIGHTS)
        if tokenizer_path is not None and dist.get_rank() == 0:
            hf_checkpoint.copy_companions(self.model_path, Path(tokenizer_path))
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
            "steps_done": self._updater.steps_done,
            "total_steps": self._updater.total_steps,
            "settings": self._updater.settings.model_dump(),
        }
        (folder / OPTIMIZER_STATE).write_text(json.dumps(state, indent=2) + "\n")

    def load_checkpoint(self, path: str | Path, optimizer_path: str | Path | None = None) -> None:
        """The inverse of `save_checkpoint(path, optimizer_path or path)`, any layout; `configure` comes before."""
        from safetensors.torch import load_file

        from nemo_tapo.runtime.local.optimizer import MOMENTS

        assert self._updater is not None, "configure comes before load_checkpoint"
        path = Path(path)
        optimizer = Path(optimizer_path or path)
        state = json.loads((optimizer / OPTIMIZER_STATE).read_text())
        self._set_weights(hf_checkpoint.read_weights(path))
        full = load_file(optimizer / OPTIMIZER_WEIGHTS)
        moments = {
            kind: split({n.removeprefix(f"{kind}."): t for n, t in full.items()}, self.info.shape, self.place)
            for kind in MOMENTS
        }
        self._updater.restore(state["steps_done"], moments)

    # ---- phases: NeMo-RL moves memory here; on a CPU there is nothing to move -------------------------------------

    def ready(self) -> dict[str, int]:
        """Answers when the model stands: {"rank", "pid"}."""
        return {"rank": dist.get_rank(), "pid": os.getpid()}

    def prepare_for_lp_inference(self) -> None: ...

    def prepare_for_training(self, *args: Any, **kwargs: Any) -> None: ...

    def offload_before_refit(self) -> None: ...

    def offload_after_refit(self) -> None: ...

    def shutdown(self) -> None:
        """Leaves the process groups; the worker is of no use afterwards, and its process free for another one."""
        from megatron.core import parallel_state as mpu

        mpu.destroy_model_parallel()
        if dist.is_initialized():
            dist.destroy_process_group()


def interface_towards(init_method: str) -> str:
    """The network interface by which ranks that meet at `init_method` talk. It is the loopback one, so that nothing
    outside this machine reaches us, unless they meet at an address that others see.
    """
    host = urlsplit(init_method).hostname
    if host is None:
        return "lo"
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        probe.connect((host, 9))  # sends nothing: the kernel chooses the way there
        own = str(probe.getsockname()[0])
    for name, addresses in psutil.net_if_addrs().items():
        if any(address.address == own for address in addresses):
            return str(name)
    raise RuntimeFailure(f"no network interface of this node has the address {own}, by which {host} is reached.")


def _without_loss(data: Data) -> Batch:
    """A Batch for a forward pass: NeMo-RL hands over ids and lengths, perhaps nothing else."""
    ids, lengths = data["input_ids"], data["input_lengths"]
    nothing = torch.zeros(len(lengths))
    return Batch(ids, lengths, torch.zeros(ids.shape), nothing, nothing, nothing, nothing.bool())


def _assemble(parts: Sequence[Tensor], plan: list[list[int]], batch: Batch, fill: float) -> Tensor:
    """Micro-batches' [b, s] results as one [B, S] in the caller's row order; `fill` outside the rows."""
    out = torch.full(batch.input_ids.shape, fill)
    for part, rows in zip(parts, plan, strict=False):  # no parts at all on a stage that is not the last
        out[rows, : part.shape[1]] = part
    outside = torch.arange(out.shape[1]) >= batch.input_lengths[:, None]
    return out.masked_fill_(outside, fill)


def _summed(value: float) -> float:
    total = torch.tensor(value, dtype=torch.float64)
    if dist.get_world_size() > 1:
        dist.all_reduce(total)
    return float(total)


def _value(part: Part) -> float:
    assert isinstance(part, Sum), "a loss is a sum over micro-batches"
    return part.value
