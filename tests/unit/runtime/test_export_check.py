"""An exported model is compared with the one that the run started from, tensor by tensor."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from nemo_tapo.runtime.nemo_rl.export_check import find_export_fault, locate_original, read_headers, write_safetensors

Tensors = dict[str, Tensor]


def tensors() -> Tensors:
    """Two layers and an embedding, as bf16."""
    shapes = {"model.embed_tokens.weight": (6, 4), "model.norm.weight": (4,)}
    shapes |= {f"model.layers.{i}.mlp.up_proj.weight": (8, 4) for i in range(2)}
    return {name: torch.ones(shape, dtype=torch.bfloat16) for name, shape in shapes.items()}


def write(folder: Path, values: Tensors, tied: bool = True) -> Path:
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(json.dumps({"num_hidden_layers": 2, "tie_word_embeddings": tied}))
    (folder / "tokenizer_config.json").write_text("{}")
    save_file(values, folder / "model.safetensors")
    return folder


def fault(folder: Path, change: Callable[[Tensors], object], precision: str = "bfloat16") -> str | None:
    values = tensors()
    change(values)
    return find_export_fault(write(folder / "new", values), write(folder / "old", tensors()), precision)


def test_trained_values_are_no_fault(tmp_path: Path) -> None:
    assert fault(tmp_path, lambda t: t["model.norm.weight"].add_(1)) is None


def set_value(values: Tensors, value: float) -> None:
    values["model.layers.1.mlp.up_proj.weight"][7, 3] = value


LAST = "model.layers.1.mlp.up_proj.weight"
FAULTS = [
    (lambda t: t.pop(LAST), "layers without any tensor: 1"),
    (lambda t: t.pop("model.norm.weight"), "missing: model.norm.weight"),
    (lambda t: t.update({"model.extra": torch.ones(1)}), "not in the original: model.extra"),
    (lambda t: t.update({LAST: torch.ones(8, 5)}), r"of another shape than in the original: .* \[8, 5\]"),
    (lambda t: t.update({LAST: torch.ones(8, 4, dtype=torch.float16)}), "unexpected number format: .* F16"),
    (lambda t: set_value(t, float("nan")), "not finite: model.layers.1.mlp"),
    (lambda t: set_value(t, float("inf")), "not finite: model.layers.1.mlp"),
]


@pytest.mark.parametrize(("change", "sentence"), FAULTS, ids=[sentence[:12] for _, sentence in FAULTS])
def test_each_fault_is_named(tmp_path: Path, change: Callable[[Tensors], object], sentence: str) -> None:
    found = fault(tmp_path, change)
    assert found is not None and re.search(sentence, found), found


def test_the_runs_precision_and_fp32_are_formats_of_an_export(tmp_path: Path) -> None:
    def to_fp32(values: Tensors) -> None:
        values[LAST] = values[LAST].float()

    def to_fp16(values: Tensors) -> None:
        values[LAST] = values[LAST].half()

    assert fault(tmp_path / "a", to_fp32) is None
    assert fault(tmp_path / "b", to_fp16, precision="float16") is None


def test_what_training_does_not_have_is_not_missed(tmp_path: Path) -> None:
    """Constants, heads for further tokens, and a tied head that is the embedding under a second name."""
    old = tensors() | {
        "lm_head.weight": torch.ones(6, 4),
        "model.layers.0.self_attn.rotary_emb.inv_freq": torch.ones(2),
        "model.layers.2.eh_proj.weight": torch.ones(2),  # a third layer of two: of multi-token prediction
        "mtp.fc.weight": torch.ones(2),
    }
    new = write(tmp_path / "new", tensors())
    assert find_export_fault(new, write(tmp_path / "old", old), "bfloat16") is None
    untied = write(tmp_path / "untied", tensors(), tied=False)
    assert find_export_fault(untied, tmp_path / "old", "bfloat16") == "missing: lm_head.weight"


def test_a_file_that_is_cut_off_or_missing(tmp_path: Path) -> None:
    new = write(tmp_path / "new", tensors())
    (new / "tokenizer_config.json").unlink()
    assert find_export_fault(new, None, "bfloat16") == "tokenizer_config.json is missing"
    (new / "tokenizer_config.json").write_text("{}")
    file = new / "model.safetensors"
    size = file.stat().st_size
    file.write_bytes(file.read_bytes()[:-2])
    assert find_export_fault(new, None, "bfloat16") == f"model.safetensors has {size - 2} bytes instead of {size}"
    file.unlink()
    assert find_export_fault(new, None, "bfloat16") == "there is no *.safetensors file"


def test_a_torch_file_becomes_safetensors(tmp_path: Path) -> None:
    """As NeMo-RL's DTensor converter writes it; the tied head shares the embedding's memory."""
    folder = write(tmp_path / "old", tensors())
    values = tensors()
    values["lm_head.weight"] = values["model.embed_tokens.weight"]
    new = write(tmp_path / "new", {})
    (new / "model.safetensors").unlink()
    torch.save(values, new / "pytorch_model.bin")
    write_safetensors(new)
    assert not (new / "pytorch_model.bin").exists()
    assert find_export_fault(new, folder, "bfloat16") is None
    loaded = load_file(new / "model.safetensors")
    assert loaded.keys() == tensors().keys() and torch.equal(loaded[LAST], values[LAST])
    write_safetensors(new)  # nothing left to do


def test_the_original_is_a_folder_with_safetensors_or_nothing(tmp_path: Path) -> None:
    folder = write(tmp_path / "old", tensors())
    assert locate_original(str(folder)) == folder
    assert read_headers(folder)[LAST].shape == (8, 4)
    assert locate_original(str(tmp_path)) is None
