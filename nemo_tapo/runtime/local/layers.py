"""The parts of a layer that Megatron-core leaves to kernels of the GPU: attention with rotary positions, SwiGLU.

Both are written to pass over their tensors as seldom as can be, for on a CPU such passes cost as much as half of the
matrix products; what they compute is what Megatron's (and Hugging Face's) plain formulas do.
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
    """Core attention on PyTorch's `scaled_dot_product_attention`; Megatron's own wants the CUDA random state.

    It also turns queries and keys by their positions (RoPE), which are 0, 1, ... in every row. Rows are
    right-padded, so causality is mask enough: a token only sees what stands before it, and padding stands behind.
    What padding computes reaches no loss, for its token_mask is 0.
    """

    def __init__(self, config: TransformerConfig, rotary_base: float, **_: Any) -> None:
        super().__init__(config=config)
        self.rotary_base = rotary_base

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **_: Any) -> Tensor:
        """query [s, b, heads, d], key and value [s, b, kv heads, d] of this rank -> [s, b, heads * d]."""
        assert attention_mask is None
        table = rotation(query.shape[0], query.shape[-1], self.rotary_base)
        query, key = _Rotary.apply(query, *table), _Rotary.apply(key, *table)  # type: ignore[no-untyped-call]
        repeats = query.shape[2] // key.shape[2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, _repeated(key, repeats), _repeated(value, repeats)))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return context.permute(2, 0, 1, 3).flatten(2)


def _repeated(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=2)


@lru_cache(maxsize=64)
def rotation(length: int, dim: int, base: float) -> tuple[Tensor, Tensor]:
    """(cos [s, 1, 1, d], sin [s, 1, 1, d / 2]) of the angles position * base^(-2i / d), fp32."""
    frequencies = 1.0 / base ** (torch.arange(0, dim, 2, dtype=torch.float32) / dim)
    angles = torch.outer(torch.arange(length, dtype=torch.float32), frequencies)[:, None, None, :]
    return torch.cat([angles, angles], -1).cos(), angles.sin()


class _Rotary(torch.autograd.Function):
    """(x1, x2) -> (x1 cos - x2 sin, x2 cos + x1 sin) for the two halves of the last dimension."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        ctx.save_for_backward(cos, sin)
        return _turned(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        cos, sin = ctx.saved_tensors
        return _turned(gradients[0], cos, sin, -1), None, None  # a rotation's transpose turns the other way


def _turned(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return out


class SwiGLU(torch.nn.Module):
    """silu(gate) * up on the MLP's fused [gate | up], without Megatron's cutting, adding of 0 and joining."""

    def __init__(self, config: TransformerConfig) -> None:
        super().__init__()

    def forward(self, gate_and_up: Tensor) -> Tensor:
        """[..., 2 f] -> [..., f]."""
        out: Tensor = _SwiGLU.apply(gate_and_up)  # type: ignore[no-untyped-call]
        return out


class _SwiGLU(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, gate_and_up: Tensor) -> Tensor:
        gate, up = gate_and_up.chunk(2, -1)
        opened = F.silu(gate)
        ctx.save_for_backward(gate_and_up, opened)
        return opened * up

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor]:
        gate_and_up, opened = ctx.saved_tensors
        gate, up = gate_and_up.chunk(2, -1)
        out = torch.empty_like(gate_and_up)
        to_gate, to_up = out.chunk(2, -1)
        torch.mul(gradients[0], opened, out=to_up)
        torch.ops.aten.silu_backward(gradients[0] * up, gate, grad_input=to_gate)
        return (out,)
