"""Which keys NeMo-RL reads, taken from its own source without importing it.

NeMo-RL's configs accept any key: a misspelt one is silently without effect. Its config classes (TypedDict and
pydantic) and its example files say which keys there are; both are read here as text, so that this works on a login
node with a bare checkout and any Python. NeMo-RL's classes are not complete (some keys are read with `.get`), hence
the example files count as well.
"""

from __future__ import annotations

import ast
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import yaml

ROOT = ("nemo_rl/algorithms/grpo.py", "MasterConfig")  # the class of a whole GRPO file
FREE = re.compile(r"(\bAny\b|[dD]ict\[str, (?!\w*Config))")  # an annotation below which any key may stand
LISTED_FREELY = ("env",)  # read by whichever environment is named there
RL_EXAMPLE = re.compile(r"grpo|gdpo|dapo|prorl|mopd")  # names of the examples that examples/run_grpo.py reads


@dataclass
class Keys:
    """A section's known keys. `free`: anything may stand here."""

    below: dict[str, Keys] = field(default_factory=dict)
    free: bool = False

    def at(self, name: str) -> Keys:
        """The section `name`, made if it is new."""
        return self.below.setdefault(name, Keys())


@dataclass(frozen=True)
class _Class:
    file: str
    fields: dict[str, str]  # name -> annotation as text
    bases: tuple[str, ...]


@lru_cache(maxsize=4)
def known_keys(source: Path) -> Keys:
    """The keys of a GRPO file for the NeMo-RL checkout `source` (about a second)."""
    keys = Keys()
    _Classes(source).collect(*ROOT, keys)
    for path in sorted((source / "examples").rglob("*.yaml")):
        text = path.read_text()
        if RL_EXAMPLE.search(path.stem) or "\ngrpo:" in text:
            _merge(keys, yaml.load(text, Loader=_Loader))
    for name in LISTED_FREELY:
        keys.at(name).free = True
    return keys


def unknown(values: Mapping[str, Any], keys: Keys, prefix: str = "") -> Iterable[str]:
    """Dotted paths of `values` that no class and no example has."""
    if keys.free:
        return
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name not in keys.below:
            yield path
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield from unknown(each, keys.below[name], f"{path}.")


def paths(keys: Keys, prefix: str = "") -> Iterable[str]:
    """Every known dotted path."""
    for name, below in keys.below.items():
        yield f"{prefix}{name}"
        yield from paths(below, f"{prefix}{name}.")


def _merge(keys: Keys, values: Mapping[str, Any]) -> None:
    """Adds the keys of an example file."""
    for name, value in values.items():
        section = keys.at(str(name))
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                _merge(section, each)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """Plain YAML: interpolations stay text."""


class _Classes:
    """The config classes of a source tree, by name."""

    def __init__(self, source: Path) -> None:
        self.named: dict[str, list[_Class]] = {}
        self.children: dict[str, list[_Class]] = {}
        for path in sorted((source / "nemo_rl").rglob("*.py")):
            text = path.read_text()
            if "TypedDict" in text or "BaseModel" in text or "Config" in text:
                self._index(ast.parse(text), path.relative_to(source).as_posix())

    def _index(self, module: ast.Module, file: str) -> None:
        for node in module.body:
            if not isinstance(node, ast.ClassDef):
                continue
            fields = {
                item.target.id: ast.unparse(item.annotation).strip("'\"")
                for item in node.body
                if isinstance(item, ast.AnnAssign) and isinstance(item.target, ast.Name)
            }
            bases = tuple(ast.unparse(base).rsplit(".", 1)[-1] for base in node.bases)
            found = _Class(file, fields, bases)
            self.named.setdefault(node.name, []).append(found)
            for base in bases:
                self.children.setdefault(base, []).append(found)

    def collect(self, file: str, name: str, keys: Keys, seen: frozenset[str] = frozenset()) -> None:
        """Adds the fields of class `name`, of its bases and of its subclasses; same-file definitions come first."""
        if name in seen or name not in self.named:
            return
        here = [c for c in self.named[name] if c.file == file] or self.named[name]
        below = [] if name in ("BaseModel", "TypedDict") else self.children.get(name, [])
        for each in [*here, *(c for c in below if c.file == file or name != ROOT[1])]:
            for base in each.bases:
                self.collect(each.file, base, keys, seen | {name})
            for key, annotation in each.fields.items():
                section = keys.at(key)
                section.free = section.free or bool(FREE.search(annotation))
                for mentioned in re.findall(r"[A-Za-z_]\w*", annotation):
                    self.collect(each.file, mentioned, section, seen | {name})
