"""The inputs of an estimate: the layout of ranks and engines, the size of a step, and the assumptions."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from pydantic import Field

from nemo_tapo.config.sections import Section

GiB = 2**30


@dataclass(frozen=True)
class Gpu:
    """One accelerator: data sheet values, except memory, which is what the driver reports (but GB200's)."""

    memory: float  # bytes
    bandwidth: float  # bytes/s
    flops: float  # dense bf16, 1/s
    flops_fp32: float  # 1/s, without tensor cores
    fp8_speed: float = 2.0  # FLOP/s in FP8 over bf16


GPUS = {
    "A100": Gpu(79.2 * GiB, 2.04e12, 312e12, 19.5e12, fp8_speed=1.0),
    "H100": Gpu(79.1 * GiB, 3.35e12, 989e12, 67e12),
    "H200": Gpu(139.8 * GiB, 4.8e12, 989e12, 67e12),
    "B200": Gpu(178.4 * GiB, 8.0e12, 2250e12, 75e12),
    "GB200": Gpu(186e9, 8.0e12, 2500e12, 80e12),
}


class Assumptions(Section):
    """The section `tapo.plan`: values that `nemo-tapo plan` must assume. They do not change a run."""

    gpu: Literal["A100", "H100", "H200", "B200", "GB200"] = "H100"
    reserved_gib: float = Field(8, ge=0, description="CUDA contexts, NCCL and cuBLAS buffers, fragmentation, GiB a GPU")
    asleep_gib: float | None = Field(
        None, ge=0, description="what a sleeping vLLM keeps, GiB a GPU; null: 2, and 7 in an engine of several GPUs"
    )
    engine_working_gib: float = Field(4, ge=0, description="vLLM's activations and CUDA graphs, GiB a GPU")
    host_memory_gib: float | None = Field(None, gt=0, description="of a node; null: not checked")
    prompt_tokens: int = Field(200, gt=0, description="mean question")
    response_share: float = Field(0.3, gt=0, le=1, description="mean response over the longest allowed")
    length_sigma: float = Field(
        0.8, gt=0, description="deviation of the logarithm of a length, which is cut at the longest"
    )
    constructed_share: float = Field(0.35, ge=0, le=1, description="constructed rows over the most that fit a step")
    prefilled_share: float = Field(0.4, ge=0, lt=1, description="what tapo.prefix: prefilled gives of an answer")
    uniform_share: float = Field(0.3, ge=0, lt=1, description="queries that dynamic sampling replaces")
    mfu: float = Field(0.38, gt=0, le=1, description="training: share of the GPU's FLOP/s")
    moe_layer_ms: float = Field(
        5,
        ge=0,
        description="routing and exchanging tokens in a layer with experts, a forward pass of a micro-batch",
    )
    decode_efficiency: float = Field(0.6, gt=0, le=1, description="decoding: share of the GPU's bandwidth")
    decode_overhead_ms: float = Field(4, ge=0, description="scheduling and launches of one decoding step")
    allreduce_us: float = Field(10, ge=0, description="between an engine's GPUs in one node, for one token each")
    allreduce_across_us: float = Field(90, ge=0, description="the same where the engine spans several nodes")
    transfer_gb_s: float = Field(20, gt=0, description="weights and optimizer between GPU and host, GB/s a GPU")
    refit_gb_s: float = Field(20, gt=0, description="weights to engines on the same GPUs, GB/s of the whole model")
    broadcast_gb_s: float = Field(94, gt=0, description="weights to engines on other GPUs, GB/s of the whole model")
    other_seconds: float = Field(5, ge=0, description="grading, collating, logging of a step")

    def choose_asleep_gib(self, engine_gpus: int) -> float:
        """Return the GiB a GPU that a sleeping engine of so many GPUs keeps.

        With TP 2, 7.2 GiB were seen where TP 1 kept 0.8 (NeMo-RL issue 223).

        >>> Assumptions().choose_asleep_gib(1), Assumptions().choose_asleep_gib(4)
        (2.0, 7.0)
        """
        if self.asleep_gib is not None:
            return self.asleep_gib
        return 2.0 if engine_gpus == 1 else 7.0


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
    uneven_stages: bool = False  # the first or last stage of the pipeline has another number of layers
    score_batch_tokens: int | None = None  # of one micro-batch that is only scored; None: as in training
    packed: bool = True  # several rows in a micro-batch, as sequence packing puts them there
    policy_bytes: int = 2  # of a weight; 4 in fp32, whose optimizer keeps no further copy
    engine_bytes: int = 2  # of an engine's weight
    cache_bytes: int = 2  # of a number in its KV cache
    fp8_training: bool = False  # matrix products of the policy in FP8
    barrier: bool = False  # synthesis begins when the last rollout has ended
    prefilled: bool = False  # the kept prefix is given to the engine
    sampled_at_most: float = 1.0  # queries over those of a step, with dynamic sampling
    validated: int = 0  # responses of a validation between steps
    validate_every: int | None = None  # steps
    scores_old: bool = False  # old log-probabilities are computed though there is one update
    lag: int = 0  # steps that the rollouts are ahead of the update; 0: one waits for the other

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
