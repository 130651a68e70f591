"""Tiny models of every family that the local runtime takes, written by transformers with random weights."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedConfig, Qwen2Config, Qwen3Config

SHORT = {"original_max_position_embeddings": 8, "rope_theta": 1e4}  # so that a scaling changes rows of 16 tokens
LLAMA3 = {"rope_type": "llama3", "factor": 4.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, **SHORT}
YARN = {"rope_type": "yarn", "factor": 8.0, **SHORT}
LINEAR = {"rope_type": "linear", "factor": 2.0, "rope_theta": 5e5}
FAMILIES: dict[str, tuple[type[PreTrainedConfig], dict[str, Any]]] = {
    "llama": (LlamaConfig, {"tie_word_embeddings": False, "rope_parameters": LLAMA3}),
    "qwen2": (Qwen2Config, {"tie_word_embeddings": True, "rope_parameters": YARN}),
    "qwen3": (Qwen3Config, {"tie_word_embeddings": False, "rope_parameters": LINEAR, "head_dim": 10}),
}


def write_family(folder: Path, family: str, shard: str = "20KB", **sizes: Any) -> None:
    """Write a model of `family` in safetensors files of at most `shard` each; `sizes` replace the tiny ones.

    Norms and biases are random too, so that none of them can be left out or exchanged unnoticed.
    """
    kind, own = FAMILIES[family]
    tiny = {"hidden_size": 24, "intermediate_size": 20, "num_hidden_layers": 4, "vocab_size": 61}
    heads = {"num_attention_heads": 4, "num_key_value_heads": 2, "max_position_embeddings": 64}
    config = kind(**(tiny | heads | {"initializer_range": 0.2} | own | sizes))
    torch.manual_seed(7)
    model = AutoModelForCausalLM.from_config(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name or name.endswith("bias"):
                parameter.copy_(("norm" in name) + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder, max_shard_size=shard)
