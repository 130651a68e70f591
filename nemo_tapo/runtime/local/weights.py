"""Convert weights between Hugging Face's full tensors and Megatron-core's shards, for any TP and PP.

```
Hugging Face (full)                            Megatron-core (of TP rank t, PP stage p)        split over TP
model.embed_tokens.weight        [V, h]        embedding.word_embeddings.weight   (first)      rows, padded
model.layers.L.self_attn.q|k|v_proj.weight     decoder.layers.l.self_attention.linear_qkv.weight   by kv head:
                                                 [q heads of the group | k | v] for each kv head
model.layers.L.self_attn.q|k|v_proj.bias       ....self_attention.linear_qkv.bias  (Qwen2)    by kv head, likewise
model.layers.L.self_attn.o_proj.weight         ....self_attention.linear_proj.weight           columns
model.layers.L.self_attn.q_norm|k_norm.weight  ....self_attention.q_layernorm|k_layernorm.weight   whole (Qwen3)
model.layers.L.mlp.gate_proj|up_proj.weight    ....mlp.linear_fc1.weight = [gate | up]         rows of each
model.layers.L.mlp.down_proj.weight            ....mlp.linear_fc2.weight                       columns
model.layers.L.input_layernorm.weight          ....input_layernorm.weight                      whole
model.layers.L.post_attention_layernorm.weight ....pre_mlp_layernorm.weight                    whole
model.norm.weight                              decoder.final_layernorm.weight     (last)       whole
lm_head.weight                   [V, h]        output_layer.weight                (last)       rows, padded
```
L = l + p * layers / PP. With tied embeddings there is no lm_head, and under PP > 1 the last stage holds a copy of
the embedding as its output layer. The same mapping works for everything with the parameters' shapes: weights, gradients
and AdamW's moments. So a checkpoint does not depend on the layout that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

StateDict = dict[str, Tensor]
EMBEDDING, HEAD = "model.embed_tokens.weight", "lm_head.weight"


@dataclass(frozen=True)
class ModelShape:
    """The sizes and parts of a model that decide which weights it has and how they are split.

    >>> shape = ModelShape(layers=2, hidden=64, heads=4, kv_heads=2, head_dim=16, ffn=128, vocab=513, tied=True)
    >>> shape.padded_vocab(tp=2)
    514
    """

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool  # the output layer shares the embedding's weights
    qk_norm: bool = True  # queries and keys of each head are normalised, as in Qwen3
    qkv_bias: bool = False  # the projections to queries, keys and values have a bias, as in Qwen2

    def padded_vocab(self, tp: int) -> int:
        """Return the vocabulary size rounded up to a multiple of `tp`; the added rows are 0."""
        return -(-self.vocab // tp) * tp


@dataclass(frozen=True)
class ModelParallelRank:
    """A rank's position in the model-parallel grid.

    >>> last = ModelParallelRank(tp=1, pp=2, tp_rank=0, pp_rank=1)
    >>> last.is_first_stage, last.is_last_stage
    (False, True)
    """

    tp: int  # number of tensor-parallel ranks
    pp: int  # number of pipeline stages
    tp_rank: int = 0
    pp_rank: int = 0

    @property
    def is_first_stage(self) -> bool:
        """Whether the rank is on the first pipeline stage, which holds the embedding."""
        return self.pp_rank == 0

    @property
    def is_last_stage(self) -> bool:
        """Whether the rank is on the last pipeline stage, which holds the output layer."""
        return self.pp_rank == self.pp - 1


def check_layout(shape: ModelShape, tp: int, pp: int) -> None:
    """Raise ValueError, with the numbers, if `tp` and `pp` do not divide the model's sizes."""
    for name, count in (("attention heads", shape.heads), ("kv heads", shape.kv_heads), ("ffn width", shape.ffn)):
        if count % tp:
            raise ValueError(f"local.tp = {tp} does not divide the model's {count} {name}.")
    if shape.layers % pp:
        raise ValueError(f"local.pp = {pp} does not divide the model's {shape.layers} layers.")


