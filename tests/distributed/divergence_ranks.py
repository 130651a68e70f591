"""One tensor-parallel rank of test_divergence_parallel.py; arguments: <rank> <ranks> <folder>.

Reads <folder>/cases.pt, a list of {"logits" [b, s, V], "teacher" [n, V], "places", "tokens", "slope" [n], "size",
"rules"}; computes on its share of the columns; writes <folder>/rank<rank>.pt, a list of what it found, by name.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from nemo_tapo.equations.divergence import DivergenceRules, token_divergence
from nemo_tapo.equations.vocab import VocabShard


def main(rank: int, ranks: int, folder: Path) -> None:
    os.environ["GLOO_SOCKET_IFNAME"] = "lo"
    torch.set_num_threads(1)
    dist.init_process_group("gloo", init_method=f"file://{folder}/ranks", rank=rank, world_size=ranks)
    results = []
    for case in torch.load(folder / "cases.pt"):
        student, teacher = (case[name].chunk(ranks, -1)[rank] for name in ("logits", "teacher"))
        leaf = student.clone().requires_grad_()
        shard = VocabShard(rank * student.shape[-1], case["size"], group=dist.group.WORLD)
        rules = DivergenceRules(*case["rules"])
        found = token_divergence(leaf, case["places"], case["tokens"], teacher, rules, shard)
        found.value.backward(case["slope"].to(found.value.dtype))
        results.append({**found._asdict(), "value": found.value.detach(), "gradient": leaf.grad})
    torch.save(results, folder / f"rank{rank}.pt")
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
