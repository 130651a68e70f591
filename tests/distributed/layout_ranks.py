"""One rank of test_layouts.py; arguments: <rank> <ranks> <folder>.

Reads the models <folder>/tied, <folder>/untied and those of FAMILIES. Goes through all layouts with real
MegatronWorkers, one after the other in the same processes (starting one takes longer than all it has to do); rank 0
writes <folder>/results.pt.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tapo.batch import EQUAL_WEIGHTS, collate
from nemo_tapo.config.sections import LocalConfig, OptimizerConfig
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.batch_sharding import deal_rows, gather_rows, select_and_pad
from nemo_tapo.runtime.local.worker import MegatronWorker
from nemo_tapo.types import Batch, Kind, Row
from nemo_tapo.utils.errors import RuntimeFailure
from tests.helpers.model_families import FAMILIES

VOCAB = 61  # odd: padded under TP = 2
Layout = tuple[int, int, int]  # tp, pp, dp
LAYOUTS: tuple[Layout, ...] = ((1, 1, 1), (2, 1, 1), (1, 2, 1), (1, 1, 2))
FAMILY_LAYOUTS = LAYOUTS[:3]
SPLITS = (10_000, 40, 1)  # tokens of a micro-batch: all rows in one, a few, each alone
OBJECTIVE = PolicyLoss(kl_coef=0.05)
NO_CLIPPING = OptimizerConfig(lr=1e-3, clip_norm=1e9, warmup_steps=2, weight_decay=0.1)
CLIPPING = NO_CLIPPING.model_copy(update={"clip_norm": 1e-3})


def fixed_batch() -> Batch:
    """Seven rows, original and constructed, off policy and with a reference, of 7 to 16 tokens."""
    draw = torch.Generator().manual_seed(5)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (n,), generator=draw).tolist())

    rows = [
        Row(f"{i}", "q", Kind.CONSTRUCTED if i % 3 == 2 else Kind.ORIGINAL, ids(4), ids(3 + (5 * i) % 11), 1.0, a)
        for i, a in enumerate((1.2, -0.7, 0.9, 0.4, -1.1, 1.0, -0.3))
    ]
    batch = collate(rows, pad_id=0, term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: 0.8})
    noise = torch.randn(2, *batch.input_ids.shape, generator=draw) * 0.2 - 5
    return replace(batch, prev_logprobs=noise[0], reference_policy_logprobs=noise[1])


class Ranks:
    """Workers of one layout at a time on the processes of this program."""

    def __init__(self, rank: int, folder: Path) -> None:
        self.rank, self.folder, self._meetings = rank, folder, count()

    @contextmanager
    def worker(self, model: str, layout: Layout) -> Iterator[MegatronWorker | None]:
        """A new worker; None in a process that the layout has no use for."""
        tp, pp, dp = layout
        where = self.folder / f"meeting{next(self._meetings)}"
        if self.rank >= tp * pp * dp:
            yield None
            return
        local = LocalConfig(tp=tp, pp=pp, dp=dp, threads=tp * pp * dp, micro_batch_tokens=40)
        worker = MegatronWorker(self.rank, tp * pp * dp, f"file://{where}", self.folder / model, local)
        yield worker
        worker.shutdown()
        assert "torch._inductor.lowering" not in sys.modules, "a rank imports torch's compiler and does not use it"


def own_share(worker: MegatronWorker, batch: Batch) -> dict[str, Tensor]:
    """The rows that LocalActor would send this rank."""
    shares = deal_rows(batch.input_lengths.tolist(), worker.local.dp)
    return select_and_pad(batch, shares[worker.dp_rank], max(map(len, shares))).as_dict()


def together(worker: MegatronWorker, batch: Batch, own: Any) -> list[Any]:
    """One report of each data-parallel rank, on every rank."""
    reports: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(reports, own)
    return [reports[d * worker.local.tp] for d in range(worker.local.dp)]


def whole(worker: MegatronWorker, batch: Batch, own: Tensor, fill: float) -> Tensor:
    shares = deal_rows(batch.input_lengths.tolist(), worker.local.dp)
    return gather_rows(together(worker, batch, own), shares, batch, fill)


def gradient(worker: MegatronWorker, tokens: int) -> dict[str, Any]:
    """One update from the model as stored, and all that it reports."""
    batch = fixed_batch()
    worker.local = worker.local.model_copy(update={"micro_batch_tokens": tokens})
    worker.load_model(worker.model_path)
    worker.configure(NO_CLIPPING, total_steps=10)
    report = worker.train(own_share(worker, batch), OBJECTIVE)
    parts = [part for parts in together(worker, batch, report["metrics"]) for part in parts]
    return {
        "gradients": copied(worker.export_full("gradients")),
        "loss": report["loss"],
        "norm": report["grad_norm"],
        "lr": report["lr"],
        "metrics": reduce_parts(parts),
        "token_weights": whole(worker, batch, report["token_weights"], 1.0),
    }


def all_logits(worker: MegatronWorker) -> Tensor:
    """Logits [B, S, V] of the fixed batch, all rows at once."""
    from nemo_tapo.runtime.local import pipeline_schedule

    def score(logits: Tensor, part: Batch) -> tuple[Tensor, Tensor]:
        return logits.new_zeros(()), logits.clone()

    found = pipeline_schedule.run(worker.model, [fixed_batch()], score, forward_only=True)
    own = worker._broadcast_from_last_stage(found)[0]
    shards: list[Any] = [None] * dist.get_world_size()
    dist.all_gather_object(shards, own)
    return torch.cat(shards[: worker.local.tp], -1)[..., :VOCAB]


def log_probabilities(worker: MegatronWorker) -> dict[str, Tensor]:
    """Before and after updates, and the reference's, which must not move."""
    batch = fixed_batch()
    data = own_share(worker, batch)
    worker.load_model(worker.model_path)
    worker.set_reference()
    before = whole(worker, batch, worker.get_logprobs(data=data)["logprobs"], 0.0)
    worker.configure(NO_CLIPPING, total_steps=10)
    for _ in range(3):
        worker.train(data, OBJECTIVE)
    reference = worker.get_reference_policy_logprobs(data=data)["reference_logprobs"]
    after = whole(worker, batch, worker.get_logprobs(data=data)["logprobs"], 0.0)
    return {"before": before, "after": after, "reference": whole(worker, batch, reference, 0.0)}


