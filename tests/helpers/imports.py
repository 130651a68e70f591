"""Read the package's imports from its source: lazy ones and those for types alone included."""

from __future__ import annotations

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGE = "nemo_tapo"
Imports = dict[str, set[str]]  # module -> modules of the package that it imports


def module_files() -> dict[str, Path]:
    """Return {dotted module name: file}; a package's name stands for its __init__.py."""
    files = {}
    for path in sorted((ROOT / PACKAGE).rglob("*.py")):
        parts = path.relative_to(ROOT).with_suffix("").parts
        files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return files


def read_imports() -> Imports:
    """Return which module of the package imports which, wherever in a file the import statement is."""
    files = module_files()
    return {name: set(_imports(name, path, files)) - {name} for name, path in files.items()}


def _imports(name: str, path: Path, files: Mapping[str, Path]) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in files)
        elif isinstance(node, ast.ImportFrom) and node.module:
            assert not node.level, f"{name}: imports are absolute"
            for alias in node.names:
                module = f"{node.module}.{alias.name}"
                if module in files or node.module in files:
                    yield module if module in files else node.module


def find_circle(imports: Imports) -> list[str]:
    """Return the modules of one circle of imports, in order; [] if there is none."""
    done: set[str] = set()

    def visit(module: str, path: list[str]) -> list[str]:
        if module in path:
            return [*path[path.index(module) :], module]
        if module in done:
            return []
        for imported in sorted(imports[module]):
            if circle := visit(imported, [*path, module]):
                return circle
        done.add(module)
        return []

    return next((circle for module in sorted(imports) if (circle := visit(module, []))), [])
