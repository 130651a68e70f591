"""This package's Megatron worker under NeMo-RL's own `Policy`, on CPUs: what the contract tests drive.

NeMo-RL's MegatronPolicyWorker needs GPUs. Its `Policy`, its worker groups, sharding and aggregation do not: with
`Policy(worker_extension_cls_fqn=POLICY_WORKER)` they drive this class instead. Weights go to the engine (cpu_engine.py)
through files, where NeMo-RL's workers use CUDA IPC.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Tensor

from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import LossNeeds, LossOutput
from nemo_tapo.runtime.local import hf_checkpoint
from nemo_tapo.runtime.local.worker import Data, MegatronWorker
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.logit_loss import from_numbers, to_numbers
from nemo_tapo.types import Batch

POLICY_WORKER = f"{__name__}.CpuPolicyWorker"
REFIT_FOLDER = "NEMO_TAPO_CPU_REFIT"  # environment variable: where weights are handed over


class CpuPolicyWorkerImpl(MegatronWorker):
    """One rank, made and called as `Policy` makes and calls its workers."""

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
        megatron, world = config["megatron_cfg"], int(os.environ["WORLD_SIZE"])
        tp, pp = megatron["tensor_model_parallel_size"], megatron["pipeline_model_parallel_size"]
        local = LocalConfig(tp=tp, pp=pp, dp=world // (tp * pp), threads=world, call_timeout=120)
        meeting = f"tcp://{os.environ['MASTER_ADDR']}:{os.environ['MASTER_PORT']}"
        super().__init__(int(os.environ["RANK"]), world, meeting, config["model_name"], local)
        self.cfg, self._refits = config, 0
        if init_reference_model:
            self.set_reference()
        if init_optimizer:
            self.configure(optimizer_settings(megatron, config["max_grad_norm"]), megatron["train_iters"])
        if weights_path is not None:
            self.load_checkpoint(weights_path, optimizer_path)

    @property
    def temperature(self) -> float:
        """NeMo-RL's workers divide logits by it before anybody sees them."""
        return float(self.cfg["generation"]["temperature"])

    # ---- computation -----------------------------------------------------------------------------------------------

    def get_logprobs(self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0) -> Any:
        """BatchedDataDict {"logprobs": [B, S]}."""
        return compat.load("BatchedDataDict")(super().get_logprobs(data=data, temperature=self.temperature))

    def get_reference_policy_logprobs(
        self, *, data: Data, micro_batch_size: int | None = None, temperature: float = 1.0
    ) -> Any:
        """BatchedDataDict {"reference_logprobs": [B, S]}."""
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
        """One update; metrics as NeMo-RL's Megatron worker reports them, a list over micro-batches for each."""

        report = super().train(data, _NemoLoss(loss_fn, self.temperature), eval_mode, gbs, mbs)
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
        """As `MegatronWorker.save_checkpoint`, into folders that need not exist."""
        for path in (weights_path, optimizer_path, tokenizer_path):
            Path(path or weights_path).mkdir(parents=True, exist_ok=True)
        super().save_checkpoint(weights_path, optimizer_path, tokenizer_path)

    def finalize_async_save(self) -> None:
        """`save_checkpoint` returns when all is written."""

    def stream_weights_via_ipc_zmq(self, buffer_size_bytes: int = 0, kv_scales: Any = None) -> None:
        """The weights for the engine, by a file that appears when it is whole. Collective."""
        self._refits += 1
        weights = self.export_full()
        if weights is not None:
            final = Path(os.environ[REFIT_FOLDER]) / f"{self._refits}.safetensors"
            building = final.with_suffix(".tmp")
            hf_checkpoint.write_tensors(weights, building)
            building.rename(final)

    def prepare_refit_info(self) -> dict[str, Any]:
        """The engine reads names and sizes from the file."""
        return {}

    # ---- memory: there is none to move -----------------------------------------------------------------------------

    def prepare_for_lp_inference(self, keep_train_buffers: bool = False) -> None: ...

    def get_free_memory_bytes(self) -> int:
        """Decides the size of NeMo-RL's transfer buffer, which is not used here."""
        return 2**30

    def report_node_ip_and_gpu_id(self) -> tuple[str, int]:
        """For the table that NeMo-RL's setup prints."""
        return "127.0.0.1", int(os.environ["RANK"])


@dataclass(frozen=True)
class _NemoLoss:
    """A loss function of NeMo-RL's, called as the Megatron worker of this package calls a loss."""

    loss_fn: Any
    temperature: float
    needs: ClassVar[LossNeeds] = LossNeeds()

    def __call__(
        self, logits: Tensor, batch: Batch, vocab: VocabShard, teacher_logits: Tensor | None = None
    ) -> LossOutput:
        unused = torch.tensor(float("nan"))  # NeMo-RL passes its own normalisers; ours must not listen to them
        loss, numbers = self.loss_fn(
            data=batch.as_dict(),
            global_valid_seqs=unused,
            global_valid_toks=unused,
            logits=logits / self.temperature if self.temperature != 1 else logits,
        )
        return LossOutput(loss, from_numbers(numbers))


def optimizer_settings(megatron: Mapping[str, Any], max_grad_norm: float) -> OptimizerConfig:
    """policy.megatron_cfg.optimizer and .scheduler as this package's settings."""
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
    """`CpuPolicyWorker`, the Ray actor class: made when NeMo-RL asks for it, so that importing this imports no Ray."""
    if name != "CpuPolicyWorker":
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import ray

    return ray.remote(CpuPolicyWorkerImpl)
