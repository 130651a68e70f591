"""One rank of test_loss_parallel.py; arguments: <rank> <ranks> <folder>.

Goes through the layouts of 4 ranks with what NeMo-RL itself puts between model and optimizer: its packer, its
temperature, its loss post-processor with its wrappers, and Megatron's scaling of the loss. The model is an embedding
and an output layer, split over tensor-parallel ranks; its gradient is added over data- and context-parallel ranks, as
Megatron does under `calculate_per_token_loss`. Rank 0 writes <folder>/results.pt.
"""

from __future__ import annotations

import sys
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from nemo_tapo.batch import EQUAL_WEIGHTS, collate
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.runtime.nemo_rl import compat
from nemo_tapo.runtime.nemo_rl.logit_loss import LogitLoss
from nemo_tapo.types import Batch, Kind, Row

VOCAB, WIDTH, HIDDEN = 61, 64, 5  # tokens, columns with Megatron's padding, hidden size
TEMPERATURE = 0.7
CHUNK = 5
LAYOUTS = ((1, 1), (2, 1), (1, 2), (2, 2))  # tensor, context parallel; data parallel is the rest of 4 ranks
OBJECTIVE = PolicyLoss(clip_high=0.28, kl_coef=0.05, temperature=TEMPERATURE)
OBJECTIVES = {"token": OBJECTIVE, "sequence": replace(OBJECTIVE, ratio="sequence")}
LAMBDA = 0.8
LENGTHS = (9, 14, 5, 11, 8, 12, 6)  # of the rows; the eighth only fills the batch up


def model() -> tuple[Tensor, Tensor]:
    """(embedding [V, hidden], output layer [columns, hidden]); the padding columns are not 0."""
    draw = torch.Generator().manual_seed(1)
    return torch.randn(VOCAB, HIDDEN, generator=draw), torch.randn(WIDTH, HIDDEN, generator=draw) / 2


def fixed_batch() -> Batch:
    """Seven rows, original and constructed, off policy and with a reference, and one that fills up."""
    draw = torch.Generator().manual_seed(2)

    def ids(n: int) -> tuple[int, ...]:
        return tuple(torch.randint(0, VOCAB, (n,), generator=draw).tolist())

    kinds = [Kind.CONSTRUCTED if i % 3 == 2 else Kind.ORIGINAL for i in range(len(LENGTHS))]
    advantages = (1.2, -0.7, 0.9, 0.4, -1.1, 1.0, -0.3)
    rows = [
        Row(f"{i}", "q", kind, ids(3), ids(length - 3), 1.0, advantage)
        for i, (kind, length, advantage) in enumerate(zip(kinds, LENGTHS, advantages, strict=True))
    ]
    batch = collate(rows, pad_id=0, term_weights=EQUAL_WEIGHTS | {Kind.CONSTRUCTED: LAMBDA})
    noise = torch.randn(2, *batch.input_ids.shape, generator=draw) * 0.2 - 4.5
    known = torch.tensor([float(kind is Kind.ORIGINAL) for kind in kinds])
    batch = replace(
        batch,
        prev_logprobs=noise[0],
        reference_policy_logprobs=noise[1],
        generation_logprobs=noise[0] + 0.01,
        generation_mask=known,
    )
    filler = batch.select([2])
    filler = replace(filler, sample_mask=torch.zeros(1), loss_coef=torch.zeros(1), input_lengths=torch.tensor([2]))
    return Batch.from_dict({name: _stacked(value, getattr(filler, name)) for name, value in batch.as_dict().items()})


def _stacked(rows: Tensor, one: Tensor) -> Tensor:
    if rows.ndim == 1:
        return torch.cat([rows, one])
    wide = torch.zeros(1, rows.shape[1], dtype=rows.dtype)
    wide[:, : one.shape[1]] = one
    return torch.cat([rows, wide])