def everything(worker: MegatronWorker) -> dict[str, Any]:
    return {kind: worker.export_full(kind) for kind in ("weights", "exp_avg", "exp_avg_sq")}


def steps(worker: MegatronWorker, number: int) -> None:
    for _ in range(number):
        worker.train(own_share(worker, fixed_batch()), OBJECTIVE)


def checkpoints(ranks: Ranks, first: Layout, second: Layout) -> dict[str, Any]:
    """Two steps, save, two more under `first`; load, two more under `second`."""
    out: dict[str, Any] = {}
    folder = ranks.folder / f"checkpoint-{'-'.join(map(str, first + second))}"
    folder.mkdir(exist_ok=True)
    with ranks.worker("tied", first) as worker:
        if worker:
            worker.configure(CLIPPING, total_steps=6)
            steps(worker, 2)
            worker.save_checkpoint(folder, folder)
            out["saved"] = {k: copied(v) for k, v in everything(worker).items()}
            steps(worker, 2)
            out["continued"] = everything(worker)
            dist.barrier()
    with ranks.worker("tied", second) as worker:
        if worker:
            worker.configure(CLIPPING, total_steps=6)
            worker.load_checkpoint(folder)
            out["loaded"] = {k: copied(v) for k, v in everything(worker).items()}
            steps(worker, 2)
            out["resumed"] = everything(worker)
    return out


def copied(state: dict[str, Tensor] | None) -> dict[str, Tensor] | None:
    return None if state is None else {name: tensor.clone() for name, tensor in state.items()}


def not_finite(worker: MegatronWorker) -> dict[str, Any]:
    """A row whose advantage is nan, on one replica only: every rank has to refuse, and change nothing."""
    batch = fixed_batch()
    worker.configure(CLIPPING, total_steps=6)
    before = copied(everything(worker)["weights"])
    broken = replace(batch, advantages=batch.advantages.clone().index_fill_(0, torch.tensor([0]), torch.nan))
    try:
        worker.train(own_share(worker, broken), OBJECTIVE)
        message = ""
    except RuntimeFailure as failure:
        message = str(failure)
    messages = together(worker, batch, message)
    after = copied(everything(worker)["weights"])
    steps(worker, 1)
    return {"messages": messages, "before": before, "after": after, "next": everything(worker)["weights"]}


def main(rank: int, folder: Path) -> None:
    ranks, results = Ranks(rank, folder), {}
    for model in ("tied", "untied"):
        for layout in LAYOUTS:
            with ranks.worker(model, layout) as worker:
                if worker:
                    results["logprobs", model, layout] = log_probabilities(worker)
                    for tokens in SPLITS if model == "tied" else SPLITS[:1]:
                        results["gradient", model, layout, tokens] = gradient(worker, tokens)
    for model in FAMILIES:
        for layout in FAMILY_LAYOUTS:
            with ranks.worker(model, layout) as worker:
                if worker:
                    results["weights", model, layout] = copied(worker.export_full())
                    results["logits", model, layout] = all_logits(worker)
                    results["gradient", model, layout, SPLITS[0]] = gradient(worker, SPLITS[0])
    for first, second in ((LAYOUTS[0], LAYOUTS[0]), (LAYOUTS[1], LAYOUTS[2]), (LAYOUTS[3], LAYOUTS[3])):
        results["checkpoint", first, second] = checkpoints(ranks, first, second)
    with ranks.worker("tied", LAYOUTS[3]) as worker:
        assert worker
        results["not finite"] = not_finite(worker)
    if rank == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
