"""Estimate the bytes a GPU needs, by class, for Megatron actors and vLLM engines, colocated or on separate GPUs.

The estimate assumes mixed precision with Adam: bf16 weights and gradients, fp32 master weights and two moments (12
bytes per parameter, divided among the data parallel ranks by the distributed optimizer). Activations are counted per
saved tensor of a layer with flash attention, following Korthikanti et al., arXiv 2205.05198, adapted to grouped queries
and SwiGLU. TP shards the matrices (with sequence parallelism also the rest of a layer), PP the layers, CP the tokens,
EP the experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup, GiB
from nemo_tapo.planning.model_shape import ModelShape

BF16, FP32 = 2, 4
OPTIMIZER_BYTES = 3 * FP32  # master weight and two moments


@dataclass(frozen=True)
class Phase:
    """The memory in use on one GPU during one phase of a step.

    >>> phase = Phase("training", {"gradients": 2.0, "activations": 7.0}, capacity=8.0)
    >>> phase.total, phase.fits, phase.largest
    (9.0, False, 'activations')
    """

    name: str
    classes: dict[str, float]  # class -> bytes
    capacity: float  # bytes

    @property
    def total(self) -> float:
        return sum(self.classes.values())

    @property
    def fits(self) -> bool:
        return self.total <= self.capacity

    @property
    def largest(self) -> str:
        """The largest class: the first one to reduce when the phase does not fit."""
        return max(self.classes, key=lambda name: self.classes[name])


@dataclass(frozen=True)
class RankParameters:
    """The parameters of one rank, and how many ranks share their optimizer state.

    >>> RankParameters(dense=80.0, expert=12.0, dense_ranks=8, expert_ranks=4).optimizer_share
    13.0
    """

    dense: float
    expert: float
    dense_ranks: int
    expert_ranks: int

    @property
    def total(self) -> float:
        return self.dense + self.expert

    @property
    def optimizer_share(self) -> float:
        """The number of parameters whose optimizer state this rank keeps."""
        return self.dense / self.dense_ranks + self.expert / self.expert_ranks


def count_rank_parameters(shape: ModelShape, setup: ClusterSetup, stage: int) -> RankParameters:
    """Count the parameters on a rank of pipeline stage `stage`.

    The first stage holds the input embedding, the last one the output embedding.
    """
    layers = shape.layers / setup.pp
    experts = layers * shape.ffn_parameters if shape.experts else 0.0
    matrices = shape.attention_parameters + (0 if shape.experts else shape.ffn_parameters)
    first, last = stage == 0, stage == setup.pp - 1
    embeddings = shape.embedding_parameters * (1 if first and last and shape.tied else first + last)
    dense = (layers * matrices + embeddings) / setup.tp + layers * shape.norm_parameters
    shared = setup.distributed_optimizer
    return RankParameters(
        dense=dense,
        expert=experts / (setup.ep * setup.etp),
        dense_ranks=setup.dp * setup.cp if shared else 1,
        expert_ranks=setup.train_gpus // (setup.pp * setup.ep * setup.etp) if shared else 1,
    )


def layer_activation_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes per token that one layer saves for its backward pass, on one rank."""
    tp = setup.tp
    hidden_shards = tp if setup.sequence_parallel else 1  # tensors of the full hidden size
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 4 * shape.hidden / hidden_shards  # input and output of both norms
    attention = (q + 2 * kv + 2 * (q + kv) * shape.qk_norm + q) / tp  # q k v, normed and rotated q k, output
    width = shape.ffn * max(1, shape.experts_per_token)
    ffn = 3 * width / (setup.etp if shape.experts else tp)  # gate, up, their product
    if shape.experts:
        ffn += 2 * shape.hidden * shape.experts_per_token / hidden_shards  # tokens sent to experts and back
    if setup.recompute & {"mlp", "moe"}:
        ffn = 0
    elif "moe_act" in setup.recompute:
        ffn *= 2 / 3
    return BF16 * (norms + attention + ffn)


def activation_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes saved between forward and backward.

    The first stage of a pipeline holds PP micro-batches at a time.
    """
    tokens = setup.micro_batch_tokens / setup.cp
    layers = shape.layers / setup.pp
    one = layer_activation_bytes(shape, setup)
    if "full" not in setup.recompute:
        return tokens * setup.pp * layers * one
    inputs = BF16 * shape.hidden / (setup.tp if setup.sequence_parallel else 1)
    return tokens * (setup.pp * layers * inputs + one)


def logits_bytes(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    """Return the bytes of the last stage's logits and their gradient, and of one fp32 chunk of log-probabilities."""
    columns = shape.vocab / setup.tp
    tokens = setup.micro_batch_tokens / setup.cp
    bytes_each = FP32 + FP32 + BF16 if setup.fp32_logits else BF16 + BF16
    return {
        "logits and their gradient": tokens * columns * bytes_each,
        "log-probability and entropy chunk": min(setup.logit_chunk, tokens) * columns * FP32 * 3,
    }


