"""The shape of the package: no circles, imports run down the layers of CONTRIBUTING, one name a file."""

from __future__ import annotations

import re
from collections import defaultdict

import pytest

from tests.helpers.imports import PACKAGE, ROOT, Imports, find_circle, module_files, read_imports

MOST_TOP_LEVEL_MODULES = 8
# The same part of both runtimes: the folder says whose it is. A registry makes what a name in the config means.
SAME_NAME_IN_TWO_FOLDERS = {"actor", "generator", "runtime", "registry"}


@pytest.fixture(scope="module")
def imports() -> Imports:
    return read_imports()


def layers() -> list[str]:
    """The layers from the ground up, as CONTRIBUTING lists them: modules and folders, relative to the package."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    block = re.search(r"```layers\n(.*?)```", text, re.DOTALL)
    assert block, "CONTRIBUTING.md has no block ```layers"
    return [line.split("  ")[0].strip() for line in block.group(1).splitlines() if line.strip()]


def layer_of(module: str, order: list[str]) -> int:
    """The number of the layer that has the module, 0 at the ground."""
    path = module.removeprefix(f"{PACKAGE}.").replace(".", "/")
    found = [
        number
        for number, line in enumerate(order)
        for name in line.split()
        if path == name.removesuffix(".py") or (name.endswith("/") and f"{path}/".startswith(name))
    ]
    assert len(found) == 1, f"{module} is in {len(found)} layers of CONTRIBUTING.md"
    return found[0]


def test_no_file_imports_in_a_circle(imports: Imports) -> None:
    assert find_circle(imports) == []


def test_a_circle_is_named() -> None:
    assert find_circle({"a": {"b"}, "b": {"c"}, "c": {"b"}, "d": set()}) == ["b", "c", "b"]


def test_imports_run_down_the_layers(imports: Imports) -> None:
    order = layers()
    place = {module: layer_of(module, order) for module in imports if module != PACKAGE}
    upward = [
        f"{module} -> {imported}"
        for module, others in imports.items()
        for imported in others
        if imported in place and module in place and place[imported] > place[module]
    ]
    assert upward == []


def test_the_layers_name_what_there_is() -> None:
    for line in layers():
        for name in line.split():
            assert (ROOT / PACKAGE / name).exists(), name


def test_few_modules_at_the_top() -> None:
    top = [path.name for path in (ROOT / PACKAGE).glob("*.py") if path.name != "__init__.py"]
    assert len(top) <= MOST_TOP_LEVEL_MODULES, top


def test_no_file_name_twice() -> None:
    by_name = defaultdict(list)
    for module, path in module_files().items():
        if path.name != "__init__.py":
            by_name[path.stem].append(module)
    twice = {name: modules for name, modules in by_name.items() if len(modules) > 1}
    assert twice.keys() <= SAME_NAME_IN_TWO_FOLDERS, twice
