"""One set of weights under two names: Hugging Face's full tensors and Megatron-core's shards, for any TP and PP.

```
Hugging Face (full)                            Megatron-core (of TP rank t, PP stage p)        split over TP
model.embed_tokens.weight        [V, h]        embedding.word_embeddings.weight   (first)      rows, padded
model.layers.L.self_attn.q|k|v_proj.weight     decoder.layers.l.self_attention.linear_qkv.weight   by kv head:
                                                 [q heads of the group | k | v] for each kv head
model.layers.L.self_attn.o_proj.weight         ....self_attention.linear_proj.weight           columns
model.layers.L.self_attn.q_norm|k_norm.weight  ....self_attention.q_layernorm|k_layernorm.weight   whole
model.layers.L.mlp.gate_proj|up_proj.weight    ....mlp.linear_fc1.weight = [gate | up]         rows of each
model.layers.L.mlp.down_proj.weight            ....mlp.linear_fc2.weight                       columns
model.layers.L.input_layernorm.weight          ....input_layernorm.weight                      whole
model.layers.L.post_attention_layernorm.weight ....pre_mlp_layernorm.weight                    whole
model.norm.weight                              decoder.final_layernorm.weight     (last)       whole
lm_head.weight                   [V, h]        output_layer.weight                (last)       rows, padded
```
L = l + p * layers / PP. With tied embeddings there is no lm_head, and under PP > 1 the last stage holds a copy of
the embedding as its output layer. The same mapping serves anything of the parameters' shapes: weights, gradients,
and AdamW's moments, so a checkpoint knows nothing of the layout that wrote it.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

State = dict[str, Tensor]


@dataclass(frozen=True)
class ModelShape:
    """The sizes of a Qwen3 model that decide how its weights are cut."""

    layers: int
    hidden: int
    heads: int
    kv_heads: int
    head_dim: int
    ffn: int
    vocab: int
    tied: bool  # the output layer is the embedding

    def padded_vocab(self, tp: int) -> int:
        """The vocabulary rounded up so that `tp` divides it; the rows added are 0."""
        return -(-self.vocab // tp) * tp


@dataclass(frozen=True)
class Place:
    """Where in the model-parallel grid a shard lies."""

    tp: int  # ranks
    pp: int
    tp_rank: int = 0
    pp_rank: int = 0

    @property
    def first(self) -> bool:
        return self.pp_rank == 0

    @property
    def last(self) -> bool:
        return self.pp_rank == self.pp - 1


def check_layout(shape: ModelShape, tp: int, pp: int) -> None:
    """Raises ValueError, with the numbers, for a layout that does not divide the model."""
    for name, count in (("attention heads", shape.heads), ("kv heads", shape.kv_heads), ("ffn width", shape.ffn)):
        if count % tp:
            raise ValueError(f"local.tp = {tp} does not divide the model's {count} {name}.")
    if shape.layers % pp:
        raise ValueError(f"local.pp = {pp} does not divide the model's {shape.layers} layers.")


def split(full: Mapping[str, Tensor], shape: ModelShape, place: Place) -> State:
    """The shard of `place`, Megatron names, from full tensors under Hugging Face names.

    Raises ValueError if a tensor is missing or has another shape than the model's configuration says. Tensors
    beyond the model's (a tied lm_head, say) are left alone.
    """
    take = _Taker(full, shape)
    out: State = {}
    if place.first:
        out["embedding.word_embeddings.weight"] = _rows(_padded(take.embedding(), shape, place), place)
    per_stage = shape.layers // place.pp
    for local in range(per_stage):
        layer = local + place.pp_rank * per_stage
        out |= _split_layer(take, f"model.layers.{layer}.", f"decoder.layers.{local}.", shape, place)
    if place.last:
        out["decoder.final_layernorm.weight"] = take("model.norm.weight", shape.hidden)
        if not (shape.tied and place.first):
            head = take.embedding() if shape.tied else take("lm_head.weight", shape.vocab, shape.hidden)
            out["output_layer.weight"] = _rows(_padded(head, shape, place), place)
    return out


def merge(shards: Mapping[tuple[int, int], Mapping[str, Tensor]], shape: ModelShape) -> State:
    """Full tensors, Hugging Face names, from the shards {(tp_rank, pp_rank): state}. The inverse of `split`."""
    tp = 1 + max(t for t, _ in shards)
    pp = 1 + max(p for _, p in shards)
    assert len(shards) == tp * pp, "merge needs every shard of one data-parallel replica"
    grid = [[shards[t, p] for t in range(tp)] for p in range(pp)]
    out: State = {"model.embed_tokens.weight": _stacked(grid[0], "embedding.word_embeddings.weight")[: shape.vocab]}
    per_stage = shape.layers // pp
    for layer in range(shape.layers):
        stage, local = divmod(layer, per_stage)
        out |= _merge_layer(grid[stage], f"decoder.layers.{local}.", f"model.layers.{layer}.", shape)
    out["model.norm.weight"] = grid[-1][0]["decoder.final_layernorm.weight"]
    if not shape.tied:
        out["lm_head.weight"] = _stacked(grid[-1], "output_layer.weight")[: shape.vocab]
    return {name: tensor.contiguous() for name, tensor in out.items()}


def is_shared_over_tp(name: str) -> bool:
    """Whether every tensor-parallel rank holds this Megatron parameter whole (the norms)."""
    return "norm" in name


class _Taker:
    """Full tensors by name, with their shapes checked."""

    def __init__(self, full: Mapping[str, Tensor], shape: ModelShape) -> None:
        self._full, self._shape = full, shape

    def __call__(self, name: str, *size: int) -> Tensor:
        if name not in self._full:
            raise ValueError(f"the model's weights have no tensor '{name}'.")
        tensor = self._full[name]
        if tuple(tensor.shape) != size:
            raise ValueError(f"'{name}' is {tuple(tensor.shape)}; by config.json it should be {size}.")
        return tensor

    def embedding(self) -> Tensor:
        return self("model.embed_tokens.weight", self._shape.vocab, self._shape.hidden)


def _padded(rows: Tensor, shape: ModelShape, place: Place) -> Tensor:
    missing = shape.padded_vocab(place.tp) - shape.vocab
    return torch.cat([rows, rows.new_zeros(missing, rows.shape[1])]) if missing else rows


def _rows(tensor: Tensor, place: Place) -> Tensor:
    return tensor.chunk(place.tp, 0)[place.tp_rank]


def _columns(tensor: Tensor, place: Place) -> Tensor:
    return tensor.chunk(place.tp, 1)[place.tp_rank]


def _stacked(shards: list[Mapping[str, Tensor]], name: str, dim: int = 0) -> Tensor:
    return torch.cat([s[name] for s in shards], dim) if len(shards) > 1 else shards[0][name]


# whole tensors of a layer: (Hugging Face, Megatron, "hidden" or "head")
_NORMS = (
    ("input_layernorm.weight", "input_layernorm.weight", "hidden"),
    ("post_attention_layernorm.weight", "pre_mlp_layernorm.weight", "hidden"),
    ("self_attn.q_norm.weight", "self_attention.q_layernorm.weight", "head"),
    ("self_attn.k_norm.weight", "self_attention.k_layernorm.weight", "head"),
)


def _split_layer(take: _Taker, source: str, target: str, shape: ModelShape, place: Place) -> State:
    out: State = {}
    for theirs, ours, size in _NORMS:
        out[target + ours] = take(source + theirs, shape.hidden if size == "hidden" else shape.head_dim)
    q_rows, kv_rows = shape.heads * shape.head_dim, shape.kv_heads * shape.head_dim
    q = take(source + "self_attn.q_proj.weight", q_rows, shape.hidden)
    k = take(source + "self_attn.k_proj.weight", kv_rows, shape.hidden)
    v = take(source + "self_attn.v_proj.weight", kv_rows, shape.hidden)
    groups = [x.reshape(shape.kv_heads, -1, shape.hidden) for x in (q, k, v)]
    fused = torch.cat(groups, 1).flatten(0, 1)
    out[target + "self_attention.linear_qkv.weight"] = _rows(fused, place)
    out[target + "self_attention.linear_proj.weight"] = _columns(
        take(source + "self_attn.o_proj.weight", shape.hidden, q_rows), place
    )
    gate = take(source + "mlp.gate_proj.weight", shape.ffn, shape.hidden)
    up = take(source + "mlp.up_proj.weight", shape.ffn, shape.hidden)
    out[target + "mlp.linear_fc1.weight"] = torch.cat([_rows(gate, place), _rows(up, place)])
    out[target + "mlp.linear_fc2.weight"] = _columns(
        take(source + "mlp.down_proj.weight", shape.hidden, shape.ffn), place
    )
    return out


def _merge_layer(shards: list[Mapping[str, Tensor]], source: str, target: str, shape: ModelShape) -> State:
    out = {target + theirs: shards[0][source + ours] for theirs, ours, _ in _NORMS}
    fused = _stacked(shards, source + "self_attention.linear_qkv.weight")
    per_group = shape.heads // shape.kv_heads * shape.head_dim
    grouped = fused.view(shape.kv_heads, -1, shape.hidden)
    q, k, v = grouped.split([per_group, shape.head_dim, shape.head_dim], 1)
    for name, part in (("q", q), ("k", k), ("v", v)):
        out[f"{target}self_attn.{name}_proj.weight"] = part.reshape(-1, shape.hidden)
    out[target + "self_attn.o_proj.weight"] = _stacked(shards, source + "self_attention.linear_proj.weight", 1)
    halves = [s[source + "mlp.linear_fc1.weight"].chunk(2) for s in shards]
    out[target + "mlp.gate_proj.weight"] = torch.cat([gate for gate, _ in halves])
    out[target + "mlp.up_proj.weight"] = torch.cat([up for _, up in halves])
    out[target + "mlp.down_proj.weight"] = _stacked(shards, source + "mlp.linear_fc2.weight", 1)
    return out
