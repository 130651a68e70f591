"""Say whether the GPU kernels of `vocab_triton.py` can be used, and load them.

NeMo-RL's workers get the functions of this folder by value and may lack the package (`loss_setup.ship_by_value`). A
kernel cannot travel so: Triton compiles what it reads in a function's source file. So the text of the module travels,
in a variable of this one, and the module is made from it, here as there.
"""

from __future__ import annotations

import os
import sys
from importlib.abc import ExecutionLoader
from importlib.util import find_spec, module_from_spec, spec_from_loader
from pathlib import Path
from types import ModuleType

from torch import Tensor

SWITCH = "NEMO_TAPO_FUSED"  # environment variable of the process that has the logits: 0 turns the kernels off
NAME = "nemo_tapo.equations.vocab_triton"
TEXT = Path(__file__).with_name("vocab_triton.py").read_text(encoding="utf-8")


def find_kernels(logits: Tensor) -> ModuleType | None:
    """Return the module of kernels for logits on a GPU; None for other logits, without Triton, or if switched off."""
    if not logits.is_cuda or logits.stride(-1) != 1 or os.environ.get(SWITCH) == "0" or find_spec("triton") is None:
        return None
    return load_kernels()


def load_kernels() -> ModuleType:
    """Return the module of kernels, made at the first call. Raises ImportError without Triton."""
    if NAME not in sys.modules:
        loader = _TextLoader()
        spec = spec_from_loader(NAME, loader)
        assert spec is not None
        sys.modules[NAME] = module_from_spec(spec)  # before it runs: through it Triton finds the source
        try:
            loader.exec_module(sys.modules[NAME])
        except BaseException:
            del sys.modules[NAME]
            raise
    return sys.modules[NAME]


class _TextLoader(ExecutionLoader):
    """Load the module from TEXT."""

    def get_filename(self, fullname: str) -> str:
        return f"{fullname}.py"  # no file: who wants the source asks `get_source`

    def get_source(self, fullname: str) -> str:
        return TEXT

    def is_package(self, fullname: str) -> bool:
        return False
