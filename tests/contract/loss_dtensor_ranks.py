"""One rank of test_loss_dtensor.py; arguments: <rank> <ranks> <folder>. Logits as DTensor workers have them."""

from __future__ import annotations

import sys
from pathlib import Path

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard, distribute_tensor

from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss
from tests.contract.test_loss_dtensor import case


def main(rank: int, ranks: int, folder: Path) -> None:
    """Writes {"split" | "whole": (loss, gradient)} and the sentence that refuses context parallelism."""
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    logits, data = case()
    loss = LogitLoss(PolicyLoss(), None, None)
    mesh = init_device_mesh("cpu", (ranks,), mesh_dim_names=("tp",))
    results = {}
    for name, placement in (("split", Shard(2)), ("whole", Replicate())):
        leaf = distribute_tensor(logits, mesh, [placement]).requires_grad_()
        value, _ = loss(data=data, logits=leaf)
        value.backward()
        assert isinstance(leaf.grad, DTensor)
        results[name] = (float(value.detach()), leaf.grad.full_tensor())
    parts = init_device_mesh("cpu", (ranks, 1), mesh_dim_names=("cp", "tp"))
    try:
        loss(data=data, logits=distribute_tensor(logits[:, :8], parts, [Shard(1), Shard(2)]))
    except ValueError as error:
        results["refused"] = str(error)
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
