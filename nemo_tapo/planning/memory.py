"""Estimate the bytes a GPU needs, by class, for Megatron actors and vLLM engines, colocated or on separate GPUs.

The estimate assumes Adam: bf16 weights and gradients, fp32 master weights and two moments (12 bytes per parameter,
divided among the data parallel ranks by the distributed optimizer); in fp32 the weights are their own master.
Activations are counted per saved tensor of a layer with flash attention, following Korthikanti et al., arXiv
2205.05198, adapted to grouped queries and SwiGLU. TP shards the matrices (with sequence parallelism also the rest of a
layer), PP the layers, CP the tokens, EP the experts.
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, ClusterSetup, GiB
from nemo_tapo.planning.model_shape import ModelShape

BF16, FP32 = 2, 4


def optimizer_bytes(setup: ClusterSetup) -> int:
    """Return the bytes of a parameter's optimizer state: two moments, and a master weight unless weights are fp32."""
    return (2 if setup.policy_bytes == FP32 else 3) * FP32


def name_precision(size: int) -> str:
    """Name a number format by its bytes.

    >>> name_precision(2), name_precision(4), name_precision(1)
    ('bf16', 'fp32', 'fp8')
    """
    return {1: "fp8", 2: "bf16", 4: "fp32"}[size]


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
    experts = shape.expert_parameters / setup.pp
    matrices = shape.attention_parameters + shape.dense_ffn_parameters
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
    q, kv = shape.heads * shape.head_dim, (shape.heads if shape.latent else shape.kv_heads) * shape.head_dim
    norms = 4 * shape.hidden / hidden_shards  # input and output of both norms
    attention = (q + 2 * kv + 2 * (q + kv) * shape.qk_norm + q) / tp  # q k v, normed and rotated q k, output
    attention += (2 * shape.heads * shape.rotary + shape.latent + shape.query_rank) / tp
    width = shape.ffn * max(1, shape.experts_per_token + shape.shared_experts)
    ffn = 3 * width / (setup.etp if shape.experts else tp)  # gate, up, their product
    if shape.experts:
        ffn += 2 * shape.hidden * shape.experts_per_token / hidden_shards  # tokens sent to experts and back
    if setup.recompute & {"mlp", "moe"}:
        ffn = 0
    elif "moe_act" in setup.recompute:
        ffn *= 2 / 3
    return setup.policy_bytes * (norms + attention + ffn)


def activation_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes saved between forward and backward.

    The first stage of a pipeline holds PP micro-batches at a time.
    """
    tokens = setup.micro_batch_tokens / setup.cp
    layers = shape.layers / setup.pp
    one = layer_activation_bytes(shape, setup)
    if "full" not in setup.recompute:
        return tokens * setup.pp * layers * one
    inputs = setup.policy_bytes * shape.hidden / (setup.tp if setup.sequence_parallel else 1)
    return tokens * (setup.pp * layers * inputs + one)


def logits_bytes(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    """Return the bytes of the last stage's logits and their gradient, and of one fp32 chunk of log-probabilities.

    With packed rows the loss takes each row's logits out of the micro-batch's, and the gradient of that is as large as
    all of them: it is added to what the rows before it left.
    """
    columns = shape.vocab / setup.tp
    tokens = setup.micro_batch_tokens / setup.cp
    cast = setup.fp32_logits and setup.policy_bytes != FP32
    size = FP32 if setup.fp32_logits else setup.policy_bytes
    second = {"second gradient of packed logits": tokens * columns * size} if setup.packed else {}
    return {
        "logits and their gradient": tokens * columns * (2 * size + (setup.policy_bytes if cast else 0)),
        **second,
        "log-probability and entropy chunk": min(setup.logit_chunk, tokens) * columns * FP32 * 3,
    }


def name_optimizer(setup: ClusterSetup) -> str:
    """Name the optimizer's state."""
    return "optimizer (two fp32 moments)" if setup.policy_bytes == FP32 else "optimizer (fp32 master, two moments)"


def training_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> Phase:
    """Return the memory of the update on the pipeline stage that needs most."""
    return max(
        (stage_training_phase(shape, setup, assumed, s) for s in {0, setup.pp - 1}), key=lambda phase: phase.total
    )


