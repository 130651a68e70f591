"""Find the example configs and the tiny models: in the checkout, or where an installed wheel has its copy of them."""

from __future__ import annotations

from pathlib import Path

ROOT = Path(__file__).parents[2]
PACKAGED = Path(__file__).parents[1] / "data"  # setup.py copies examples/ and assets/ there when it builds a wheel


def find_resource(name: str) -> Path:
    """Return the absolute path of `examples/...` or `assets/...`. Raises ValueError if it is in neither place.

    >>> find_resource("assets/tiny-base").name
    'tiny-base'
    """
    checkout = [ROOT] if (ROOT / "pyproject.toml").is_file() else []  # else ROOT is a folder of many packages
    for folder in (*checkout, PACKAGED):
        if (folder / name).exists():
            return (folder / name).resolve()
    raise ValueError(f"{name} is not part of this installation: install the wheel anew, or use a checkout.")
