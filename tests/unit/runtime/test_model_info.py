"""runtime/local/hf_checkpoint.py: which model directories are read, how, and by which sentence others are refused."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.runtime.local.hf_checkpoint import (
    ModelInfo,
    find_differences,
    read_model_info,
    read_tensor_shapes,
    read_weights,
)
from nemo_tapo.runtime.local.rotary import Rope
from nemo_tapo.stages.dry_run import plan_command

LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
# Keys of the config.json of meta-llama/Llama-3.1-8B-Instruct as published, written by transformers 4.42
LLAMA_31_8B = {
    "architectures": ["LlamaForCausalLM"],
    "attention_bias": False,
    "bos_token_id": 128000,
    "eos_token_id": [128001, 128008, 128009],
    "hidden_act": "silu",
    "hidden_size": 4096,
    "intermediate_size": 14336,
    "max_position_embeddings": 131072,
    "mlp_bias": False,
    "model_type": "llama",
    "num_attention_heads": 32,
    "num_hidden_layers": 32,
    "num_key_value_heads": 8,
    "pretraining_tp": 1,
    "rms_norm_eps": 1e-05,
    "rope_scaling": {**LLAMA3, "rope_type": "llama3"},
    "rope_theta": 500000.0,
    "tie_word_embeddings": False,
    "torch_dtype": "bfloat16",
    "vocab_size": 128256,
}
# Qwen/Qwen2.5-0.5B-Instruct, likewise
QWEN_25_05B = {
    "architectures": ["Qwen2ForCausalLM"],
    "hidden_act": "silu",
    "hidden_size": 896,
    "intermediate_size": 4864,
    "max_position_embeddings": 32768,
    "max_window_layers": 21,
    "model_type": "qwen2",
    "num_attention_heads": 14,
    "num_hidden_layers": 24,
    "num_key_value_heads": 2,
    "rms_norm_eps": 1e-06,
    "rope_theta": 1000000.0,
    "sliding_window": 32768,
    "tie_word_embeddings": True,
    "use_sliding_window": False,
    "vocab_size": 151936,
}


def read(folder: Path, config: dict[str, Any], **changes: Any) -> ModelInfo:
    (folder / "config.json").write_text(json.dumps(config | changes))
    return read_model_info(folder)


def test_llama_as_it_is_published(tmp_path: Path) -> None:
    info = read(tmp_path, LLAMA_31_8B)
    assert (info.shape.head_dim, info.shape.qk_norm, info.shape.qkv_bias, info.shape.tied) == (128, False, False, False)
    assert info.rope == Rope(500000.0, "llama3", tuple(sorted(LLAMA3.items())))
    assert info.norm_eps == 1e-5


def test_qwen25_as_it_is_published(tmp_path: Path) -> None:
    info = read(tmp_path, QWEN_25_05B)
    assert (info.shape.head_dim, info.shape.qk_norm, info.shape.qkv_bias, info.shape.tied) == (64, False, True, True)
    assert info.rope == Rope(1e6)


def test_the_form_that_transformers_5_writes_is_the_same_model(tmp_path: Path) -> None:
    old = read(tmp_path, LLAMA_31_8B)
    scaling = {**LLAMA3, "rope_type": "llama3", "rope_theta": 500000.0}
    new = read(tmp_path, {k: v for k, v in LLAMA_31_8B.items() if not k.startswith("rope")}, rope_parameters=scaling)
    assert find_differences(new, old) == []


def test_frequencies_by_hand() -> None:
    """Llama 3: pairs of wave length below 8192 / 4 keep their frequency, those above 8192 / 1 get an eighth of it."""
    plain, _ = Rope(500000.0).frequencies(128)
    scaled, factor = Rope(500000.0, "llama3", tuple(sorted(LLAMA3.items()))).frequencies(128)
    waves = [2 * torch.pi / f for f in plain]
    kept, stretched = (sum(1 for w in waves if w < 2048), sum(1 for w in waves if w > 8192))
    assert scaled[:kept] == plain[:kept] and factor == 1.0
    assert scaled[-stretched:] == pytest.approx([f / 8 for f in plain[-stretched:]])
    assert 0 < kept < 64 - stretched < 64
    yarn = {"factor": 4.0, "original_max_position_embeddings": 32768}
    assert Rope(1e6, "yarn", tuple(sorted(yarn.items()))).frequencies(64)[1] == pytest.approx(1.138629)  # 0.1 ln 4 + 1


@pytest.mark.parametrize(
    ("config", "changes", "sentence"),
    [
        (LLAMA_31_8B, {"architectures": ["MistralForCausalLM"]}, r"MistralForCausalLM.*trains LlamaForCausalLM, Qwen2"),
        (QWEN_25_05B, {"architectures": ["Qwen2MoeForCausalLM"]}, "Qwen2MoeForCausalLM"),
        (LLAMA_31_8B, {"architectures": None}, r"architectures is \[\]"),
        (LLAMA_31_8B, {"attention_bias": True}, "attention_bias is True"),
        (LLAMA_31_8B, {"mlp_bias": True}, "mlp_bias is True"),
        (LLAMA_31_8B, {"hidden_act": "gelu"}, "hidden_act is 'gelu'"),
        (LLAMA_31_8B, {"quantization_config": {"quant_method": "awq"}}, "quantization_config is .*awq"),
        (LLAMA_31_8B, {"rope_scaling": {"type": "dynamic", "factor": 2.0}}, "rope type is 'dynamic'.*has default,"),
        (LLAMA_31_8B, {"rope_scaling": {"type": "llama3", "factor": 2.0}}, "needs a number 'low_freq_factor'"),
        (LLAMA_31_8B, {"partial_rotary_factor": 0.5}, "partial_rotary_factor is 0.5"),
        (LLAMA_31_8B, {"num_hidden_layers": None}, "num_hidden_layers is None"),
        (LLAMA_31_8B, {"num_key_value_heads": 5}, "num_key_value_heads = 5 does not divide 32 attention heads"),
        (QWEN_25_05B, {"use_sliding_window": True}, "use_sliding_window is True"),
        (QWEN_25_05B, {"layer_types": ["full_attention", "sliding_attention"]}, "layer_types names sliding_attention"),
        (QWEN_25_05B, {"dual_chunk_attention_config": {"chunk_size": 8}}, "dual_chunk_attention_config"),
        (QWEN_25_05B, {"head_dim": 128}, "head_dim is 128.*hidden_size / num_attention_heads only"),
    ],
)
def test_what_is_not_built_is_refused_by_name(
    config: dict[str, Any], changes: dict[str, Any], sentence: str, tmp_path: Path
) -> None:
    with pytest.raises(ValueError, match=sentence):
        read(tmp_path, config, **changes)


def test_a_config_that_is_cut_off_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"architectures": ["Llama')
    with pytest.raises(ValueError, match=r"config\.json does not parse"):
        read_model_info(tmp_path)


def test_a_directory_with_a_part_missing_is_refused(tmp_path: Path) -> None:
    index = {"weight_map": {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps(index))
    save_file({"a": torch.ones(2)}, tmp_path / "model-00001-of-00002.safetensors")
    with pytest.raises(ValueError, match=r"is incomplete.*names model-00002-of-00002.safetensors, which is not there"):
        read_weights(tmp_path)


def test_only_the_files_of_the_index_and_only_weights_are_read(tmp_path: Path) -> None:
    """Llama's repositories hold a second copy in consolidated.safetensors; old ones store computed frequencies."""
    computed = "model.layers.0.self_attn.rotary_emb.inv_freq"
    save_file({"a": torch.ones(2).bfloat16(), computed: torch.ones(3)}, tmp_path / "model.safetensors")
    save_file({"other": torch.ones(2)}, tmp_path / "consolidated.safetensors")
    assert read_tensor_shapes(tmp_path) == {"a": (2,)}
    assert {n: t.dtype for n, t in read_weights(tmp_path).items()} == {"a": torch.float32}


def test_a_plan_names_the_architecture_and_refuses_what_cannot_be_trained(tmp_path: Path) -> None:
    cfg = RunConfig.model_validate({"model": {"path": tmp_path}, "local": {"tp": 2}})
    read(tmp_path, QWEN_25_05B)
    assert f"model: {tmp_path}: Qwen2ForCausalLM, no *.safetensors in it" in plan_command(cfg, "train")
    (tmp_path / "config.json").write_text(json.dumps(QWEN_25_05B | {"num_key_value_heads": 1}))
    with pytest.raises(ValueError, match="2 does not divide the model's 1 kv heads"):
        plan_command(cfg, "train")
    (tmp_path / "config.json").write_text(json.dumps(QWEN_25_05B | {"architectures": ["OlmoForCausalLM"]}))
    with pytest.raises(ValueError, match="OlmoForCausalLM"):
        plan_command(cfg, "train")
    assert any(line.startswith(f"model: {tmp_path}: no") for line in plan_command(cfg, "evaluate"))  # vLLM may have it
