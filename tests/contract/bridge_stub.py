"""Lets NeMo-RL's Megatron loss path import without what only its container has: Megatron-Bridge, a newer Megatron-core.

`nemo_rl.models.megatron.train` takes from these nothing but names for annotations, set-up and logging; the loss post-
processor itself is NeMo-RL's and the Megatron-core of this environment's. So each of these modules is an empty one, all
of whose names are classes without content.
"""

from __future__ import annotations

import importlib.abc
import importlib.machinery
import sys
from types import ModuleType
from typing import Any

ABSENT = ("megatron.bridge", "megatron.core.transformer.moe.moe_logging")


class _Empty(ModuleType):
    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return type(name, (), {})


class _Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    def find_spec(self, fullname: str, path: Any, target: Any = None) -> importlib.machinery.ModuleSpec | None:
        if not any(fullname == name or fullname.startswith(f"{name}.") for name in ABSENT):
            return None
        return importlib.machinery.ModuleSpec(fullname, self, is_package=True)

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        return _Empty(spec.name)

    def exec_module(self, module: ModuleType) -> None: ...


def loss_post_processor() -> Any:
    """NeMo-RL's class that wraps a loss for Megatron's schedules."""
    sys.meta_path.append(_Finder())  # the last one asked: where the real modules are, they are taken
    from nemo_rl.models.megatron.train import LossPostProcessor

    return LossPostProcessor
