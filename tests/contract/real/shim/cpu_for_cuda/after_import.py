"""Patch a module right after its import."""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, field
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType
from typing import Any


@dataclass(frozen=True)
class Hook:
    """What is done with a module: `around` is open while it is imported, `then` is called with it afterwards."""

    then: Callable[[Any], None] = lambda module: None
    around: Callable[[], AbstractContextManager[None]] = nullcontext


Hooks = Mapping[str, Hook]


def replace(owner: Any, name: str, value: Any) -> Any:
    """Set `owner.name` and return what it was. Raises AttributeError if it did not exist."""
    before = getattr(owner, name)
    setattr(owner, name, value)
    return before


@dataclass
class Finder(MetaPathFinder):
    """Finds modules as Python does, and has those in `hooks` patched."""

    hooks: Hooks
    asked: set[str] = field(default_factory=set)  # modules that the other finders are being asked for

    def find_spec(self, fullname: str, path: Any, target: Any = None) -> ModuleSpec | None:
        if fullname not in self.hooks or fullname in self.asked:
            return None
        self.asked.add(fullname)
        try:
            spec = importlib.util.find_spec(fullname)
        finally:
            self.asked.discard(fullname)
        if spec is not None and spec.loader is not None:
            spec.loader = _HookedLoader(spec.loader, self.hooks[fullname])
        return spec


class _HookedLoader(Loader):
    def __init__(self, loader: Any, hook: Hook) -> None:
        self._loader, self._hook = loader, hook

    def create_module(self, spec: ModuleSpec) -> ModuleType | None:
        return self._loader.create_module(spec)  # type: ignore[no-any-return]

    def exec_module(self, module: ModuleType) -> None:
        with self._hook.around():
            self._loader.exec_module(module)
        self._hook.then(module)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._loader, name)


class _Name(type):
    """The type of an empty class, every attribute of which is another empty class."""

    def __getattr__(cls, name: str) -> Any:
        return _make_name(name)


class _Empty(ModuleType):
    """A module in which every name is an empty class."""

    def __getattr__(self, name: str) -> Any:
        return _make_name(name)


def _make_name(name: str) -> Any:
    if name.startswith("__"):
        raise AttributeError(name)
    return _Name(name, (), {})


def lend_empty(*names: str) -> Callable[[], AbstractContextManager[None]]:
    """Return a context in which `names` (parents first) can be imported, as empty modules.

    For a module that imports a package of GPU kernels for the names of classes which the test never makes. A package
    that is installed is not hidden.
    """

    @contextmanager
    def lent() -> Iterator[None]:
        made = [name for name in names if name not in sys.modules and _is_missing(name)]
        for name in made:
            module = _Empty(name)
            module.__path__ = []
            sys.modules[name] = module
            parent, _, leaf = name.rpartition(".")
            if parent:
                setattr(sys.modules[parent], leaf, module)
        try:
            yield
        finally:
            for name in made:
                del sys.modules[name]

    return lent


def _is_missing(name: str) -> bool:
    try:
        return importlib.util.find_spec(name) is None
    except ModuleNotFoundError:
        return True
