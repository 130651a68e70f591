"""A Hugging Face model directory as files: config.json, safetensors, tokenizer. No transformers needed."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_tapo.runtime.local.weights import ModelShape

ARCHITECTURE = "Qwen3ForCausalLM"
WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class ModelInfo:
    """What config.json says of a Qwen3 model."""

    shape: ModelShape
    norm_eps: float
    rope_theta: float
    max_length: int  # positions


def read_info(path: Path) -> ModelInfo:
    """Reads `path`/config.json.

    Raises ValueError for an architecture, or a feature of Qwen3, that the local actor does not build.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} is not a model directory: it has no config.json.")
    config = json.loads(file.read_text())
    _refuse_unknown(config, file)
    rope = config.get("rope_parameters") or {}
    heads = config["num_attention_heads"]
    return ModelInfo(
        shape=ModelShape(
            layers=config["num_hidden_layers"],
            hidden=config["hidden_size"],
            heads=heads,
            kv_heads=config["num_key_value_heads"],
            head_dim=config.get("head_dim") or config["hidden_size"] // heads,
            ffn=config["intermediate_size"],
            vocab=config["vocab_size"],
            tied=bool(config.get("tie_word_embeddings", False)),
        ),
        norm_eps=config["rms_norm_eps"],
        # transformers 5 has rope_parameters, earlier ones a rope_theta at the top
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        max_length=config["max_position_embeddings"],
    )


def require_same_kind(model: Path, teacher: Path) -> None:
    """Raises ValueError unless `teacher` can stand in for `model`: the same architecture, sizes and token ids."""
    own, other = read_info(model), read_info(teacher)
    names = [f.name for f in fields(own) if f.name != "max_length" and getattr(own, f.name) != getattr(other, f.name)]
    for name in names:
        raise ValueError(
            f"opsd.teacher_path: {teacher} is another architecture than {model}: {name} is {getattr(other, name)} "
            f"instead of {getattr(own, name)}. The teacher has to have the policy's."
        )
    if _token_ids(model) != _token_ids(teacher):
        raise ValueError(
            f"opsd.teacher_path: the tokenizer of {teacher} is not that of {model}. The teacher reads the policy's own "
            "tokens, so it has to have the same."
        )


def _token_ids(path: Path) -> Any:
    """What of tokenizer.json decides the ids of a text."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path} has no tokenizer.json, so its tokens cannot be compared.")
    whole = json.loads(file.read_text())
    return [whole.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer")]


def _refuse_unknown(config: dict[str, Any], file: Path) -> None:
    architectures = config.get("architectures") or []
    if architectures != [ARCHITECTURE]:
        raise ValueError(f"{file}: architectures is {architectures}; the local runtime trains {[ARCHITECTURE]} only.")
    rope = config.get("rope_parameters") or config.get("rope_scaling") or {}
    kind = rope.get("rope_type", rope.get("type", "default"))
    if kind != "default":
        raise ValueError(f"{file}: rope type is '{kind}'; the local runtime has the default rotary embedding only.")
    for name, plain in (("attention_bias", False), ("use_sliding_window", False), ("hidden_act", "silu")):
        if config.get(name, plain) != plain:
            raise ValueError(f"{file}: {name} is {config[name]!r}; the local runtime builds it as {plain!r} only.")


def read_weights(path: Path) -> dict[str, Tensor]:
    """All tensors of the directory's safetensors files, by name, in fp32 (mapped from disk where they are fp32)."""
    from safetensors.torch import load_file

    if (path / INDEX).is_file():
        files = sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))
    elif (path / WEIGHTS).is_file():
        files = [WEIGHTS]
    else:
        raise ValueError(f"{path} has no {WEIGHTS}; a model directory with safetensors weights is needed.")
    out: dict[str, Tensor] = {}
    for name in files:
        out |= {key: tensor.float() for key, tensor in load_file(path / name).items()}
    return out


def write_tensors(tensors: dict[str, Tensor], file: Path) -> None:
    """One safetensors file, marked as PyTorch's so that transformers reads it."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def copy_companions(source: Path, target: Path) -> None:
    """Everything of a model directory but its weights (config, tokenizer, chat template) into `target`."""
    if source.resolve() == target.resolve():
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt") and file.name != INDEX:
            shutil.copyfile(file, target / file.name)
