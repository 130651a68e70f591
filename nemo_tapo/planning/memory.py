"""Bytes a GPU needs, by class, for Megatron actors and vLLM engines on the same or on other GPUs.

Mixed precision with Adam: bf16 weights and gradients, fp32 master weights and two moments (12 bytes a parameter,
shared out over the data parallel ranks by the distributed optimizer). Activations are counted per saved tensor of a
layer with flash attention, after Korthikanti et al., arXiv 2205.05198, carried over to grouped queries and SwiGLU.
Sharded by: TP (matrices, and with sequence parallelism the rest of a layer), PP (layers), CP (tokens), EP (experts).
"""

from __future__ import annotations

from dataclasses import dataclass

from nemo_tapo.planning.cluster_setup import GPUS, Assumptions, GiB, Setup
from nemo_tapo.planning.model_shape import ModelShape

BF16, FP32 = 2, 4
OPTIMIZER = 3 * FP32  # master weight and two moments


@dataclass(frozen=True)
class Phase:
    """What is on one GPU at one time of a step."""

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
        """The class to look at first when the phase does not fit."""
        return max(self.classes, key=lambda name: self.classes[name])


@dataclass(frozen=True)
class Held:
    """Parameters of one rank, and how many ranks share their optimizer."""

    dense: float
    expert: float
    dense_ranks: int
    expert_ranks: int

    @property
    def all(self) -> float:
        return self.dense + self.expert

    @property
    def optimizer_share(self) -> float:
        """Parameters whose optimizer state this rank keeps."""
        return self.dense / self.dense_ranks + self.expert / self.expert_ranks


def held(shape: ModelShape, setup: Setup, stage: int) -> Held:
    """Parameters on a rank of pipeline stage `stage`; the first has the input embedding, the last the output's."""
    layers = shape.layers / setup.pp
    experts = layers * shape.ffn_parameters if shape.experts else 0.0
    matrices = shape.attention_parameters + (0 if shape.experts else shape.ffn_parameters)
    first, last = stage == 0, stage == setup.pp - 1
    embeddings = shape.embedding_parameters * (1 if first and last and shape.tied else first + last)
    dense = (layers * matrices + embeddings) / setup.tp + layers * shape.norm_parameters
    shared = setup.distributed_optimizer
    return Held(
        dense=dense,
        expert=experts / (setup.ep * setup.etp),
        dense_ranks=setup.dp * setup.cp if shared else 1,
        expert_ranks=setup.train_gpus // (setup.pp * setup.ep * setup.etp) if shared else 1,
    )


def layer_activations(shape: ModelShape, setup: Setup) -> float:
    """Bytes a token that one layer saves for its backward pass, on one rank."""
    tp = setup.tp
    whole = tp if setup.sequence_parallel else 1  # tensors of the full hidden size
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    norms = 4 * shape.hidden / whole  # input and output of both norms
    attention = (q + 2 * kv + 2 * (q + kv) * shape.qk_norm + q) / tp  # q k v, normed and rotated q k, output
    width = shape.ffn * max(1, shape.experts_per_token)
    ffn = 3 * width / (setup.etp if shape.experts else tp)  # gate, up, their product
    if shape.experts:
        ffn += 2 * shape.hidden * shape.experts_per_token / whole  # tokens sent to experts and back
    if setup.recompute & {"mlp", "moe"}:
        ffn = 0
    elif "moe_act" in setup.recompute:
        ffn *= 2 / 3
    return BF16 * (norms + attention + ffn)


def activations(shape: ModelShape, setup: Setup) -> float:
    """Bytes saved between forward and backward; a pipeline's first stage holds PP micro-batches at a time."""
    tokens = setup.micro_batch_tokens / setup.cp
    layers = shape.layers / setup.pp
    one = layer_activations(shape, setup)
    if "full" not in setup.recompute:
        return tokens * setup.pp * layers * one
    inputs = BF16 * shape.hidden / (setup.tp if setup.sequence_parallel else 1)
    return tokens * (setup.pp * layers * inputs + one)


def logits(shape: ModelShape, setup: Setup) -> dict[str, float]:
    """The last stage's logits with their gradient, and one chunk of log-probability and entropy in fp32."""
    columns = shape.vocab / setup.tp
    tokens = setup.micro_batch_tokens / setup.cp
    bytes_each = FP32 + FP32 + BF16 if setup.fp32_logits else BF16 + BF16
    return {
        "logits and their gradient": tokens * columns * bytes_each,
        "log-probability and entropy chunk": min(setup.logit_chunk, tokens) * columns * FP32 * 3,
    }


