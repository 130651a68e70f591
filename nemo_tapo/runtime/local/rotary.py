"""Rotary positions (RoPE) as a config.json describes them, with the scalings that do not depend on a row's length."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

# what each kind needs beside the base; the other keys have defaults
REQUIRED = {
    "default": (),
    "linear": ("factor",),
    "llama3": ("factor", "low_freq_factor", "high_freq_factor", "original_max_position_embeddings"),
    "yarn": ("factor", "original_max_position_embeddings"),
}


@dataclass(frozen=True)
class Rope:
    """The base of the rotary frequencies and how they are scaled.

    >>> Rope(theta=1e4, kind="linear", scaling=(("factor", 2.0),)).frequencies(head_dim=4)
    ((0.5, 0.004999999888241291), 1.0)
    """

    theta: float
    kind: str = "default"
    scaling: tuple[tuple[str, float], ...] = ()  # the kind's own parameters, sorted by name

    def frequencies(self, head_dim: int) -> tuple[tuple[float, ...], float]:
        """Return the angle per position of each pair of dimensions [d / 2], radians, and the factor on cos and sin.

        The values are exact fp32 numbers. A scaling is computed by transformers' own function.
        """
        if self.kind == "default":
            exponents = torch.arange(0, head_dim, 2, dtype=torch.float32) / head_dim
            return tuple((1.0 / self.theta**exponents).tolist()), 1.0
        from transformers import LlamaConfig
        from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS

        parameters = {"rope_type": self.kind, "rope_theta": self.theta, **dict(self.scaling)}
        # only carries the parameters: the functions read the width of a head and nothing else of the model
        carrier = LlamaConfig(hidden_size=head_dim, num_attention_heads=1, rope_parameters=parameters)
        frequencies, factor = ROPE_INIT_FUNCTIONS[self.kind](carrier, torch.device("cpu"))
        return tuple(frequencies.tolist()), float(factor)


def read_rope(config: Mapping[str, Any], file: Path) -> Rope:
    """Return the rotary positions of a config.json, which `file` names in errors.

    transformers 5 writes `rope_parameters`, earlier versions `rope_theta` and `rope_scaling`. Raises ValueError for a
    kind that the local runtime does not have, and for one whose parameters are incomplete.
    """
    given = config.get("rope_scaling") or config.get("rope_parameters") or {}
    kind = given.get("rope_type", given.get("type", "default"))
    if kind not in REQUIRED:
        raise ValueError(f"{file}: rope type is '{kind}'; the local runtime has {', '.join(REQUIRED)}.")
    for name in REQUIRED[kind]:
        if not isinstance(given.get(name), int | float):
            raise ValueError(f"{file}: rope type '{kind}' needs a number '{name}'; it is {given.get(name)!r}.")
    partial = given.get("partial_rotary_factor", config.get("partial_rotary_factor"))
    if partial not in (None, 1.0):
        raise ValueError(f"{file}: partial_rotary_factor is {partial}; the local runtime rotates whole heads only.")
    theta = float(given.get("rope_theta") or config.get("rope_theta") or 10000.0)
    names = {"rope_type", "type", "rope_theta", "partial_rotary_factor"}
    own = {k: v for k, v in given.items() if k not in names and v is not None} if kind != "default" else {}
    return Rope(theta, kind, tuple(sorted(own.items())))


@lru_cache(maxsize=64)
def make_rotary_table(length: int, frequencies: tuple[float, ...], scale: float = 1.0) -> tuple[Tensor, Tensor]:
    """Return (cos [s, 1, 1, d], sin [s, 1, 1, d / 2]) of the angles position * frequency, times `scale`, fp32.

    >>> cos, sin = make_rotary_table(length=3, frequencies=(1.0, 0.1))
    >>> tuple(cos.shape), tuple(sin.shape), [round(x, 2) for x in sin[2].flatten().tolist()]
    ((3, 1, 1, 4), (3, 1, 1, 2), [0.91, 0.2])
    """
    angles = torch.outer(torch.arange(length, dtype=torch.float32), torch.tensor(frequencies))[:, None, None, :]
    return torch.cat([angles, angles], -1).cos() * scale, angles.sin() * scale


class Rotary(torch.autograd.Function):
    """Maps the two halves of the last dimension, (x1, x2), to (x1 cos - x2 sin, x2 cos + x1 sin)."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        """Rotate `x` [s, b, heads, d]."""
        ctx.save_for_backward(cos, sin)
        return _rotate(x, cos, sin, 1)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, None, None]:
        """Rotate the gradient the opposite way: the transpose of a rotation is the opposite rotation."""
        cos, sin = ctx.saved_tensors
        return _rotate(gradients[0], cos, sin, -1), None, None


def _rotate(x: Tensor, cos: Tensor, sin: Tensor, direction: int) -> Tensor:
    half = x.shape[-1] // 2
    out = x * cos
    out[..., :half].addcmul_(x[..., half:], sin, value=-direction)
    out[..., half:].addcmul_(x[..., :half], sin, value=direction)
    return out
