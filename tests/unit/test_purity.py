"""The pure layers import no engine, and nothing heavy is imported by the command line's help."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

PACKAGE = Path(__file__).parents[2] / "nemo_tapo"
HEAVY = ("ray", "vllm", "megatron", "nemo_rl", "transformers")
PURE = sorted(
    ".".join(("nemo_tapo", *path.relative_to(PACKAGE).with_suffix("").parts)).removesuffix(".__init__")
    for path in PACKAGE.rglob("*.py")
    if "local" not in path.parts and path.name not in ("cli.py", "vocab_triton.py")  # the latter needs Triton
)


def loaded(code: str, names: tuple[str, ...]) -> set[str]:
    """Which of the top-level packages a fresh interpreter has loaded after `code`."""
    program = f"import sys\n{code}\nprint(*[n for n in {names!r} if n in sys.modules])"
    out = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True).stdout
    return set(out.split())


def test_pure_modules_load_no_engine() -> None:
    assert len(PURE) > 25
    assert loaded("import " + ", ".join(PURE), HEAVY) == set()


@pytest.mark.parametrize("code", ["import nemo_tapo", "from nemo_tapo.cli import build_parser; build_parser()"])
def test_the_command_line_starts_without_torch(code: str) -> None:
    assert not loaded(code, (*HEAVY, "torch", "matplotlib", "hydra"))