def training(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Phase:
    """The update, on the pipeline stage that needs most."""
    return max((on_stage(shape, setup, assumed, s) for s in {0, setup.pp - 1}), key=lambda phase: phase.total)


def on_stage(shape: ModelShape, setup: Setup, assumed: Assumptions, stage: int) -> Phase:
    """The update on a rank of pipeline stage `stage`."""
    mine = held(shape, setup, stage)
    classes = {
        "weights (bf16)": BF16 * mine.all,
        "gradients": (FP32 if setup.fp32_gradients else BF16) * mine.all,
        "optimizer (fp32 master, two moments)": OPTIMIZER * mine.optimizer_share * (1 - setup.offloaded_optimizer),
    }
    if not setup.precision_aware:
        classes["gradients' fp32 copy"] = FP32 * mine.optimizer_share
    in_flight = 1 if setup.pp == 1 or stage == 0 else 1 / setup.pp
    classes["activations"] = activations(shape, setup) * in_flight
    if stage == setup.pp - 1:
        classes |= logits(shape, setup)
    if setup.colocated:
        classes["sleeping engine"] = assumed.asleep_gib * GiB
    classes["reserved"] = assumed.reserved_gib * GiB
    return Phase("training", classes, GPUS[assumed.gpu].memory)


def engine_weights(shape: ModelShape, setup: Setup) -> float:
    """Bytes of the policy on one GPU of an engine."""
    return BF16 * shape.parameters / (setup.engine_tp * setup.engine_pp)


def generation(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Phase:
    """Rollouts and synthesis: vLLM takes its share of the GPU, what weights leave of it is KV cache."""
    gpu = GPUS[assumed.gpu]
    weights, working = engine_weights(shape, setup), assumed.engine_working_gib * GiB
    cache = max(0.0, gpu.memory * setup.engine_memory - weights - working)
    classes = {"engine's weights": weights, "engine's working memory": working, "KV cache": cache}
    if setup.colocated:
        classes["reserved"] = assumed.reserved_gib * GiB  # the policy is on the host meanwhile
    return Phase("generation", classes, gpu.memory)


def handover(shape: ModelShape, setup: Setup, assumed: Assumptions) -> Phase:
    """Colocated: policy and engine weights are on the GPU together while they are copied."""
    classes = {
        "weights (bf16)": BF16 * max(held(shape, setup, s).all for s in {0, setup.pp - 1}),
        "engine's weights": engine_weights(shape, setup),
        "sleeping engine": assumed.asleep_gib * GiB,
        "reserved": assumed.reserved_gib * GiB,
    }
    return Phase("handing weights over", classes, GPUS[assumed.gpu].memory)


def phases(shape: ModelShape, setup: Setup, assumed: Assumptions) -> list[Phase]:
    """Every phase of a step, on the GPU that is worst off."""
    colocated = [handover(shape, setup, assumed)] if setup.colocated else []
    return [generation(shape, setup, assumed), *colocated, training(shape, setup, assumed)]


def cached_tokens(shape: ModelShape, setup: Setup, assumed: Assumptions) -> int:
    """Tokens whose keys and values fit one engine's KV cache."""
    cache = generation(shape, setup, assumed).classes["KV cache"] * setup.engine_tp * setup.engine_pp
    return int(cache / shape.kv_bytes_per_token)


def host(shape: ModelShape, setup: Setup) -> dict[str, float]:
    """Bytes on a node's host at the fullest time: what is put aside for the engines, and the frozen reference."""
    mine = held(shape, setup, 0)
    gpus, classes = setup.gpus_per_node, dict[str, float]()
    if setup.colocated:
        classes["policy's weights and optimizer, put aside"] = gpus * (
            BF16 * mine.all + OPTIMIZER * mine.optimizer_share
        )
        classes["engine's weights, put aside"] = gpus * engine_weights(shape, setup)
    elif setup.offloaded_optimizer:
        classes["optimizer"] = gpus * OPTIMIZER * mine.optimizer_share * setup.offloaded_optimizer
    if setup.reference:
        classes["reference, and the policy while it scores"] = 2 * gpus * BF16 * mine.all
    return classes


def checkpoint_bytes(shape: ModelShape, setup: Setup) -> float:
    """One checkpoint on disk: bf16 weights, and the optimizer's fp32 state if it is saved."""
    return shape.parameters * (BF16 + OPTIMIZER * setup.saves_optimizer)
