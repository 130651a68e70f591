"""Store a Hugging Face model directory in bfloat16: half the size, for models kept in the repository.

python tools/to_bfloat16.py FROM TO
"""

from __future__ import annotations

import shutil
import sys
from pathlib import Path

import torch
from safetensors.torch import load_file, save_file


def main(source: Path, target: Path) -> None:
    target.mkdir(parents=True, exist_ok=True)
    for file in source.iterdir():
        if file.suffix == ".safetensors":
            weights = {name: tensor.to(torch.bfloat16) for name, tensor in load_file(file).items()}
            save_file(weights, target / file.name, metadata={"format": "pt"})
        else:
            shutil.copy(file, target / file.name)


if __name__ == "__main__":
    if len(sys.argv) != 3:
        sys.exit(__doc__)
    main(Path(sys.argv[1]), Path(sys.argv[2]))
