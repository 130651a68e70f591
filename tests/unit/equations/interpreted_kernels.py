"""Triton's interpreter for test_vocab_triton.py, in a process of its own; argument: <folder>.

Reads <folder>/cases.pt, a list of {"logits" [b, s, V], "targets", "slope" [b, s], "start", "size", "entropy"}; computes
with the kernels, in blocks so small that a row has several; writes <folder>/results.pt, a list of {"logp", "entropy",
"gradient"}, and <folder>/compared.json, what a process would find on a GPU that has the interpreter's numbers.
"""

from __future__ import annotations

import json
import os
import sys
import warnings
from pathlib import Path

import torch

from nemo_tapo.equations import vocab
from nemo_tapo.equations.kernels import load_kernels

TERMS_BLOCK, GRADIENT_BLOCK = 16, 8


def main(folder: Path) -> None:
    os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
    warnings.simplefilter("ignore")  # NumPy's, about -inf
    torch.set_num_threads(1)
    kernels = load_kernels()
    kinds = (torch.float32, torch.bfloat16)
    compared = [vocab.compare_kernels(kernels, kind, torch.device("cpu")) for kind in kinds]
    (folder / "compared.json").write_text(json.dumps(compared))
    kernels.TERMS_BLOCK, kernels.GRADIENT_BLOCK = TERMS_BLOCK, GRADIENT_BLOCK
    vocab.choose_kernels = lambda logits: kernels
    results = []
    for case in torch.load(folder / "cases.pt"):
        leaf = case["logits"].requires_grad_()
        shard = vocab.VocabShard(case["start"], case["size"])
        logp, entropy = vocab.token_logprobs_and_entropy(leaf, case["targets"], shard, case["entropy"])
        logp.backward(case["slope"])
        results.append({"logp": logp.detach(), "entropy": entropy, "gradient": leaf.grad})
    torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
