"""One tensor-parallel rank of test_vocab_parallel.py; arguments: <rank> <ranks> <folder> <pieces or kernels>.

Reads <folder>/cases.pt, a list of {"logits" [b, s, V], "targets", "slope" [b, s], "size"}; computes on its share of
the columns, in pieces or by the GPU kernels in Triton's interpreter; writes <folder>/rank<rank>.pt, a list of
{"logp", "entropy", "gradient"}.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_tapo.equations import vocab
from nemo_tapo.equations.kernels import load_kernels
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy


def main(rank: int, ranks: int, folder: Path, how: str) -> None:
    if how == "kernels":
        os.environ["TRITON_INTERPRET"] = "1"  # before the first import of Triton
        vocab.choose_kernels = lambda logits: load_kernels()
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks)
    results = []
    for case in torch.load(folder / "cases.pt"):
        share = case["logits"].chunk(ranks, -1)[rank].clone().requires_grad_()
        shard = VocabShard(rank * share.shape[-1], case["size"], group=dist.group.WORLD)
        logp, entropy = token_logprobs_and_entropy(share, case["targets"], shard)
        logp.backward(case["slope"])
        results.append({"logp": logp.detach(), "entropy": entropy, "gradient": share.grad})
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]), sys.argv[4])