def list_tensors(shape: ModelShape) -> dict[str, tuple[int, ...]]:
    """Return {Hugging Face name: size} of all tensors of the model.

    >>> shape = ModelShape(layers=1, hidden=6, heads=2, kv_heads=1, head_dim=4, ffn=8, vocab=9, tied=True)
    >>> list_tensors(shape)["model.layers.0.self_attn.q_proj.weight"]
    (8, 6)
    """
    h, q, kv = shape.hidden, shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    layer: dict[str, tuple[int, ...]] = {
        "input_layernorm.weight": (h,),
        "post_attention_layernorm.weight": (h,),
        "self_attn.q_proj.weight": (q, h),
        "self_attn.k_proj.weight": (kv, h),
        "self_attn.v_proj.weight": (kv, h),
        "self_attn.o_proj.weight": (h, q),
        "mlp.gate_proj.weight": (shape.ffn, h),
        "mlp.up_proj.weight": (shape.ffn, h),
        "mlp.down_proj.weight": (h, shape.ffn),
    }
    if shape.qk_norm:
        layer |= {f"self_attn.{x}_norm.weight": (shape.head_dim,) for x in "qk"}
    if shape.qkv_bias:
        layer |= {"self_attn.q_proj.bias": (q,), "self_attn.k_proj.bias": (kv,), "self_attn.v_proj.bias": (kv,)}
    out: dict[str, tuple[int, ...]] = {EMBEDDING: (shape.vocab, h), "model.norm.weight": (h,)}
    if not shape.tied:
        out[HEAD] = (shape.vocab, h)
    return out | {f"model.layers.{i}.{name}": size for i in range(shape.layers) for name, size in layer.items()}


def require_complete(full: Mapping[str, Tensor], shape: ModelShape) -> None:
    """Raise ValueError, which names the tensor, if one is missing, has another size, or has no place in the model.

    A tied lm_head may be there: it is not read.
    """
    expected = list_tensors(shape)
    for name, size in expected.items():
        if name not in full:
            raise ValueError(f"the model's weights have no tensor '{name}'.")
        if tuple(full[name].shape) != size:
            raise ValueError(f"'{name}' is {tuple(full[name].shape)}; by config.json it should be {size}.")
    for name in sorted(full.keys() - expected.keys() - {HEAD}):
        raise ValueError(f"the model's weights have a tensor '{name}', for which config.json leaves no place.")


def split_weights(full: Mapping[str, Tensor], shape: ModelShape, rank: ModelParallelRank) -> StateDict:
    """Return the shard of `rank` under Megatron names, from full tensors under Hugging Face names.

    Raises ValueError as `require_complete` does.
    """
    require_complete(full, shape)
    out: StateDict = {}
    if rank.is_first_stage:
        out["embedding.word_embeddings.weight"] = _take_rows(_pad_vocab(full[EMBEDDING], shape, rank), rank)
    per_stage = shape.layers // rank.pp
    for local in range(per_stage):
        layer = local + rank.pp_rank * per_stage
        out |= _split_layer(full, f"model.layers.{layer}.", f"decoder.layers.{local}.", shape, rank)
    if rank.is_last_stage:
        out["decoder.final_layernorm.weight"] = full["model.norm.weight"]
        if not (shape.tied and rank.is_first_stage):
            head = full[EMBEDDING if shape.tied else HEAD]
            out["output_layer.weight"] = _take_rows(_pad_vocab(head, shape, rank), rank)
    return out


def merge_weights(shards: Mapping[tuple[int, int], Mapping[str, Tensor]], shape: ModelShape) -> StateDict:
    """Return full tensors under Hugging Face names from the shards {(tp_rank, pp_rank): state}.

    The inverse of `split_weights`.
    """
    tp = 1 + max(t for t, _ in shards)
    pp = 1 + max(p for _, p in shards)
    assert len(shards) == tp * pp, "merge needs every shard of one data-parallel replica"
    grid = [[shards[t, p] for t in range(tp)] for p in range(pp)]
    out: StateDict = {EMBEDDING: _concatenate(grid[0], "embedding.word_embeddings.weight")[: shape.vocab]}
    per_stage = shape.layers // pp
    for layer in range(shape.layers):
        stage, local = divmod(layer, per_stage)
        out |= _merge_layer(grid[stage], f"decoder.layers.{local}.", f"model.layers.{layer}.", shape)
    out["model.norm.weight"] = grid[-1][0]["decoder.final_layernorm.weight"]
    if not shape.tied:
        out[HEAD] = _concatenate(grid[-1], "output_layer.weight")[: shape.vocab]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def is_shared_over_tp(name: str) -> bool:
    """Return whether every tensor-parallel rank holds the whole of this Megatron parameter (the norms).

    >>> is_shared_over_tp("decoder.final_layernorm.weight"), is_shared_over_tp("output_layer.weight")
    (True, False)
    """
    return "norm" in name