class Layout:
    """This rank's part of one layout."""

    def __init__(self, tp: int, cp: int) -> None:
        from megatron.core import parallel_state as mpu

        mpu.initialize_model_parallel(tp, 1, context_parallel_size=cp, create_gloo_process_groups=False)
        self.mpu, self.tp, self.cp = mpu, tp, cp
        self.tp_rank, self.cp_rank = mpu.get_tensor_model_parallel_rank(), mpu.get_context_parallel_rank()
        embedding, output = model()
        self.embedding = embedding
        self.output = output.chunk(tp)[self.tp_rank].clone().requires_grad_()

    def run(self, batch: Batch, packed: bool, ratio: str) -> tuple[Tensor, dict[str, list[float]]]:
        """One update's gradient of the whole output layer, and what the data-parallel ranks report."""
        from tests.contract.bridge_stub import loss_post_processor

        self.output.grad = None
        data = compat.load("BatchedDataDict")(batch.as_dict())
        shards = data.shard_by_batch_size(self.mpu.get_data_parallel_world_size())
        own = shards[self.mpu.get_data_parallel_rank()]
        parts = [own.slice(i, min(i + 3, own.size)) for i in range(0, own.size, 3)]  # uneven micro-batches
        loss = LogitLoss(OBJECTIVES[ratio], *compat.get_logit_loss_types(), logits_temperature=TEMPERATURE, chunk=CHUNK)
        post = loss_post_processor()(loss, {"sequence_packing": {"enabled": packed}}, num_microbatches=len(parts))
        store: list[dict[str, float]] = []
        for part in parts:
            self._micro_batch(post, part, packed, len(parts), store)
        dist.all_reduce(self.output.grad, group=self.mpu.get_data_parallel_group(with_context_parallel=True))
        return self._whole(self.output.grad), self._reported(store)

    def _micro_batch(self, post: Any, part: Any, packed: bool, count: int, store: list[dict[str, float]]) -> None:
        from megatron.core.pipeline_parallel.schedules import forward_step_calc_loss
        from nemo_rl.algorithms.logits_sampling_utils import TrainingSamplingParams
        from nemo_rl.models.megatron import data as nemo_data
        from nemo_rl.models.megatron.train import apply_temperature_scaling

        ids, params = part["input_ids"], None
        if packed:
            nemo_data.PackedSeqParams = SimpleNamespace  # main's has fields that this Megatron-core's has not
            multiple = self.tp * (2 * self.cp if self.cp > 1 else 1)
            _, ids, params, _, _ = nemo_data._pack_sequences_for_megatron(
                part["input_ids"], part["input_lengths"], multiple, 4 * multiple, None, self.cp_rank, self.cp
            )
        sampling = TrainingSamplingParams(temperature=TEMPERATURE)
        logits = apply_temperature_scaling(self.embedding[ids] @ self.output.t(), sampling)
        schedule = SimpleNamespace(timers=None, calculate_per_token_loss=True, grad_scale_func=None)
        value, _ = forward_step_calc_loss(
            None, logits, post(part, params), schedule, None, False, count, store, self.cp, True
        )  # fmt: skip
        value.backward()

    def _whole(self, gradient: Tensor) -> Tensor:
        group = self.mpu.get_tensor_model_parallel_group()
        parts = [torch.empty_like(gradient) for _ in range(self.tp)]
        dist.all_gather(parts, gradient, group=group)
        return torch.cat(parts)

    def _reported(self, store: list[dict[str, float]]) -> dict[str, list[float]]:
        """Each micro-batch's metrics of one rank of every data-parallel group, as `Policy.train` returns them."""
        everyone: list[Any] = [None] * dist.get_world_size()
        dist.all_gather_object(everyone, (self.tp_rank, self.cp_rank, store))
        chosen = [m for tp, cp, metrics in everyone if (tp, cp) == (0, 0) for m in metrics]
        return {name: [m[name] for m in chosen if name in m] for name in {n for m in chosen for n in m}}


def main(rank: int, ranks: int, folder: Path) -> None:
    """Writes {(tp, cp, packed, ratio): (gradient, metrics)}."""
    from nemo_tapo.runtime.local import cpu_shim

    cpu_shim.apply()
    dist.init_process_group("gloo", init_method=f"file://{folder}/meeting", rank=rank, world_size=ranks)
    results = {}
    for tp, cp in LAYOUTS:
        layout = Layout(tp, cp)
        for packed in (True, False) if cp == 1 else (True,):  # NeMo-RL has context parallelism with packing only
            for ratio in OBJECTIVES:
                results[tp, cp, packed, ratio] = layout.run(fixed_batch(), packed, ratio)
        layout.mpu.destroy_model_parallel()
    if rank == 0:
        torch.save(results, folder / "results.pt")
    dist.barrier()
    dist.destroy_process_group()


if __name__ == "__main__":
    main(int(sys.argv[1]), int(sys.argv[2]), Path(sys.argv[3]))
