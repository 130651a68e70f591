"""Read and write Hugging Face model directories (config.json, safetensors, tokenizer) without transformers."""

from __future__ import annotations

import json
import shutil
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

from torch import Tensor

from nemo_tapo.runtime.local.rotary import Rope, read_rope
from nemo_tapo.runtime.local.weights import ModelShape

WEIGHTS, INDEX = "model.safetensors", "model.safetensors.index.json"


@dataclass(frozen=True)
class Architecture:
    """What the code of an architecture says and its config.json does not, and what of the latter is not built here."""

    qk_norm: bool = False
    qkv_bias: bool = False
    fixed: tuple[tuple[str, Any], ...] = ()  # keys of config.json with the one value that the local runtime builds


_PLAIN = (("hidden_act", "silu"), ("quantization_config", None))
_NO_WINDOW = (("use_sliding_window", False), ("dual_chunk_attention_config", None))
ARCHITECTURES = {
    "LlamaForCausalLM": Architecture(fixed=(*_PLAIN, ("attention_bias", False), ("mlp_bias", False))),
    "Qwen2ForCausalLM": Architecture(qkv_bias=True, fixed=(*_PLAIN, *_NO_WINDOW)),
    "Qwen3ForCausalLM": Architecture(qk_norm=True, fixed=(*_PLAIN, *_NO_WINDOW, ("attention_bias", False))),
}


@dataclass(frozen=True)
class ModelInfo:
    """A model as its config.json describes it."""

    architecture: str
    shape: ModelShape
    norm_eps: float
    rope: Rope
    max_length: int  # positions


def read_model_info(path: Path) -> ModelInfo:
    """Read `path`/config.json.

    Raises ValueError if it is missing or incomplete, or if it names an architecture or a feature that the local runtime
    does not have.
    """
    file = path / "config.json"
    if not file.is_file():
        raise ValueError(f"{path} is not a model directory: it has no config.json.")
    try:
        config = json.loads(file.read_text(encoding="utf-8"))
    except ValueError as error:
        raise ValueError(f"{file} does not parse: {error}.") from None
    name, architecture = _find_architecture(config, file)
    heads, hidden = _get_count(config, "num_attention_heads", file), _get_count(config, "hidden_size", file)
    shape = ModelShape(
        layers=_get_count(config, "num_hidden_layers", file),
        hidden=hidden,
        heads=heads,
        kv_heads=config.get("num_key_value_heads") or heads,
        head_dim=config.get("head_dim") or hidden // heads,
        ffn=_get_count(config, "intermediate_size", file),
        vocab=_get_count(config, "vocab_size", file),
        tied=bool(config.get("tie_word_embeddings", False)),
        qk_norm=architecture.qk_norm,
        qkv_bias=architecture.qkv_bias,
    )
    if heads % shape.kv_heads:
        raise ValueError(f"{file}: num_key_value_heads = {shape.kv_heads} does not divide {heads} attention heads.")
    if name == "Qwen2ForCausalLM" and shape.head_dim != hidden // heads:
        raise ValueError(
            f"{file}: head_dim is {shape.head_dim}, and vLLM's {name} takes hidden_size / num_attention_heads only."
        )
    return ModelInfo(
        architecture=name,
        shape=shape,
        norm_eps=config.get("rms_norm_eps", 1e-6),
        rope=read_rope(config, file),
        max_length=_get_count(config, "max_position_embeddings", file),
    )


def _get_count(config: dict[str, Any], name: str, file: Path) -> int:
    value = config.get(name)
    if not isinstance(value, int) or value < 1:
        raise ValueError(f"{file}: {name} is {value!r}; it has to be a whole number above 0.")
    return value


def find_differences(given: ModelInfo, own: ModelInfo) -> list[tuple[str, Any, Any]]:
    """Return (field, its value in `given`, its value in `own`) where two models differ in more than the longest row."""
    names = [f.name for f in fields(own) if f.name != "max_length"]
    return [(n, getattr(given, n), getattr(own, n)) for n in names if getattr(given, n) != getattr(own, n)]


def require_same_architecture(model: Path, teacher: Path, key: str) -> None:
    """Raise ValueError unless `teacher` can replace `model`: same architecture, sizes and token ids.

    `key` is the setting that names the teacher.
    """
    for name, given, own in find_differences(read_model_info(teacher), read_model_info(model)):
        raise ValueError(
            f"{key}: {teacher} is another architecture than {model}: {name} is {given} instead of {own}. The teacher "
            "has to have the policy's."
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


def _find_architecture(config: dict[str, Any], file: Path) -> tuple[str, Architecture]:
    named = config.get("architectures") or []
    if len(named) != 1 or named[0] not in ARCHITECTURES:
        raise ValueError(
            f"{file}: architectures is {named}; the local runtime trains {', '.join(ARCHITECTURES)} (dense models). "
            "Others need NeMo-RL's runtime."
        )
    architecture = ARCHITECTURES[named[0]]
    for key, built in architecture.fixed:
        if config.get(key, built) != built:
            raise ValueError(f"{file}: {key} is {config[key]!r}; the local runtime builds it as {built!r} only.")
    kinds = sorted({*(config.get("layer_types") or [])} - {"full_attention"})
    if kinds:
        raise ValueError(f"{file}: layer_types names {', '.join(kinds)}; the local runtime has full_attention only.")
    return named[0], architecture


def list_weight_files(path: Path) -> list[Path]:
    """Return the safetensors files that hold the model: those of the index, or the single one.

    Raises ValueError if there is none, or if the index names one that is missing.
    """
    if (path / INDEX).is_file():
        files = [path / name for name in sorted(set(json.loads((path / INDEX).read_text())["weight_map"].values()))]
    elif (path / WEIGHTS).is_file():
        files = [path / WEIGHTS]
    else:
        raise ValueError(f"{path} has no {WEIGHTS}; a model directory with safetensors weights is needed.")
    for file in files:
        if not file.is_file():
            raise ValueError(f"{path} is incomplete: {INDEX} names {file.name}, which is not there.")
    return files


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return all weights of the directory's safetensors files by name, in fp32.

    Tensors that are stored in fp32 stay mapped from disk. Raises ValueError as `list_weight_files` does.
    """
    from safetensors.torch import load_file

    tensors = (item for file in list_weight_files(path) for item in load_file(file).items())
    return {name: tensor.float() for name, tensor in tensors if not _is_buffer(name)}


def read_tensor_shapes(path: Path) -> dict[str, tuple[int, ...]]:
    """Return {name: shape} of the weights in a Hugging Face directory, read from the file headers only."""
    from safetensors import safe_open

    shapes: dict[str, tuple[int, ...]] = {}
    for file in list_weight_files(path):
        with safe_open(file, framework="pt") as tensors:
            names = [name for name in tensors.keys() if not _is_buffer(name)]  # noqa: SIM118 - it is no mapping
            shapes |= {name: tuple(tensors.get_slice(name).get_shape()) for name in names}
    return shapes


def _is_buffer(name: str) -> bool:
    """Return whether old Llama files hold this tensor though it is computed, not learned."""
    return name.endswith("rotary_emb.inv_freq")


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
