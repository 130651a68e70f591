"""One rank of test_opsd_layouts.py; arguments: <rank> <ranks> <folder>.

Reads the models <folder>/student and <folder>/teacher. Goes through the layouts with real MegatronWorkers as
layout_ranks.py does; rank 0 writes <folder>/results.pt.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import torch

from nemo_tapo.batch import collate
from nemo_tapo.equations.divergence import DivergenceRules
from nemo_tapo.equations.teacher import add_teacher_logprobs, make_teacher_batch
from nemo_tapo.losses.base import Loss
from nemo_tapo.losses.distillation import DivergenceLoss, SampledTokenLoss
from nemo_tapo.metrics import reduce_parts
from nemo_tapo.runtime.local.worker import MegatronWorker
from nemo_tapo.types import Batch, Kind, Row
from tests.distributed.layout_ranks import LAYOUTS, NO_CLIPPING, VOCAB, Ranks, copied, own_share, together, whole

TEMPERATURE = 1.2
OBJECTIVES: dict[str, DivergenceLoss] = {
    "forward": DivergenceLoss(DivergenceRules(0.0, 0.05, TEMPERATURE)),
    "jsd": DivergenceLoss(DivergenceRules(0.5, None, TEMPERATURE)),
    "live": DivergenceLoss(DivergenceRules(0.0, None, TEMPERATURE), teacher="live"),
}
SPLITS = (10_000, 60, 1)  # tokens of a micro-batch


def taught_batch() -> Batch:
    """Seven rows of 7 to 16 tokens, some of whose first response tokens carry no loss; teacher's prompts of 6 to 12."""
    draw = torch.Generator().manual_seed(11)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (n,), generator=draw).tolist())

    rows = [
        Row(
            f"{i}", "q", Kind.ORIGINAL, ids(4), ids(3 + (5 * i) % 11), masked_tokens=i % 3,
            teacher_prompt_ids=ids(6 + i),
        )
        for i in range(7)
    ]  # fmt: skip
    return collate(rows, pad_id=0, token_mean=True)


def gradient(worker: MegatronWorker, loss: Loss, batch: Batch, tokens: int) -> dict[str, Any]:
    """One update of the student, and all that it reports."""
    worker.local = worker.local.model_copy(update={"micro_batch_tokens": tokens})
    worker.load_model(worker.model_path)
    worker.configure(NO_CLIPPING, total_steps=10)
    report = worker.train(own_share(worker, batch), loss)
    parts = [part for parts in together(worker, batch, report["metrics"]) for part in parts]
    return {
        "gradients": copied(worker.export_full("gradients")),  # the next update overwrites them
        "loss": report["loss"],
        "norm": report["grad_norm"],
        "metrics": reduce_parts(parts),
    }


def everything(worker: MegatronWorker, teacher: Path) -> dict[Any, Any]:
    """All objectives; the teacher is the reference first, then given by its folder beside another reference."""
    out: dict[Any, Any] = {}
    batch = taught_batch()
    worker.load_model(teacher)
    worker.set_reference()
    for name, loss in OBJECTIVES.items():
        for tokens in SPLITS:
            out[name, tokens] = gradient(worker, loss, batch, tokens)
    asked = make_teacher_batch(batch)
    data = own_share(worker, asked)
    scores = worker.get_teacher_logprobs(data=data, temperature=TEMPERATURE)["teacher_logprobs"]
    known = add_teacher_logprobs(batch, whole(worker, asked, scores, 0.0))
    out["sampled", SPLITS[0]] = gradient(worker, SampledTokenLoss(TEMPERATURE), known, SPLITS[0])
    worker.load_model(worker.model_path)
    worker.set_reference()
    worker.set_teacher(teacher)
    out["given", SPLITS[0]] = gradient(worker, OBJECTIVES["forward"], batch, SPLITS[0])
    out["nothing", SPLITS[0]] = gradient(worker, OBJECTIVES["forward"], collate([], 0), SPLITS[0])
    return out


def main(rank: int, folder: Path) -> None:
    ranks, results = Ranks(rank, folder), {}
    for layout in LAYOUTS:
        with ranks.worker("student", layout) as worker:
            if worker:
                results[layout] = everything(worker, folder / "teacher")
    if rank == 0:
        torch.save(results, folder / "results.pt")


if __name__ == "__main__":
    main(int(sys.argv[1]), Path(sys.argv[3]))
