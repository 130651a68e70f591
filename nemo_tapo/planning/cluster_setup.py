"""The inputs of an estimate: the layout of ranks and engines, the size of a step, and the assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from nemo_tapo.config.sections import Section

GiB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One accelerator: data sheet values, except memory, which is what the driver reports."""

    memory: float  # bytes
    bandwidth: float  # bytes/s
    flops: float  # dense bf16, 1/s


GPUS = {
    "A100": Gpu(79.2 * GiB, 2.04e12, 312e12),
    "H100": Gpu(79.1 * GiB, 3.35e12, 989e12),
    "H200": Gpu(139.8 * GiB, 4.8e12, 989e12),
    "B200": Gpu(178.4 * GiB, 8.0e12, 2250e12),
}


class Assumptions(Section):
    """The section `tapo.plan`: values that `nemo-tapo plan` must assume. They do not change a run."""

    gpu: Literal["A100", "H100", "H200", "B200"] = "H100"
    reserved_gib: float = Field(8, ge=0, description="CUDA contexts, NCCL and cuBLAS buffers, fragmentation, GiB a GPU")
    asleep_gib: float = Field(2, ge=0, description="what a sleeping vLLM keeps, GiB a GPU")
    engine_working_gib: float = Field(4, ge=0, description="vLLM's activations and CUDA graphs, GiB a GPU")
    host_memory_gib: float | None = Field(None, gt=0, description="of a node; null: not checked")
    prompt_tokens: int = Field(200, gt=0, description="mean question")
    response_share: float = Field(0.3, gt=0, le=1, description="mean response over the longest allowed")
    constructed_share: float = Field(0.35, ge=0, le=1, description="constructed rows over the most that fit a step")
    mfu: float = Field(0.35, gt=0, le=1, description="training: share of the GPU's FLOP/s")
    decode_efficiency: float = Field(0.5, gt=0, le=1, description="decoding: share of the GPU's bandwidth")
    decode_overhead_ms: float = Field(4, ge=0, description="scheduling of one decoding step")
    transfer_gb_s: float = Field(20, gt=0, description="weights and optimizer between GPU and host, GB/s a GPU")
    other_seconds: float = Field(5, ge=0, description="grading, collating, logging of a step")


@dataclass(frozen=True)
class ClusterSetup:
    """A cluster run in numbers, which `runtime/nemo_rl/config/translate.py` derives from NeMo-RL's keys."""

    nodes: int
    gpus_per_node: int
    train_gpus: int  # GPUs of the policy; with colocated engines, all GPUs
    engine_gpus: int
    megatron: bool  # False: DTensor
    tp: int
    pp: int
    cp: int
    ep: int  # expert parallel
    etp: int  # tensor parallel within an expert
    sequence_parallel: bool
    recompute: frozenset[str]  # {"full"} or the modules that are recomputed
    micro_batch_tokens: int  # of one training micro-batch at most, before CP divides them
    logit_chunk: int  # tokens
    fp32_logits: bool  # the whole micro-batch's logits are cast to fp32
    fp32_gradients: bool
    distributed_optimizer: bool
    precision_aware: bool  # no fp32 copy of the gradients
    offloaded_optimizer: float  # share of the optimizer that stays on the host, [0, 1]
    colocated: bool
    engine_tp: int
    engine_pp: int
    engine_memory: float  # gpu_memory_utilization
    reference: bool  # a frozen reference policy is kept (on the host)
    queries: int  # P
    samples: int  # K
    most_constructed: int  # rows a step
    deferred: bool  # they are synthesised beside the next step's rollouts
    lag: int  # 1: a step is sampled beside the update of the step before
    update_rows: int  # rows of one update, fixed: filled up with masked rows
    updates: int  # a step
    max_response: int  # tokens
    max_synthesis: int
    max_row: int  # query and response
    max_model_len: int  # engine: prompt and completion
    steps: int
    save_every: int
    kept: int | None  # checkpoints; None: all
    saves_optimizer: bool

    @property
    def dp(self) -> int:
        """Data parallel ranks of the policy: its GPUs divided by TP x PP x CP."""
        return self.train_gpus // (self.tp * self.pp * self.cp)

    @property
    def engines(self) -> int:
        """Number of engines, each with a copy of the policy."""
        return self.engine_gpus // (self.engine_tp * self.engine_pp)

    @property
    def originals(self) -> int:
        """Rollouts in a step, P x K."""
        return self.queries * self.samples


def update_rows(queries: int, samples: int, most_a_query: int, updates: int, multiple: int) -> int:
    """Return the rows of one update with as many constructed rows as possible, rounded up to `multiple`.

    The count is the same at every step because NeMo-RL's learning-rate schedule advances by rows.

    >>> update_rows(queries=32, samples=8, most_a_query=4, updates=1, multiple=5)  # 32 x (8 + 4) = 384
    385
    """
    rows = -(-queries // updates) * (samples + most_a_query)
    return -(-rows // multiple) * multiple
