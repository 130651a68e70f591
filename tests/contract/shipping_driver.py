"""The driver of test_loss_shipping.py; argument: whether the loss's code travels ("by value") or its names do.

Run from a copy in a folder of its own: Ray puts the driver program's folder on the workers' path.
"""

import os
import sys
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.runtime.local import ray_cluster
from nemo_tapo.runtime.nemo_rl import loss_setup
from nemo_tapo.types import Batch


def fixed() -> tuple[dict[str, Tensor], Tensor]:
    """Three rows of seven tokens, one of them constructed, with everything that a loss may look at; their logits."""
    draw = torch.Generator().manual_seed(6)
    mask, ones = torch.ones(3, 7), torch.ones(3)
    mask[:, :2] = 0
    batch = Batch(
        input_ids=torch.randint(0, 11, (3, 7), generator=draw),
        input_lengths=torch.full((3,), 7),
        token_mask=mask,
        sample_mask=ones,
        advantages=torch.tensor([1.0, -1.0, 2.0]),
        loss_coef=ones / 10,
        constructed=torch.tensor([False, True, False]),
        prev_logprobs=-torch.rand(3, 7, generator=draw),
        reference_policy_logprobs=-torch.rand(3, 7, generator=draw),
        generation_logprobs=-torch.rand(3, 7, generator=draw),
        generation_mask=ones,
    )
    return batch.as_dict(), torch.randn(3, 7, 11, generator=draw)


def run(loss: Any, data: dict[str, Tensor], logits: Tensor) -> tuple[float, Tensor | None, dict[str, float]]:
    """(loss, gradient of the logits, metrics) as NeMo-RL calls a loss."""
    leaf = logits.clone().requires_grad_()
    value, metrics = loss(data=data, global_valid_seqs=None, global_valid_toks=None, logits=leaf)
    value.backward()
    return float(value.detach()), leaf.grad, metrics


class Worker:
    """An actor that has NeMo-RL only."""

    def run(self, loss: Any, data: dict[str, Tensor], logits: Tensor) -> Any:
        """`run`, after making sure that this is such a place."""
        from importlib.util import find_spec

        from nemo_rl.algorithms.loss.interfaces import LossInputType

        assert find_spec("nemo_tapo") is None, "this worker could import the package"
        assert loss.input_type is LossInputType.LOGIT
        return run(loss, data, logits)


def main(how: str) -> None:
    """Prints one line if here and there are the same, bit for bit."""
    correction = {"use_importance_sampling_correction": True}
    loss = loss_setup.make_logit_loss(PolicyLoss(kl_coef=0.1), correction, temperature=1.0, chunk=4)
    data, logits = fixed()
    here = run(loss, data, logits)
    started = ray_cluster.start()
    try:
        import ray

        if how == "by value":
            loss_setup.ship_by_value()
        environment = {"env_vars": {"PYTHONPATH": os.environ["WORKERS_PATH"]}}
        worker = ray.remote(Worker).options(runtime_env=environment).remote()
        there = ray.get(worker.run.remote(loss, data, logits))
    finally:
        ray_cluster.stop(started)
    assert there[0] == here[0] and torch.equal(there[1], here[1]) and there[2] == here[2]
    print("the same in the worker:", here[0])


if __name__ == "__main__":
    main(sys.argv[1])
