"""Shapes of decoder models: from a Hugging Face config.json, else from a table of the published Qwen3 family."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class ModelShape:
    """A decoder of Qwen3's kind: grouped-query attention, SwiGLU, RMSNorm, optionally experts in every layer."""

    layers: int
    hidden: int
    heads: int  # of queries
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

    @property
    def attention_parameters(self) -> int:
        """Of one layer: projections, biases, query and key norms."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * q + 2 * kv) + 2 * self.head_dim * self.qk_norm + (q + 2 * kv) * self.qkv_bias

    @property
    def norm_parameters(self) -> int:
        """Of one layer: the two norms over the hidden size, and a mixture's router."""
        return 2 * self.hidden + self.hidden * self.experts

    @property
    def ffn_parameters(self) -> int:
        """Of one layer's feed-forward block, all experts counted."""
        return 3 * self.hidden * self.ffn * max(1, self.experts)

    @property
    def embedding_parameters(self) -> int:
        """One vocabulary matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """All of them."""
        layer = self.attention_parameters + self.norm_parameters + self.ffn_parameters
        return self.layers * layer + self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def active_parameters(self) -> int:
        """Those that take part in one token's forward pass; the input embedding, a look-up, counts as one matrix."""
        unused = max(0, self.experts - self.experts_per_token)
        return self.parameters - self.layers * unused * 3 * self.hidden * self.ffn

    @property
    def kv_bytes_per_token(self) -> int:
        """Keys and values of all layers in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def attention_flops_per_token(self) -> float:
        """Multiply-adds x 2 of scores and values, forward, per token and per token of causal context."""
        return 4.0 * self.layers * self.heads * self.head_dim


QWEN3 = {  # https://huggingface.co/Qwen, config.json of each
    "Qwen3-0.6B": ModelShape(28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "Qwen3-1.7B": ModelShape(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936),
    "Qwen3-14B": ModelShape(40, 5120, 40, 8, 128, 17408, 151936),
    "Qwen3-32B": ModelShape(64, 5120, 64, 8, 128, 25600, 151936),
    "Qwen3-30B-A3B": ModelShape(48, 2048, 32, 4, 128, 768, 151936, experts=128, experts_per_token=8),
}


def shape_of(model: str) -> ModelShape:
    """The shape of a local Hugging Face directory, or of a known name as `Qwen/Qwen3-8B` (`-Base` too).

    Raises ValueError with a sentence for any other name and for an architecture that is not of this kind.
    """
    config = Path(model) / "config.json"
    if config.is_file():
        return from_config(json.loads(config.read_text()), config)
    name = model.rstrip("/").rsplit("/", 1)[-1].removesuffix("-Base")
    if name not in QWEN3:
        raise ValueError(
            f"the shape of model {model} is not known: give a local folder with its config.json as policy.model_name, "
            f"or one of {', '.join(QWEN3)}"
        )
    return QWEN3[name]


def from_config(config: Mapping[str, Any], where: Path) -> ModelShape:
    """A Hugging Face config. Raises ValueError for architectures whose layers are not all alike."""
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
