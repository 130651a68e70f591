"""CPU versions of the layer parts that Megatron-core leaves to GPU kernels: attention with rotary positions, SwiGLU.

Both read and write their tensors as few times as possible: on a CPU these passes can cost half as much as the matrix
products. The results are those of Megatron's (and Hugging Face's) plain formulas.
"""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from megatron.core.transformer import TransformerConfig
from megatron.core.transformer.module import MegatronModule
from torch import Tensor

from nemo_tapo.runtime.local.rotary import Rope, Rotary, make_rotary_table


class CausalAttention(MegatronModule):  # type: ignore[misc]
    """Core attention on PyTorch's `scaled_dot_product_attention`; Megatron's own needs the CUDA random state.

    It also applies rotary positions (RoPE) to queries and keys. Positions are 0, 1, ... in every row. The causal mask
    is enough: rows are right-padded, so no token sees the padding behind it. Outputs at padding positions reach no
    loss, because their token_mask is 0.
    """

    def __init__(self, config: TransformerConfig, rope: Rope, **_: Any) -> None:
        super().__init__(config=config)
        self.rotary_frequencies, self.rotary_scale = rope.frequencies(config.kv_channels)

    def forward(self, query: Tensor, key: Tensor, value: Tensor, attention_mask: Any = None, **_: Any) -> Tensor:
        """Return the attention output [s, b, heads * d] of this rank.

        `query` is [s, b, heads, d]; `key` and `value` are [s, b, kv heads, d].
        """
        assert attention_mask is None
        table = make_rotary_table(query.shape[0], self.rotary_frequencies, self.rotary_scale)
        query, key = Rotary.apply(query, *table), Rotary.apply(key, *table)  # type: ignore[no-untyped-call]
        repeats = query.shape[2] // key.shape[2]
        q, k, v = (x.permute(1, 2, 0, 3) for x in (query, _repeat_heads(key, repeats), _repeat_heads(value, repeats)))
        context = F.scaled_dot_product_attention(q, k, v, is_causal=True)
        return context.permute(2, 0, 1, 3).flatten(2)


def _repeat_heads(x: Tensor, repeats: int) -> Tensor:
    return x if repeats == 1 else x.repeat_interleave(repeats, dim=2)


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
