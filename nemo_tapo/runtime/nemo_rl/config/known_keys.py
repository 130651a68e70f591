"""Find out which configuration keys NeMo-RL reads, from its source and without importing it.

NeMo-RL's configs accept any key, so a misspelt key has no effect and raises no error. NeMo-RL's config classes
(TypedDict and pydantic) and its example files show which keys exist. Both are read here as text, so that this works on
a login node with nothing but a checkout, under any Python. The classes are not complete (NeMo-RL reads some keys with
`.get`), so the example files count as well.
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

ROOT_CLASS = ("nemo_rl/algorithms/grpo.py", "MasterConfig")  # the class of a whole GRPO file
FREE_ANNOTATION = re.compile(r"(\bAny\b|[dD]ict\[str, (?!\w*Config))")  # such a section may have any key
FREE_SECTIONS = ("env",)  # any key may be in them: the environment named there reads them
RL_EXAMPLE = re.compile(r"grpo|gdpo|dapo|prorl|mopd")  # names of the examples that examples/run_grpo.py reads


@dataclass
class KnownKeys:
    """The known keys of a section, each with the known keys below it.

    >>> keys = KnownKeys()
    >>> keys.get_or_add("grpo").get_or_add("seed")
    KnownKeys(sections={}, free=False)
    >>> list(list_paths(keys))
    ['grpo', 'grpo.seed']
    """

    sections: dict[str, KnownKeys] = field(default_factory=dict)
    free: bool = False  # True: any key may be here

    def get_or_add(self, name: str) -> KnownKeys:
        """Return the section `name`; add it if it is new."""
        return self.sections.setdefault(name, KnownKeys())


@dataclass(frozen=True)
class _ConfigClass:
    file: str
    fields: dict[str, str]  # name -> annotation as text
    bases: tuple[str, ...]


@lru_cache(maxsize=4)
def read_known_keys(source: Path) -> KnownKeys:
    """Read the keys of a GRPO file from the NeMo-RL checkout `source`; takes about a second."""
    keys = KnownKeys()
    _ClassIndex(source).collect(*ROOT_CLASS, keys)
    for path in sorted((source / "examples").rglob("*.yaml")):
        text = path.read_text()
        if RL_EXAMPLE.search(path.stem) or "\ngrpo:" in text:
            _add_example(keys, yaml.load(text, Loader=_Loader))
    for name in FREE_SECTIONS:
        keys.get_or_add(name).free = True
    return keys


def find_unknown_paths(values: Mapping[str, Any], keys: KnownKeys, prefix: str = "") -> Iterable[str]:
    """Yield the dotted paths of `values` that no class and no example has.

    >>> keys = KnownKeys({"grpo": KnownKeys({"seed": KnownKeys()})})
    >>> list(find_unknown_paths({"grpo": {"seed": 1, "sead": 1}}, keys))
    ['grpo.sead']
    """
    if keys.free:
        return
    for name, value in values.items():
        path = f"{prefix}{name}"
        if name not in keys.sections:
            yield path
            continue
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                yield from find_unknown_paths(each, keys.sections[name], f"{path}.")


def list_paths(keys: KnownKeys, prefix: str = "") -> Iterable[str]:
    """Yield every known dotted path; `KnownKeys` has an example."""
    for name, section in keys.sections.items():
        yield f"{prefix}{name}"
        yield from list_paths(section, f"{prefix}{name}.")


def _add_example(keys: KnownKeys, values: Mapping[str, Any]) -> None:
    """Add the keys of an example file."""
    for name, value in values.items():
        section = keys.get_or_add(str(name))
        for each in value if isinstance(value, list) else [value]:
            if isinstance(each, Mapping):
                _add_example(section, each)


class _Loader(getattr(yaml, "CSafeLoader", yaml.SafeLoader)):  # type: ignore[misc]
    """A YAML loader that keeps interpolations as text."""


class _ClassIndex:
    """The config classes of a source tree, by name."""

    def __init__(self, source: Path) -> None:
        self.named: dict[str, list[_ConfigClass]] = {}
        self.children: dict[str, list[_ConfigClass]] = {}
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
            config_class = _ConfigClass(file, fields, bases)
            self.named.setdefault(node.name, []).append(config_class)
            for base in bases:
                self.children.setdefault(base, []).append(config_class)

    def collect(self, file: str, name: str, keys: KnownKeys, seen: frozenset[str] = frozenset()) -> None:
        """Add the fields of class `name`, of its bases and of its subclasses; prefer definitions in the same file."""
        if name in seen or name not in self.named:
            return
        definitions = [c for c in self.named[name] if c.file == file] or self.named[name]
        subclasses = [] if name in ("BaseModel", "TypedDict") else self.children.get(name, [])
        for each in [*definitions, *(c for c in subclasses if c.file == file or name != ROOT_CLASS[1])]:
            for base in each.bases:
                self.collect(each.file, base, keys, seen | {name})
            for key, annotation in each.fields.items():
                section = keys.get_or_add(key)
                section.free = section.free or bool(FREE_ANNOTATION.search(annotation))
                for mentioned in re.findall(r"[A-Za-z_]\w*", annotation):
                    self.collect(each.file, mentioned, section, seen | {name})