def _pad_vocab(rows: Tensor, shape: ModelShape, rank: ModelParallelRank) -> Tensor:
    missing = shape.padded_vocab(rank.tp) - shape.vocab
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows


def _take_rows(tensor: Tensor, rank: ModelParallelRank) -> Tensor:
    return tensor.chunk(rank.tp, 0)[rank.tp_rank]


def _take_columns(tensor: Tensor, rank: ModelParallelRank) -> Tensor:
    return tensor.chunk(rank.tp, 1)[rank.tp_rank]


def _concatenate(shards: list[Mapping[str, Tensor]], name: str, dim: int = 0) -> Tensor:
    return torch.cat([s[name] for s in shards], dim) if len(shards) > 1 else shards[0][name]


# tensors of a layer that are not split: (Hugging Face name, Megatron name)
_NORMS = (
    ("input_layernorm.weight", "input_layernorm.weight"),
    ("post_attention_layernorm.weight", "pre_mlp_layernorm.weight"),
)
_HEAD_NORMS = (
    ("self_attn.q_norm.weight", "self_attention.q_layernorm.weight"),
    ("self_attn.k_norm.weight", "self_attention.k_layernorm.weight"),
)


def _list_norms(shape: ModelShape) -> tuple[tuple[str, str], ...]:
    return _NORMS + (_HEAD_NORMS if shape.qk_norm else ())


def _list_qkv(shape: ModelShape) -> tuple[str, ...]:
    return ("weight", "bias") if shape.qkv_bias else ("weight",)


def _split_layer(
    full: Mapping[str, Tensor], source: str, target: str, shape: ModelShape, rank: ModelParallelRank
) -> StateDict:
    out = {target + megatron_name: full[source + hf_name] for hf_name, megatron_name in _list_norms(shape)}
    for kind in _list_qkv(shape):
        parts = [full[f"{source}self_attn.{x}_proj.{kind}"].unflatten(0, (shape.kv_heads, -1)) for x in "qkv"]
        out[f"{target}self_attention.linear_qkv.{kind}"] = _take_rows(torch.cat(parts, 1).flatten(0, 1), rank)
    out[target + "self_attention.linear_proj.weight"] = _take_columns(full[source + "self_attn.o_proj.weight"], rank)
    gate, up = (_take_rows(full[f"{source}mlp.{x}_proj.weight"], rank) for x in ("gate", "up"))
    out[target + "mlp.linear_fc1.weight"] = torch.cat([gate, up])
    out[target + "mlp.linear_fc2.weight"] = _take_columns(full[source + "mlp.down_proj.weight"], rank)
    return out


def _merge_layer(shards: list[Mapping[str, Tensor]], source: str, target: str, shape: ModelShape) -> StateDict:
    out = {target + hf_name: shards[0][source + megatron_name] for hf_name, megatron_name in _list_norms(shape)}
    per_group = shape.heads // shape.kv_heads * shape.head_dim
    for kind in _list_qkv(shape):
        fused = _concatenate(shards, f"{source}self_attention.linear_qkv.{kind}").unflatten(0, (shape.kv_heads, -1))
        for name, part in zip("qkv", fused.split([per_group, shape.head_dim, shape.head_dim], 1), strict=True):
            out[f"{target}self_attn.{name}_proj.{kind}"] = part.flatten(0, 1)
    out[target + "self_attn.o_proj.weight"] = _concatenate(shards, source + "self_attention.linear_proj.weight", 1)
    halves = [s[source + "mlp.linear_fc1.weight"].chunk(2) for s in shards]
    out[target + "mlp.gate_proj.weight"] = torch.cat([gate for gate, _ in halves])
    out[target + "mlp.up_proj.weight"] = torch.cat([up for _, up in halves])
    out[target + "mlp.down_proj.weight"] = _concatenate(shards, source + "mlp.linear_fc2.weight", 1)
    return out
