"""runtime/local/weights.py: full tensors to Megatron shards and back, for any TP and PP, without processes."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from nemo_tapo.runtime.local.weights import ModelParallelRank, ModelShape, check_layout, merge_weights, split_weights

SHAPE = ModelShape(layers=4, hidden=8, heads=4, kv_heads=2, head_dim=3, ffn=12, vocab=11, tied=True)


def random_weights(shape: ModelShape) -> dict[str, Tensor]:
    """Every tensor of a Qwen3 model of this shape, named as Hugging Face does."""
    torch.manual_seed(0)
    q, kv = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    sizes = {"model.embed_tokens.weight": (shape.vocab, shape.hidden), "model.norm.weight": (shape.hidden,)}
    if not shape.tied:
        sizes["lm_head.weight"] = (shape.vocab, shape.hidden)
    for layer in range(shape.layers):
        prefix = f"model.layers.{layer}."
        sizes |= {
            prefix + "input_layernorm.weight": (shape.hidden,),
            prefix + "post_attention_layernorm.weight": (shape.hidden,),
            prefix + "self_attn.q_norm.weight": (shape.head_dim,),
            prefix + "self_attn.k_norm.weight": (shape.head_dim,),
            prefix + "self_attn.q_proj.weight": (q, shape.hidden),
            prefix + "self_attn.k_proj.weight": (kv, shape.hidden),
            prefix + "self_attn.v_proj.weight": (kv, shape.hidden),
            prefix + "self_attn.o_proj.weight": (shape.hidden, q),
            prefix + "mlp.gate_proj.weight": (shape.ffn, shape.hidden),
            prefix + "mlp.up_proj.weight": (shape.ffn, shape.hidden),
            prefix + "mlp.down_proj.weight": (shape.hidden, shape.ffn),
        }
    return {name: torch.randn(size) for name, size in sizes.items()}


def shards(full: dict[str, Tensor], shape: ModelShape, tp: int, pp: int) -> dict[tuple[int, int], dict[str, Tensor]]:
    return {(t, p): split_weights(full, shape, ModelParallelRank(tp, pp, t, p)) for t in range(tp) for p in range(pp)}


@pytest.mark.parametrize("tied", [True, False])
@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 1), (1, 2), (2, 2), (1, 4), (2, 4)])
def test_round_trip(tp: int, pp: int, tied: bool) -> None:
    shape = replace(SHAPE, tied=tied)
    full = random_weights(shape)
    back = merge_weights(shards(full, shape, tp, pp), shape)
    assert back.keys() == full.keys()
    assert all(torch.equal(back[name], full[name]) for name in full)


def test_every_number_is_on_some_rank_once_but_for_what_is_shared() -> None:
    shape = replace(SHAPE, tied=False, vocab=12)
    full = random_weights(shape)
    total = sum(t.numel() for t in full.values())
    norms = sum(t.numel() for name, t in full.items() if "norm" in name)
    held = sum(t.numel() for shard in shards(full, shape, 2, 2).values() for t in shard.values())
    assert held == total + norms  # TP = 2 holds the norms twice


def test_the_fused_projection_is_grouped_by_kv_head() -> None:
    """Rank 1 of 2 holds kv head 1: its two query heads, then its key, then its value."""
    full = random_weights(SHAPE)
    shard = split_weights(full, SHAPE, ModelParallelRank(2, 1, 1, 0))
    prefix, d = "model.layers.0.self_attn.", SHAPE.head_dim
    expected = torch.cat(
        [
            full[prefix + "q_proj.weight"][2 * d :],
            full[prefix + "k_proj.weight"][d:],
            full[prefix + "v_proj.weight"][d:],
        ]
    )
    assert torch.equal(shard["decoder.layers.0.self_attention.linear_qkv.weight"], expected)


def test_gate_and_up_stand_above_each_other_on_each_rank() -> None:
    full = random_weights(SHAPE)
    shard = split_weights(full, SHAPE, ModelParallelRank(2, 1, 0, 0))
    gate, up = full["model.layers.2.mlp.gate_proj.weight"], full["model.layers.2.mlp.up_proj.weight"]
    assert torch.equal(shard["decoder.layers.2.mlp.linear_fc1.weight"], torch.cat([gate[:6], up[:6]]))


def test_the_vocabulary_is_padded_with_zeros_to_a_multiple_of_tp() -> None:
    full = random_weights(SHAPE)  # 11 tokens
    last = split_weights(full, SHAPE, ModelParallelRank(2, 1, 1, 0))["embedding.word_embeddings.weight"]
    assert last.shape == (6, SHAPE.hidden)
    assert torch.all(last[-1] == 0)


def test_stages_hold_what_is_theirs() -> None:
    full = random_weights(SHAPE)
    first, last = (split_weights(full, SHAPE, ModelParallelRank(1, 2, 0, p)) for p in (0, 1))
    assert "embedding.word_embeddings.weight" in first and "decoder.final_layernorm.weight" not in first
    assert torch.equal(last["output_layer.weight"], full["model.embed_tokens.weight"])  # tied: a copy
    assert torch.equal(last["decoder.layers.1.input_layernorm.weight"], full["model.layers.3.input_layernorm.weight"])


def test_a_missing_or_misshapen_tensor_is_named() -> None:
    full = random_weights(SHAPE)
    missing = {n: t for n, t in full.items() if n != "model.layers.1.mlp.up_proj.weight"}
    with pytest.raises(ValueError, match=r"no tensor 'model.layers.1.mlp.up_proj.weight'"):
        split_weights(missing, SHAPE, ModelParallelRank(1, 1))
    with pytest.raises(ValueError, match=r"'model.norm.weight' is \(7,\); by config.json it should be \(8,\)"):
        split_weights(full | {"model.norm.weight": torch.zeros(7)}, SHAPE, ModelParallelRank(1, 1))


@pytest.mark.parametrize(
    ("tp", "pp", "message"),
    [
        (3, 1, "tp = 3 does not divide the model's 4 attention heads"),
        (4, 1, "2 kv heads"),
        (1, 3, "pp = 3 .* 4 layers"),
    ],
)
def test_a_layout_that_does_not_divide_the_model_is_refused(tp: int, pp: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        check_layout(SHAPE, tp, pp)


@pytest.mark.parametrize(("tp", "pp"), [(1, 1), (2, 2)])
def test_biases_travel_with_their_rows_and_there_need_be_no_norms_of_heads(tp: int, pp: int) -> None:
    shape = replace(SHAPE, qk_norm=False, qkv_bias=True)
    full = {name: t for name, t in random_weights(shape).items() if "q_norm" not in name and "k_norm" not in name}
    full |= {
        n.replace("weight", "bias"): t[:, 0]
        for n, t in full.items()
        if n.split(".")[-2] in ("q_proj", "k_proj", "v_proj")
    }
    parts = shards(full, shape, tp, pp)
    fused = "decoder.layers.0.self_attention.linear_qkv."
    assert all(torch.equal(part[fused + "bias"], part[fused + "weight"][:, 0]) for part in parts.values())
    back = merge_weights(parts, shape)
    assert back.keys() == full.keys()
    assert all(torch.equal(back[name], full[name]) for name in full)


def test_a_tensor_without_a_place_is_named() -> None:
    full = random_weights(SHAPE)
    with pytest.raises(ValueError, match=r"have a tensor 'model.layers.0.self_attn.q_proj.bias', for which"):
        split_weights(full | {"model.layers.0.self_attn.q_proj.bias": torch.zeros(12)}, SHAPE, ModelParallelRank(1, 1))
    split_weights(
        full | {"lm_head.weight": torch.zeros(11, 8)}, SHAPE, ModelParallelRank(1, 1)
    )  # a tied one may be there
