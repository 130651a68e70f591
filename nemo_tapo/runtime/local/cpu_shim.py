"""Patches that let Megatron-core run on a machine without CUDA. `apply()` installs them; nothing else does.

Megatron-core asks for the current CUDA device without checking that there is one. With these patches it runs
unchanged on the CPU over gloo. Checked with megatron-core 0.16.1:

| site                                           | Megatron's use                                      | patched to   |
|------------------------------------------------|-----------------------------------------------------|--------------|
| torch.cuda.current_device                      | pipeline p2p, the parallel layers, rotary embedding | the CPU      |
| torch.cuda.synchronize                         | after batched p2p                                   | nothing      |
| torch.Tensor.cuda                              | tied embeddings over pipeline stages                | the tensor   |
| megatron...pipeline_parallel.schedules.torch   | torch.zeros([], device="cuda") for the token count  | on the CPU   |
| torch.compile, while Megatron-core is imported | decorators of fused kernels                         | no compiling |

These parts need no patch, because the configuration avoids them: fused kernels, Megatron's optimizer and gradient
clipping, and its core attention, which uses the CUDA random state (see model.py and optimizer.py). The last patch
changes no result, since no fused kernel is used: it spares each process the import of Inductor, a fifth of the
processor time of a start.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
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
    """Install the patches of the table and return True; where CUDA is present, do nothing and return False.

    Calling it again is harmless.
    """
    if torch.cuda.is_available():
        return False
    with without_compiler():
        from megatron.core.pipeline_parallel import schedules
    torch.cuda.current_device = lambda: torch.device("cpu")  # type: ignore[assignment,return-value]
    torch.cuda.synchronize = lambda device=None: None
    torch.Tensor.cuda = lambda self, *args, **kwargs: self  # type: ignore[method-assign]
    if not isinstance(schedules.torch, _CpuTorch):
        schedules.torch = _CpuTorch(torch)
    return True


@contextmanager
def without_compiler() -> Iterator[None]:
    """Let `torch.compile` return what it is given, as a decorator with and without arguments."""
    original = torch.compile
    torch.compile = lambda model=None, **options: model if model is not None else lambda function: function  # type: ignore[assignment]
    try:
        yield
    finally:
        torch.compile = original


class _CpuTorch(ModuleType):
    """A copy of `torch` whose `zeros` on "cuda" are on the CPU. Only Megatron's schedules module uses it."""

    def __init__(self, real: ModuleType) -> None:
        super().__init__(real.__name__)
        self._real = real

    def __getattr__(self, name: str) -> Any:
        return getattr(self._real, name)

    def zeros(self, *size: Any, device: Any = None, **kwargs: Any) -> torch.Tensor:
        """Return zeros on the CPU if `device` is "cuda", else on `device`."""
        return torch.zeros(*size, device="cpu" if device == "cuda" else device, **kwargs)
