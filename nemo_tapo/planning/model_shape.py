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

    @property
    def attention_parameters(self) -> int:
        """Attention parameters of one layer: projections, biases, query and key norms."""
        q, kv = self.heads * self.head_dim, self.kv_heads * self.head_dim
        return self.hidden * (2 * q + 2 * kv) + 2 * self.head_dim * self.qk_norm + (q + 2 * kv) * self.qkv_bias

    @property
    def norm_parameters(self) -> int:
        """Norm parameters of one layer: the two norms over the hidden size, and the router of a mixture of experts."""
        return 2 * self.hidden + self.hidden * self.experts

    @property
    def ffn_parameters(self) -> int:
        """Parameters of one layer's feed-forward block, summed over all experts."""
        return 3 * self.hidden * self.ffn * max(1, self.experts)

    @property
    def embedding_parameters(self) -> int:
        """Parameters of one vocabulary matrix."""
        return self.vocab * self.hidden

    @property
    def parameters(self) -> int:
        """Parameters of the whole model."""
        layer = self.attention_parameters + self.norm_parameters + self.ffn_parameters
        return self.layers * layer + self.embedding_parameters * (1 if self.tied else 2) + self.hidden

    @property
    def active_parameters(self) -> int:
        """Parameters used in one token's forward pass. The input embedding, a look-up, is counted in full."""
        unused = max(0, self.experts - self.experts_per_token)
        return self.parameters - self.layers * unused * 3 * self.hidden * self.ffn

    @property
    def kv_bytes_per_token(self) -> int:
        """Bytes per token of the keys and values of all layers, in bf16."""
        return 2 * 2 * self.layers * self.kv_heads * self.head_dim

    @property
    def attention_flops_per_token(self) -> float:
        """FLOPs of attention scores and values in the forward pass, per token and per token of causal context.

        A multiply-add counts as two.
        """
        return 4.0 * self.layers * self.heads * self.head_dim


_llama = partial(ModelShape, qk_norm=False, max_positions=131072)
_qwen25 = partial(ModelShape, qk_norm=False, qkv_bias=True, max_positions=32768)
KNOWN_SHAPES = {  # https://huggingface.co/Qwen and /meta-llama, config.json of each; of Qwen2.5, the instruct models'
    "Qwen3-0.6B": ModelShape(28, 1024, 16, 8, 128, 3072, 151936, tied=True),
    "Qwen3-1.7B": ModelShape(28, 2048, 16, 8, 128, 6144, 151936, tied=True),
    "Qwen3-4B": ModelShape(36, 2560, 32, 8, 128, 9728, 151936, tied=True),
    "Qwen3-8B": ModelShape(36, 4096, 32, 8, 128, 12288, 151936),
    "Qwen3-14B": ModelShape(40, 5120, 40, 8, 128, 17408, 151936),
    "Qwen3-32B": ModelShape(64, 5120, 64, 8, 128, 25600, 151936),
    "Qwen3-30B-A3B": ModelShape(48, 2048, 32, 4, 128, 768, 151936, experts=128, experts_per_token=8),
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
