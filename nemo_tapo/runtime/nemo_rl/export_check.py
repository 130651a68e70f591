"""Check an exported Hugging Face directory tensor by tensor, before it gets its final name.

A converter may end without an error and still have lost a layer, or written another shape or number format. What an
export has to hold is read from the model that the run started from: training changes values and nothing else.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

CONFIG, TOKENIZER, TORCH_FILE, SAFETENSORS_FILE = (
    "config.json",
    "tokenizer_config.json",
    "pytorch_model.bin",
    "model.safetensors",
)
FORMATS = {"float32": "F32", "bfloat16": "BF16", "float16": "F16"}  # policy.precision -> name in a safetensors file
UNTRAINED = re.compile(r"(rotary_emb\.|inv_freq$|masked_bias$|^mtp\.)")  # constants, and heads that are not trained
LAYER = re.compile(r"\blayers\.(\d+)\.")
HEAD = "lm_head.weight"  # absent where it is the embedding
SHOWN = 3  # tensors that a message names


@dataclass(frozen=True)
class TensorHeader:
    """What a safetensors file says of a tensor.

    >>> TensorHeader("BF16", (4, 8)).shape
    (4, 8)
    """

    dtype: str
    shape: tuple[int, ...]


def read_headers(folder: Path) -> dict[str, TensorHeader]:
    """Read the headers of a folder's safetensors files, by tensor. Raises ValueError for a file that is cut off."""
    headers: dict[str, TensorHeader] = {}
    for file in sorted(folder.glob("*.safetensors")):
        with file.open("rb") as handle:
            size = int.from_bytes(handle.read(8), "little")
            try:
                entries = json.loads(handle.read(size))
                end = max((e["data_offsets"][1] for name, e in entries.items() if name != "__metadata__"), default=0)
            except (ValueError, KeyError, TypeError) as error:
                raise ValueError(f"{file.name} is no safetensors file ({error})") from None
        if file.stat().st_size != 8 + size + end:
            raise ValueError(f"{file.name} has {file.stat().st_size} bytes instead of {8 + size + end}")
        for name, entry in entries.items():
            if name != "__metadata__":
                headers[name] = TensorHeader(entry["dtype"], tuple(entry["shape"]))
    return headers


def locate_original(model: str) -> Path | None:
    """Return the folder of the model `policy.model_name` means: itself, or its place in the Hub's cache.

    None if it has no safetensors files on this machine.
    """
    folder: Path | None = Path(model)
    if not Path(model).is_dir():
        from huggingface_hub import try_to_load_from_cache

        cached = try_to_load_from_cache(model, CONFIG)
        folder = Path(cached).parent if isinstance(cached, str) else None
    return folder if folder is not None and any(folder.glob("*.safetensors")) else None


def write_safetensors(folder: Path) -> None:
    """Replace pytorch_model.bin, which the DTensor converter writes, by model.safetensors; do nothing without it.

    Every reader of a run's model, the local runtime among them, reads safetensors.
    """
    file = folder / TORCH_FILE
    if not file.is_file():
        return
    import torch
    from safetensors.torch import save_file

    tensors = torch.load(file, map_location="cpu", mmap=True, weights_only=True)
    if _is_tied(_read_config(folder)):
        tensors.pop(HEAD, None)  # the embedding under a second name
    save_file(
        {name: tensor.contiguous() for name, tensor in tensors.items()}, folder / SAFETENSORS_FILE, {"format": "pt"}
    )
    file.unlink()


def find_export_fault(folder: Path, original: Path | None, precision: str) -> str | None:
    """Say in words what is wrong with an exported model; None if nothing is.

    `original` is the model that the run started from; without it, names and shapes are not compared, only counted by
    layer. `precision` is policy.precision: a tensor is stored in it, in fp32, or as in the original.
    """
    for name in (CONFIG, TOKENIZER):
        if not (folder / name).is_file():
            return f"{name} is missing"
    try:
        found = read_headers(folder)
        config = _read_config(folder)
    except ValueError as error:
        return str(error)
    if not found:
        return "there is no *.safetensors file"
    layers = int((config.get("text_config") or config).get("num_hidden_layers", 0))
    lost = set(range(layers)) - {number for name in found if (number := _get_layer(name)) is not None}
    if lost:
        return f"layers without any tensor: {_shorten(map(str, sorted(lost)))}"
    if original is not None:
        fault = _compare_headers(found, read_headers(original), layers, _is_tied(config), precision)
        if fault is not None:
            return fault
    broken = list(_find_not_finite(folder))
    return f"not finite: {_shorten(broken)}" if broken else None


def _compare_headers(
    found: Mapping[str, TensorHeader], expected: Mapping[str, TensorHeader], layers: int, tied: bool, precision: str
) -> str | None:
    def counts(name: str) -> bool:
        number = _get_layer(name)
        trained = number is None or number < layers  # beyond them: heads for multi-token prediction
        return trained and not UNTRAINED.search(name) and not (tied and name == HEAD)

    ours, theirs = {n for n in found if counts(n)}, {n for n in expected if counts(n)}
    if theirs - ours:
        return f"missing: {_shorten(sorted(theirs - ours))}"
    if ours - theirs:
        return f"not in the original: {_shorten(sorted(ours - theirs))}"
    shapes = [f"{n} {list(found[n].shape)}" for n in sorted(ours) if found[n].shape != expected[n].shape]
    if shapes:
        return f"of another shape than in the original: {_shorten(shapes)}"
    allowed = {"F32", FORMATS.get(precision, "F32")}
    formats = [f"{n} {found[n].dtype}" for n in sorted(ours) if found[n].dtype not in allowed | {expected[n].dtype}]
    return f"in an unexpected number format: {_shorten(formats)}" if formats else None


def _find_not_finite(folder: Path) -> Iterator[str]:
    """Yield the tensors that have an infinity or a NaN; reads every byte."""
    from safetensors import safe_open

    for file in sorted(folder.glob("*.safetensors")):
        with safe_open(file, framework="pt") as tensors:
            for name in tensors.keys():  # noqa: SIM118 - it is no mapping
                tensor = tensors.get_tensor(name)
                if tensor.is_floating_point() and not bool(tensor.float().isfinite().all()):
                    yield name


def _read_config(folder: Path) -> dict[str, Any]:
    """Read config.json. Raises ValueError if it does not parse."""
    return dict(json.loads((folder / CONFIG).read_text(encoding="utf-8")))


def _is_tied(config: Mapping[str, Any]) -> bool:
    return bool(config.get("tie_word_embeddings", False))


def _get_layer(name: str) -> int | None:
    found = LAYER.search(name)
    return int(found.group(1)) if found else None


def _shorten(names: Any) -> str:
    """Name the first few, and say how many more there are.

    >>> _shorten(["a", "b", "c", "d", "e"])
    'a, b, c and 2 more'
    """
    named = list(names)
    more = f" and {len(named) - SHOWN} more" if len(named) > SHOWN else ""
    return ", ".join(named[:SHOWN]) + more