def stage_training_phase(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions, stage: int) -> Phase:
    """Return the memory of the update on a rank of pipeline stage `stage`."""
    rank = count_rank_parameters(shape, setup, stage)
    classes = {
        f"weights ({name_precision(setup.policy_bytes)})": setup.policy_bytes * rank.total,
        "gradients": (FP32 if setup.fp32_gradients else setup.policy_bytes) * rank.total,
        name_optimizer(setup): optimizer_bytes(setup) * rank.optimizer_share * (1 - setup.offloaded_optimizer),
    }
    if not setup.precision_aware and setup.policy_bytes != FP32:
        classes["gradients' fp32 copy"] = FP32 * rank.optimizer_share
    in_flight = 1 if setup.pp == 1 or stage == 0 else 1 / setup.pp
    classes["activations"] = activation_bytes(shape, setup) * in_flight
    if stage == setup.pp - 1:
        classes |= logits_bytes(shape, setup)
    if setup.colocated:
        classes["sleeping engine"] = asleep_bytes(setup, assumed)
    classes["reserved"] = assumed.reserved_gib * GiB
    return Phase("training", classes, GPUS[assumed.gpu].memory)


def asleep_bytes(setup: ClusterSetup, assumed: Assumptions) -> float:
    """Return the bytes that a sleeping engine keeps on one GPU."""
    return assumed.choose_asleep_gib(setup.engine_tp * setup.engine_pp) * GiB


def engine_weight_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes of the policy's weights on one GPU of an engine."""
    return setup.engine_bytes * shape.parameters / (setup.engine_tp * setup.engine_pp)


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
        f"weights ({name_precision(setup.policy_bytes)})": setup.policy_bytes
        * max(count_rank_parameters(shape, setup, s).total for s in {0, setup.pp - 1}),
        "engine's weights": engine_weight_bytes(shape, setup),
        "sleeping engine": asleep_bytes(setup, assumed),
        "reserved": assumed.reserved_gib * GiB,
    }
    return Phase("handing weights over", classes, GPUS[assumed.gpu].memory)


def phases(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> list[Phase]:
    """Return every phase of a step, each for the GPU that needs most."""
    colocated = [handover_phase(shape, setup, assumed)] if setup.colocated else []
    return [generation_phase(shape, setup, assumed), *colocated, training_phase(shape, setup, assumed)]


def kv_cache_tokens(shape: ModelShape, setup: ClusterSetup, assumed: Assumptions) -> int:
    """Return the number of tokens whose keys and values fit into one engine's KV cache.

    TP divides the key-value heads; beyond their number it repeats them.
    """
    cache = generation_phase(shape, setup, assumed).classes["KV cache"] * setup.engine_pp
    return int(cache * min(setup.engine_tp, shape.kv_heads) / (setup.cache_bytes * shape.kv_values_per_token))


def host_bytes(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    """Return the peak bytes on a node's host: what is offloaded for the engines, and the frozen reference."""
    rank = count_rank_parameters(shape, setup, 0)
    gpus, classes = setup.gpus_per_node, dict[str, float]()
    state = optimizer_bytes(setup) * rank.optimizer_share
    if setup.colocated:
        classes["policy's weights and optimizer, put aside"] = gpus * (setup.policy_bytes * rank.total + state)
        classes["engine's weights, put aside"] = gpus * engine_weight_bytes(shape, setup)
    elif setup.offloaded_optimizer:
        classes["optimizer"] = gpus * state * setup.offloaded_optimizer
    if setup.reference:
        classes["reference, and the policy while it scores"] = 2 * gpus * setup.policy_bytes * rank.total
    return classes


def conversion_host_bytes(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    """Return the bytes on a node's host while NeMo-RL converts the Hugging Face model, once, before the first step.

    Every process has the tensors of its own ranks copied to be written, and reads the files, which stay in the page
    cache as far as there is room. Engines that share the GPUs sleep meanwhile, with their weights on the host.
    """
    rank = count_rank_parameters(shape, setup, 0)
    classes = {
        "converted weights, to be written": setup.gpus_per_node * setup.policy_bytes * rank.total,
        "the model's files": BF16 * float(shape.parameters),
    }
    if setup.colocated:
        classes["engine's weights, put aside"] = setup.gpus_per_node * engine_weight_bytes(shape, setup)
    return classes


def host_phases(shape: ModelShape, setup: ClusterSetup) -> dict[str, dict[str, float]]:
    """Return the bytes on a node's host by class, for each time at which it holds most and holds anything."""
    phases = {"in the steps": host_bytes(shape, setup)}
    if setup.megatron:
        phases["while the model is converted"] = conversion_host_bytes(shape, setup)
    return {when: classes for when, classes in phases.items() if classes}


def checkpoint_bytes(shape: ModelShape, setup: ClusterSetup) -> float:
    """Return the bytes of one checkpoint on disk: the weights, and the optimizer's fp32 state if it is saved."""
    return float(shape.parameters * (setup.policy_bytes + optimizer_bytes(setup) * setup.saves_optimizer))