def training_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Phase:
    """Return the memory of the update on the pipeline stage that needs most."""
    return max(
        (stage_training_phase(shape, setup, assumed, s) for s in {0, setup.pp - 1}), key=lambda phase: phase.total
    )


def stage_training_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, stage: int) -> Phase:
    """Return the memory of the update on a rank of pipeline stage `stage`."""
    rank = count_rank_parameters(shape, setup, stage)
    classes = {
        "weights (bf16)": BF16 * rank.total,
        "gradients": (FP32 if setup.fp32_gradients else BF16) * rank.total,
        "optimizer (fp32 master, two moments)": OPTIMIZER_BYTES
        * rank.optimizer_share
        * (1 - setup.offloaded_optimizer),
    }
    if not setup.precision_aware:
        classes["gradients' fp32 copy"] = FP32 * rank.optimizer_share
    in_flight = 1 if setup.pp == 1 or stage == 0 else 1 / setup.pp
    classes["activations"] = activation_bytes(shape, setup) * in_flight
    if stage == setup.pp - 1:
        classes |= logits_bytes(shape, setup)
    if setup.colocated:
        classes["sleeping engine"] = assumed.asleep_gib * GiB
    classes["reserved"] = assumed.reserved_gib * GiB
    return Phase("training", classes, GPUS[assumed.gpu].memory)


def engine_weight_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes of the policy's weights on one GPU of an engine."""
    return BF16 * shape.parameters / (setup.engine_tp * setup.engine_pp)


def generation_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Phase:
    """Return the memory during rollouts and synthesis. vLLM gives its KV cache what the weights leave of its share."""
    gpu = GPUS[assumed.gpu]
    weights, working = engine_weight_bytes(shape, setup), assumed.engine_working_gib * GiB
    cache = max(0.0, gpu.memory * setup.engine_memory - weights - working)
    classes = {"engine's weights": weights, "engine's working memory": working, "KV cache": cache}
    if setup.colocated:
        classes["reserved"] = assumed.reserved_gib * GiB  # the policy is offloaded to the host
    return Phase("generation", classes, gpu.memory)


def handover_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Phase:
    """Return the memory while weights are copied to colocated engines: both copies are on the GPU."""
    classes = {
        "weights (bf16)": BF16 * max(count_rank_parameters(shape, setup, s).total for s in {0, setup.pp - 1}),
        "engine's weights": engine_weight_bytes(shape, setup),
        "sleeping engine": assumed.asleep_gib * GiB,
        "reserved": assumed.reserved_gib * GiB,
    }
    return Phase("handing weights over", classes, GPUS[assumed.gpu].memory)


def phases(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> list[Phase]:
    """Return every phase of a step, each for the GPU that needs most."""
    colocated = [handover_phase(shape, setup, assumed)] if setup.colocated else []
    return [generation_phase(shape, setup, assumed), *colocated, training_phase(shape, setup, assumed)]


def kv_cache_tokens(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> int:
    """Return the number of tokens whose keys and values fit into one engine's KV cache."""
    cache = generation_phase(shape, setup, assumed).classes["KV cache"] * setup.engine_tp * setup.engine_pp
    return int(cache / shape.kv_bytes_per_token)


def host_bytes(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    """Return the peak bytes on a node's host: what is offloaded for the engines, and the frozen reference."""
    rank = count_rank_parameters(shape, setup, 0)
    gpus, classes = setup.gpus_per_node, dict[str, float]()
    if setup.colocated:
        classes["policy's weights and optimizer, put aside"] = gpus * (
            BF16 * rank.total + OPTIMIZER_BYTES * rank.optimizer_share
        )
        classes["engine's weights, put aside"] = gpus * engine_weight_bytes(shape, setup)
    elif setup.offloaded_optimizer:
        classes["optimizer"] = gpus * OPTIMIZER_BYTES * rank.optimizer_share * setup.offloaded_optimizer
    if setup.reference:
        classes["reference, and the policy while it scores"] = 2 * gpus * BF16 * rank.total
    return classes


def checkpoint_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes of one checkpoint on disk: bf16 weights, and the optimizer's fp32 state if it is saved."""
    return shape.parameters * (BF16 + OPTIMIZER_BYTES * setup.saves_optimizer)
