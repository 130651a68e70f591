"""Read and write Hugging Face model directories (config.json, safetensors, tokenizer) without transformers."""

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
    """The architecture of a Qwen3 model, as its config.json gives it."""

    shape: ModelShape
    norm_eps: float
    rope_theta: float
    max_length: int  # positions


def read_model_info(path: Path) -> ModelInfo:
    """Read `path`/config.json.

    Raises ValueError if it is missing, or if it names an architecture or a Qwen3 feature that the local actor does not
    support.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} is not a model directory: it has no config.json.")
    config = json.loads(file.read_text())
    _require_supported(config, file)
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
        # transformers 5 writes rope_parameters, earlier versions a top-level rope_theta
        rope_theta=float(rope.get("rope_theta", config.get("rope_theta", 10000.0))),
        max_length=config["max_position_embeddings"],
    )


def require_same_architecture(model: Path, teacher: Path, key: str) -> None:
    """Raise ValueError unless `teacher` can replace `model`: same architecture, sizes and token ids.

    `key` is the setting that names the teacher.
    """
    own, other = read_model_info(model), read_model_info(teacher)
    names = [f.name for f in fields(own) if f.name != "max_length" and getattr(own, f.name) != getattr(other, f.name)]
    for name in names:
        raise ValueError(
            f"{key}: {teacher} is another architecture than {model}: {name} is {getattr(other, name)} "
            f"instead of {getattr(own, name)}. The teacher has to have the policy's."
        )
    if _read_tokenization(model) != _read_tokenization(teacher):
        raise ValueError(
            f"{key}: the tokenizer of {teacher} is not that of {model}. The teacher reads the policy's own "
            "tokens, so it has to have the same."
        )


def _read_tokenization(path: Path) -> Any:
    """Return the parts of tokenizer.json that decide the token ids of a text."""
    file = path / "tokenizer.json"
    if not file.is_file():
        raise ValueError(f"{path} has no tokenizer.json, so its tokens cannot be compared.")
    content = json.loads(file.read_text())
    return [content.get(name) for name in ("model", "added_tokens", "normalizer", "pre_tokenizer")]


def _require_supported(config: dict[str, Any], file: Path) -> None:
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
    """Return all tensors of the directory's safetensors files by name, in fp32.

    Tensors that are stored in fp32 stay mapped from disk. Raises ValueError if there is no safetensors file.
    """
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
    """Write one safetensors file, marked as PyTorch's so that transformers reads it."""
    from safetensors.torch import save_file

    save_file({name: tensor.contiguous() for name, tensor in tensors.items()}, file, metadata={"format": "pt"})


def copy_files_beside_weights(source: Path, target: Path) -> None:
    """Copy everything but the weights (config, tokenizer, chat template) from `source` into `target`."""
    if source.resolve() == target.resolve():
        return
    for file in sorted(source.iterdir()):
        if file.is_file() and file.suffix not in (".safetensors", ".bin", ".pt") and file.name != INDEX:
            shutil.copyfile(file, target / file.name)
