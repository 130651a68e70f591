"""What Megatron-core needs to run on a machine without CUDA. Applied by `apply()`, there and nowhere else.

Megatron-core asks for the current CUDA device without asking whether there is one. With these answers it runs on
the CPU over gloo, unchanged. Seen with megatron-core 0.16.1:

| site                                           | Megatron's use                                      | answer here  |
|------------------------------------------------|-----------------------------------------------------|--------------|
| torch.cuda.current_device                      | pipeline p2p, the parallel layers, rotary embedding | the CPU      |
| torch.cuda.synchronize                         | after batched p2p                                   | nothing      |
| torch.Tensor.cuda                              | tied embeddings over pipeline stages                | the tensor   |
| megatron...pipeline_parallel.schedules.torch   | torch.zeros([], device="cuda") for the token count  | on the CPU   |

What needs no shim because the configuration avoids it: fused kernels, Megatron's optimizer and gradient clipping,
its own core attention with the CUDA random state (see model.py and optimizer.py).
"""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

SITES = (
    "torch.cuda.current_device",
    "torch.cuda.synchronize",
    "torch.Tensor.cuda",
    "megatron.core.pipeline_parallel.schedules.torch",
)


def apply() -> bool:
    """Puts the answers of the table in place; False, and nothing done, where CUDA is present. May be repeated."""
    if torch.cuda.is_available():
        return False
    from megatron.core.pipeline_parallel import schedules

    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda device=None: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    if not isinstance(schedules.torch, _CpuTorch):
        schedules.torch = _CpuTorch(torch)
    return True


class _CpuTorch(ModuleType):
    """`torch`, except that `zeros` on "cuda" are zeros on the CPU. Only the schedules module sees it."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def zeros(self, *size: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **kwargs)
