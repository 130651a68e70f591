"""CPU versions of the layer parts that Megatron-core leaves to GPU kernels: attention with rotary positions, SwiGLU.

Both read and write their tensors as few times as possible: on a CPU these passes can cost half as much as the matrix
products. The results are those of Megatron's (and Hugging Face's) plain formulas.
"""

from __future__ import annotations

from functools import lru_cache
from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor


class CausalAttention(MegatronModule):  # type: ignore[misc]
    """Core attention on PyTorch's `scaled_dot_product_attention`; Megatron's own needs the CUDA random state.

    It also applies rotary positions (RoPE) to queries and keys. Positions are 0, 1, ... in every row. The causal mask
    is enough: rows are right-padded, so no token sees the padding behind it. Outputs at padding positions reach no
    loss, because their token_mask is 0.
    """

    def __init__(self, config: TransformerConfig, rotary_base: float, **_: Any) -> None:
        super().__init__(config=config)
        self.rotary_base = rotary_base

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **_: Any) -> Tensor:
        """Return the attention output [s, b, heads * d] of this rank.

        `query` is [s, b, heads, d]; `key` and `value` are [s, b, kv heads, d].
        """
        assert attention_mask is None
        table = make_rotary_table(query.shape[0], query.shape[-1], self.rotary_base)
        query, key = _Rotary.apply(query, *table), _Rotary.apply(key, *table)  # type: ignore[no-untyped-call]
        repeats = query.shape[2] // key.shape[2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, _repeat_heads(key, repeats), _repeat_heads(value, repeats)))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return context.permute(2, 0, 1, 3).flatten(2)


def _repeat_heads(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=2)


@lru_cache(maxsize=64)
def make_rotary_table(length: int, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """Return (cos [s, 1, 1, d], sin [s, 1, 1, d / 2]) of the angles position * base^(-2i / d), fp32.

    >>> cos, sin = make_rotary_table(length=3, dim=4, base=100.0)
    >>> tuple(cos.shape), tuple(sin.shape), [round(x, 2) for x in sin[2].flatten().tolist()]
    ((3, 1, 1, 4), (3, 1, 1, 2), [0.91, 0.2])
    """
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[:, None, None, :]
    return torch.cat([angles, angles], -1).cos(), angles.sin()


class _Rotary(torch.autograd.Function):
    """Maps the two halves of the last dimension, (x1, x2), to (x1 cos - x2 sin, x2 cos + x1 sin)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _rotate(gradients[0], cos, sin, -1), None, None  # the transpose of a rotation is the opposite rotation


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return out


class SwiGLU(torch.nn.Module):
    """Computes silu(gate) * up from the MLP's fused [gate | up], without the extra copies of Megatron's version."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """Map [..., 2 f] to [..., f]."""
        out: Tensor = _SwiGLU.apply(gate_and_up)  # type: ignore[no-untyped-call]
        return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate, up = gate_and_up.chunk(2, -1)
        activated = F.silu(gate)
        ctx.save_for_backward(gate_and_up, activated)
        return activated * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        gate_and_up, activated = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        out = torch.empty_like(gate_and_up)
        gate_gradient, up_gradient = out.chunk(2, -1)
        torch.mul(gradients[0], activated, out=up_gradient)
        torch.ops.aten.silu_backward(gradients[0] * up, gate, grad_input=gate_gradient)
        return (out,)
