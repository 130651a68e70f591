"""A policy worker on CPUs for the contract tests: this package's Megatron worker under NeMo-RL's own `Policy`.

NeMo-RL's MegatronPolicyWorker needs GPUs. Its `Policy`, worker groups, sharding and aggregation do not: with
`Policy(worker_extension_cls_fqn=POLICY_WORKER)` they drive this class instead. Weights go to the engine
(cpu/generation.py) through files, where NeMo-RL's workers use CUDA IPC.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.distributed import TCPStore  # type: ignore[attr-defined]

from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import LossNeeds, LossOutput
from nemo_tapo.runtime.local import hf_checkpoint
from nemo_tapo.runtime.local.worker import Data, MegatronWorker
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.logit_loss import from_numbers, to_numbers
from nemo_tapo.types import Batch

POLICY_WORKER = f"{__name__}.CpuPolicyWorker"
REFIT_FOLDER = "NEMO_TAPO_CPU_REFIT"  # environment variable: the folder through which weights go to the engine


class CpuPolicyWorkerImpl(MegatronWorker):
    """One rank. `Policy` creates it and calls it like its own workers."""

    def __init__(
        self,
        config: Mapping[str, Any],
        tokenizer: Any = None,
        processor: Any = None,
        init_optimizer: bool = True,
        weights_path: str | None = None,
        optimizer_path: str | None = None,
        init_reference_model: bool = True,
        worker_sharding_annotations: Any = None,
        pre_init_communication_queue: Any = None,
    ) -> None:
        """Start one rank from NeMo-RL's `policy` section; `Policy` calls this, by keyword."""
        megatron, world = config["megatron_cfg"], int(os.environ["WORLD_SIZE"])
        tp, pp = megatron["tensor_model_parallel_size"], megatron["pipeline_model_parallel_size"]
        local = LocalConfig(tp=tp, pp=pp, dp=world // (tp * pp), threads=world, call_timeout=120)
        rank, host, port = int(os.environ["RANK"]), os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"])
        if rank == 0:  # NeMo-RL has chosen the port and leaves it to this rank to serve the store there
            self._store = TCPStore(host, port, is_master=True, wait_for_workers=False)
        super().__init__(rank, world, f"tcp://{host}:{port}", config["model_name"], local)
        self.cfg, self._refits = config, 0
        if init_reference_model:
            self.set_reference()
        if init_optimizer:
            self.configure(make_optimizer_config(megatron, config["max_grad_norm"]), megatron["train_iters"])
        self._rate = make_megatron_schedule(megatron)
        if weights_path is not None:
            self.load_checkpoint(weights_path, optimizer_path)

    @property
    def temperature(self) -> float:
        """policy.generation.temperature; NeMo-RL's workers divide all logits by it."""
        return float(self.cfg["generation"]["temperature"])

    # ---- computation -----------------------------------------------------------------------------------------------

    def get_logprobs(self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0) -> Any:
        """Return BatchedDataDict {"logprobs": [B, S]}."""
        return compat.load("BatchedDataDict")(super().get_logprobs(data=data, temperature=self.temperature))

    def get_reference_policy_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> Any:
        """Return BatchedDataDict {"reference_logprobs": [B, S]}."""
        scores = super().get_reference_policy_logprobs(data=data, temperature=self.temperature)
        return compat.load("BatchedDataDict")(scores)

    def train(
        self,
        data: Data,
        loss_fn: Any,
        eval_mode: bool = False,
        gbs: int | None = None,
        mbs: int | None = None,
        check_dim_skip_keys: Any = None,
    ) -> dict[str, Any]:
        """Make one update; report each metric as NeMo-RL's Megatron worker does, as a list over micro-batches."""
        assert self._optimizer is not None
        rate = {"lr": self._rate(self._optimizer.steps_done), "schedule": "constant", "warmup_steps": 0}
        self._optimizer.settings = self._optimizer.settings.model_copy(update=rate)
        report = super().train(data, _NemoLossAdapter(loss_fn, self.temperature), eval_mode, gbs, mbs)
        shares = [{**to_numbers(metrics), "lr": report["lr"], "wd": 0.0} for metrics in report["metrics"]]
        return {
            "global_loss": torch.tensor([report["loss"]]),
            "grad_norm": torch.tensor([report["grad_norm"]]),
            "all_mb_metrics": {name: [share[name] for share in shares] for name in shares[0]},
            "rank": int(os.environ["RANK"]),
            "gpu_name": "none",
            "model_dtype": torch.float32,
        }

    # ---- files -----------------------------------------------------------------------------------------------------

    def save_checkpoint(
        self,
        weights_path: str | Path,
        optimizer_path: str | Path | None = None,
        tokenizer_path: str | Path | None = None,
        checkpointing_cfg: Any = None,
    ) -> None:
        """Save as `MegatronWorker.save_checkpoint` does; create folders that do not exist."""
        for path in (weights_path, optimizer_path, tokenizer_path):
            Path(path or weights_path).mkdir(parents=True, exist_ok=True)
        super().save_checkpoint(weights_path, optimizer_path, tokenizer_path)

    def finalize_async_save(self) -> None:
        """Do nothing: `save_checkpoint` returns when everything is written."""

    def stream_weights_via_ipc_zmq(self, buffer_size_bytes: int = 0, kv_scales: Any = None) -> None:
        """Write the weights for the engine to a file, which gets its final name when it is complete. Collective."""
        self._refits += 1
        weights = self.export_full()
        if weights is not None:
            final = Path(os.environ[REFIT_FOLDER]) / f"{self._refits}.safetensors"
            building = final.with_suffix(".tmp")
            hf_checkpoint.write_tensors(weights, building)
            building.rename(final)

    def prepare_refit_info(self) -> dict[str, Any]:
        """Return nothing: the engine reads names and sizes from the file."""
        return {}

    # ---- memory: nothing to move on a CPU --------------------------------------------------------------------------

    def prepare_for_lp_inference(self, keep_train_buffers: bool = False) -> None: ...

    def get_free_memory_bytes(self) -> int:
        """Return any number: it sets the size of NeMo-RL's transfer buffer, which is not used here."""
        return 2**30

    def report_node_ip_and_gpu_id(self) -> tuple[str, int]:
        """Return the address and the rank, for the table that NeMo-RL's setup prints."""
        return "127.0.0.1", int(os.environ["RANK"])


@dataclass(frozen=True)
class _NemoLossAdapter:
    """Adapt a loss function of NeMo-RL to this package's Megatron worker."""

    loss_fn: Any
    temperature: float
    needs: ClassVar[LossNeeds] = LossNeeds()

    def __call__(
        self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher_logits: Tensor | None = None
    ) -> LossOutput:
        unused = torch.tensor(float("nan"))  # in place of NeMo-RL's normalisers: a loss that used them would become NaN
        loss, numbers = self.loss_fn(
            data=batch.as_dict(),
            global_valid_seqs=unused,
            global_valid_toks=unused,
            logits=logits / self.temperature if self.temperature != 1 else logits,
        )
        return LossOutput(loss, from_numbers(numbers))


def make_megatron_schedule(megatron: Mapping[str, Any]) -> Callable[[int], float]:
    """Return Megatron's own schedule: updates done so far -> learning rate of the next one.

    The first update has lr_warmup_init, and update lr_warmup_iters + 1 has lr.
    """
    from megatron.core.optimizer_param_scheduler import OptimizerParamScheduler

    adam, schedule = megatron["optimizer"], megatron["scheduler"]
    scheduler = OptimizerParamScheduler(
        SimpleNamespace(param_groups=[]),
        init_lr=schedule["lr_warmup_init"],
        max_lr=adam["lr"],
        min_lr=adam["min_lr"],
        lr_warmup_steps=schedule["lr_warmup_iters"],
        lr_decay_steps=schedule["lr_decay_iters"],
        lr_decay_style=schedule["lr_decay_style"],
        start_wd=adam["weight_decay"],
        end_wd=adam["weight_decay"],
        wd_incr_steps=0,
        wd_incr_style="constant",
    )

    def rate(updates: int) -> float:
        scheduler.num_steps = updates
        return float(scheduler.get_lr({}))

    return rate


def make_optimizer_config(megatron: Mapping[str, Any], max_grad_norm: float) -> OptimizerConfig:
    """Return this package's optimizer settings from policy.megatron_cfg.optimizer and .scheduler."""
    adam, schedule = megatron["optimizer"], megatron["scheduler"]
    return OptimizerConfig(
        lr=adam["lr"],
        betas=(adam["adam_beta1"], adam["adam_beta2"]),
        eps=adam["adam_eps"],
        weight_decay=adam["weight_decay"],
        clip_norm=max_grad_norm,
        warmup_steps=schedule["lr_warmup_iters"],
        schedule="cosine" if schedule["lr_decay_style"] == "cosine" else "constant",
        min_lr_ratio=adam["min_lr"] / adam["lr"],
    )


def __getattr__(name: str) -> Any:
    """Return `CpuPolicyWorker`, the Ray actor class, made on first access so that importing this imports no Ray."""
    if name != "CpuPolicyWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import ray

    return ray.remote(CpuPolicyWorkerImpl)
