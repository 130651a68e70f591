"""The shapes of decoder models, read from a Hugging Face config.json or from a table of known models."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """A decoder like Qwen3: grouped-query attention, SwiGLU, RMSNorm, optionally experts in every layer.

    Or one like DeepSeek-V3: latent attention, dense layers before those with experts, an expert that sees every token.

    >>> KNOWN_SHAPES["Qwen3-8B"].parameters
    8190735360
    >>> KNOWN_SHAPES["Qwen3-30B-A3B"].active_parameters < KNOWN_SHAPES["Qwen3-30B-A3B"].parameters
    True
    """

    layers: int
    hidden: int
    heads: int  # query heads
    kv_heads: int
    head_dim: int
    ffn: int  # intermediate size; of one expert in a mixture
    vocab: int
    tied: bool = False  # input and output embedding are one matrix
    experts: int = 0  # 0: dense
    experts_per_token: int = 0
    qk_norm: bool = True
    qkv_bias: bool = False
    max_positions: int = 40960
    query_rank: int = 0  # latent attention: sizes of what queries, and keys and values, are made from
    latent: int = 0
    rotary: int = 0  # of a head, beside head_dim
    dense_layers: int = 0  # the first ones, without experts
    dense_ffn: int = 0
    shared_experts: int = 0

    @property
    def attention_parameters(self) -> int:
        """Attention parameters of one layer: projections, biases, query and key norms."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        if self.latent:
            queries = self.query_rank * (self.hidden + 1 + q + self.heads * self.rotary)
            keys_and_values = self.latent * (self.hidden + 1 + 2 * q) + self.hidden * self.rotary
            return queries + keys_and_values + q * self.hidden
        return self.hidden * (2 * q + 2 * kv) + 2 * self.head_dim * self.qk_norm + (q + 2 * kv) * self.qkv_bias

    @property
    def norm_parameters(self) -> int:
        """Norm parameters of one layer: the two norms over the hidden size, and the router of a mixture of experts."""
        return 2 * self.hidden + self.hidden * self.experts

    @property
    def ffn_parameters(self) -> int:
        """Parameters of one layer's feed-forward block, summed over all experts."""
        return 3 * self.hidden * self.ffn * max(1, self.experts + self.shared_experts)

    @property
    def layers_with_experts(self) -> int:
        """Number of layers with experts."""
        return self.layers - self.dense_layers if self.experts else 0

    @property
    def expert_parameters(self) -> float:
        """Parameters of all layers' experts that only some tokens go to, which expert parallelism divides."""
        return self.layers_with_experts * self.experts * 3.0 * self.hidden * self.ffn

    @property
    def dense_ffn_parameters(self) -> float:
        """Feed-forward parameters of a layer, on average, that every token goes through."""
        if not self.experts:
            return self.ffn_parameters
        shared = self.layers_with_experts * self.shared_experts * self.ffn
        return 3 * self.hidden * (shared + self.dense_layers * self.dense_ffn) / self.layers

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        layer = self.attention_parameters + self.norm_parameters + self.ffn_parameters
        dense = 3 * self.hidden * self.dense_ffn - self.ffn_parameters - self.hidden * self.experts
        embeddings = self.embedding_parameters * (1 if self.tied else 2)
        return self.layers * layer + self.dense_layers * dense + embeddings + self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters used in one token's forward pass. The input embedding, a look-up, is counted in full."""
        return round(self._count_with_experts(self.experts_per_token))

    def count_read_parameters(self, tokens: float) -> float:
        """Return the parameters that a pass over `tokens` tokens reads: of the experts, those that any token goes to.

        Tokens choose their experts evenly. The input embedding is counted in full.

        >>> shape = KNOWN_SHAPES["Qwen3-30B-A3B"]
        >>> shape.count_read_parameters(1) == shape.active_parameters
        True
        >>> round(shape.count_read_parameters(64) / shape.parameters, 2)
        0.98
        """
        return self._count_with_experts(
            self.experts * (1 - (1 - self.experts_per_token / max(1, self.experts)) ** tokens)
        )

    def _count_with_experts(self, used: float) -> float:
        unused = max(0.0, self.experts - used)
        return self.parameters - self.layers_with_experts * unused * 3 * self.hidden * self.ffn

    @property
    def kv_values_per_token(self) -> int:
        """Numbers that the KV cache of all layers holds of a token: keys and values, or the latent of both."""
        return self.layers * (self.latent + self.rotary if self.latent else 2 * self.kv_heads * self.head_dim)

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes per token of the KV cache of all layers, in bf16."""
        return 2 * self.kv_values_per_token

    @property
    def attention_flops_per_token(self) -> float:
        """FLOPs of attention scores and values in the forward pass, per token and per token of causal context.

        A multiply-add counts as two.
        """
        return 2.0 * self.layers * self.heads * (2 * self.head_dim + self.rotary)


_llama = partial(ModelShape, qk_norm=False, max_positions=131072)
_qwen25 = partial(ModelShape, qk_norm=False, qkv_bias=True, max_positions=32768)
KNOWN_SHAPES = {  # config.json at https://huggingface.co/Qwen, /meta-llama, /deepseek-ai; Qwen2.5's: -Instruct
    "Qwen3-0.6B": ModelShape(28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "Qwen3-1.7B": ModelShape(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936),
    "Qwen3-14B": ModelShape(40, 5120, 40, 8, 128, 17408, 151936),
    "Qwen3-32B": ModelShape(64, 5120, 64, 8, 128, 25600, 151936),
    "Qwen3-30B-A3B": ModelShape(48, 2048, 32, 4, 128, 768, 151936, experts=128, experts_per_token=8),
    "Qwen3-235B-A22B": ModelShape(94, 4096, 64, 4, 128, 1536, 151936, experts=128, experts_per_token=8),
    "Qwen2.5-0.5B": _qwen25(24, 896, 14, 2, 64, 4864, 151936, tied=True),
    "Qwen2.5-1.5B": _qwen25(28, 1536, 12, 2, 128, 8960, 151936, tied=True),
    "Qwen2.5-3B": _qwen25(36, 2048, 16, 2, 128, 11008, 151936, tied=True),
    "Qwen2.5-7B": _qwen25(28, 3584, 28, 4, 128, 18944, 152064),
    "Qwen2.5-14B": _qwen25(48, 5120, 40, 8, 128, 13824, 152064),
    "Qwen2.5-32B": _qwen25(64, 5120, 40, 8, 128, 27648, 152064),
    "Qwen2.5-72B": _qwen25(80, 8192, 64, 8, 128, 29568, 152064),
    "Llama-3.2-1B": _llama(16, 2048, 32, 8, 64, 8192, 128256, tied=True),
    "Llama-3.2-3B": _llama(28, 3072, 24, 8, 128, 8192, 128256, tied=True),
    "Llama-3.1-8B": _llama(32, 4096, 32, 8, 128, 14336, 128256),
    "Llama-3.1-70B": _llama(80, 8192, 64, 8, 128, 28672, 128256),
    "Llama-3.3-70B": _llama(80, 8192, 64, 8, 128, 28672, 128256),
    "DeepSeek-V3": ModelShape(
        61,
        7168,
        128,
        1,
        128,
        2048,
        129280,
        experts=256,
        experts_per_token=8,
        qk_norm=False,
        max_positions=163840,
        query_rank=1536,
        latent=512,
        rotary=64,
        dense_layers=3,
        dense_ffn=18432,
        shared_experts=1,
    ),
}


def get_model_shape(model: str) -> ModelShape:
    """Return the shape of a local Hugging Face directory, or of a known name such as `Qwen/Qwen3-8B` (or `-Base`,
    `-Instruct`).

    Raises ValueError for any other name and for an unsupported architecture.

    >>> get_model_shape("Qwen/Qwen3-8B-Base").layers
    36
    """
    config = Path(model) / "config.json"
    if config.is_file():
        return shape_from_config(json.loads(config.read_text()), config)
    name = model.rstrip("/").rsplit("/", 1)[-1].removesuffix("-Base").removesuffix("-Instruct")
    if name not in KNOWN_SHAPES:
        raise ValueError(
            f"the shape of model {model} is not known: give a local folder with its config.json as policy.model_name, "
            f"or one of {', '.join(KNOWN_SHAPES)}"
        )
    return KNOWN_SHAPES[name]


def shape_from_config(config: Mapping[str, Any], where: Path) -> ModelShape:
    """Return the shape that a Hugging Face config describes; `where` is its path, for error messages.

    Raises ValueError for unknown architectures and for those whose layers differ from each other.
    """
    kind = config.get("model_type")
    if kind not in ("qwen3", "qwen3_moe", "qwen2", "llama", "mistral"):
        raise ValueError(f"{where}: no estimate is made for model_type {kind!r} (known: qwen2, qwen3, llama, mistral)")
    sparse = kind == "qwen3_moe"
    if sparse and (config.get("mlp_only_layers") or config.get("decoder_sparse_step", 1) != 1):
        raise ValueError(f"{where}: no estimate is made for a mixture with dense layers in between")
    heads = config["num_attention_heads"]
    return ModelShape(
        layers=config["num_hidden_layers"],
        hidden=config["hidden_size"],
        heads=heads,
        kv_heads=config.get("num_key_value_heads", heads),
        head_dim=config.get("head_dim") or config["hidden_size"] // heads,
        ffn=config["moe_intermediate_size"] if sparse else config["intermediate_size"],
        vocab=config["vocab_size"],
        tied=config.get("tie_word_embeddings", False),
        experts=config["num_experts"] if sparse else 0,
        experts_per_token=config["num_experts_per_tok"] if sparse else 0,
        qk_norm=kind.startswith("qwen3"),
        qkv_bias=kind == "qwen2",
        max_positions=config.get("max_position_embeddings", 40960),
    )
