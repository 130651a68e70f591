"""Compile the kernels to a GPU's machine code, which takes no GPU; arguments: <compute capability> <logits' type>.

The interpreter takes more of Python than the compiler does. Prints each kernel with its widest load and store, in bits,
and how it rounds to 16 bits.
"""

from __future__ import annotations

import re
import sys
from typing import Any

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from nemo_tapo.equations.kernels import load_kernels

NUMBERS = ("row_stride", "token_stride", "length", "start", "width", "columns", "blocks")


def compile_kernel(function: Any, capability: int, kind: str, constants: dict[str, Any], warps: int) -> str:
    """Return the PTX for logits of `kind` whose rows start at multiples of 16, as those of a padded vocabulary do."""
    names = function.arg_names
    wide = "fp64" if kind == "fp64" else "fp32"
    types = {"logits": f"*{kind}", "out": f"*{kind}", "targets": "*i64"}
    types |= dict.fromkeys(NUMBERS, "i32") | dict.fromkeys(constants, "constexpr")
    aligned = [n for n in names if n in ("logits", "out", "row_stride", "token_stride", "width", "columns")]
    source = ASTSource(
        function,
        {name: types.get(name, f"*{wide}") for name in names},
        {(names.index(name),): value for name, value in constants.items()},
        {(names.index(name),): [["tt.divisibility", 16]] for name in aligned},
    )
    made = triton.compile(source, target=GPUTarget("cuda", capability, 32), options={"num_warps": warps})
    assert made.asm["cubin"]
    return made.asm["ptx"]


def main(capability: int, kind: str) -> None:
    kernels = load_kernels()
    flush = kind != "fp64"
    for function, constants, warps in (
        (kernels._terms, {"BLOCK": kernels.TERMS_BLOCK, "WITH_ENTROPY": True}, kernels.TERMS_WARPS),
        (kernels._terms, {"BLOCK": kernels.TERMS_BLOCK, "WITH_ENTROPY": False}, kernels.TERMS_WARPS),
        (kernels._gradient, {"BLOCK": kernels.GRADIENT_BLOCK}, kernels.GRADIENT_WARPS),
    ):
        ptx = compile_kernel(function, capability, kind, constants | {"FLUSH": flush}, warps)
        seen = {"ld": 0, "st": 0}
        for what, count, bits in re.findall(r"\b(ld|st)\.global(?:\.v(\d))?\.b(\d+)", ptx):
            seen[what] = max(seen[what], int(count or 1) * int(bits))
        print(function.__name__, seen["ld"], seen["st"], *set(re.findall(r"\bcvt\.(r\w)\.bf16", ptx)))


if __name__ == "__main__":
    main(int(sys.argv[1]), sys.argv[2])
