"""The policy under training: `interface.Actor` over NeMo-RL's `Policy`.

```
Batch --order_for--> rows dealt over DP ranks, filled up --BatchedDataDict--> Policy.train / get_logprobs
UpdateResult <--reduce_parts-- additive shares of micro-batches and ranks
```
NeMo-RL owns the optimizer, its schedule, the weights' files and the reference model: they are made when the Policy is.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.losses.base import Loss
from nemo_tapo.runtime.batch_sharding import deal
from nemo_tapo.runtime.nemo_rl.colocation import Phases, blocking
from nemo_tapo.runtime.nemo_rl.loss_setup import reduce_worker_metrics
from nemo_tapo.types import Batch, UpdateResult

FILLER_LENGTH = 2  # tokens of a row that only fills up: one that predicts, one that is predicted


@dataclass(frozen=True)
class Shape:
    """What NeMo-RL asks of every batch."""

    train_rows: int  # policy.train_global_batch_size: rows of every update, so that the schedule moves evenly
    row_multiple: int  # rows of a forward pass are a multiple of it: DP x logprob_batch_size
    width_multiple: int  # policy.make_sequence_length_divisible_by
    data_parallel: int
    pad_id: int
    temperature: float  # policy.generation.temperature: the workers divide logits by it


@dataclass(frozen=True)
class Weights:
    """What `weights` hands out: NeMo-RL moves the weights itself, when the engine is next needed."""

    version: int


class NemoActor:
    """See the module's text. `loss` makes NeMo-RL's loss of one of ours."""

    def __init__(
        self,
        policy: Any,
        phases: Phases,
        shape: Shape,
        loss: Callable[[Loss], Any],
        batch: Callable[[Mapping[str, Any]], Any],
        model: Path,
        loaded: Path | None,
        has_reference: bool,
        checkpointing: Mapping[str, Any],
        export: Callable[[Path], None],
    ) -> None:
        """`batch` makes a BatchedDataDict; `loaded` is the checkpoint the policy was made from; `export` writes a
        Hugging Face directory.
        """
        self._policy, self._phases, self._shape = policy, phases, shape
        self._loss, self._data = loss, batch
        self._model, self._loaded, self._has_reference = model, loaded, has_reference
        self._checkpointing, self._export = dict(checkpointing), export
        self._configured, self._updates = False, 0

    # ---- what NeMo-RL did when it made the policy ------------------------------------------------------------------

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Nothing to do: policy.megatron_cfg.optimizer and .scheduler were built with the policy.

        NeMo-RL cannot build a second optimizer on the present weights: ValueError when one is asked for. A cold start
        and the training after it are two jobs.
        """
        if self._configured:
            raise ValueError(
                "the NeMo-RL runtime trains once in a job: it cannot begin a new optimizer and schedule. Run the "
                "stages as jobs of their own, each with its policy.model_name."
            )
        self._configured = True

    async def load_model(self, path: Path) -> None:
        """The policy was made from policy.model_name; ValueError for any other model."""
        if Path(path) != self._model:
            raise ValueError(
                f"the policy was made from policy.model_name = {self._model}; NeMo-RL cannot load {path} into it. "
                "Start a job with that model."
            )

    async def set_reference(self) -> None:
        """The reference is policy.model_name, loaded with the policy if the KL is penalised."""
        assert not self._updates, "NeMo-RL's reference is the model a run starts from"

    async def set_teacher(self, path: Path) -> None:
        """NeMo-RL keeps one frozen copy, the reference: ValueError for any other teacher."""
        raise ValueError(f"the NeMo-RL runtime has no second frozen model; leave opsd.teacher_path = {path} out.")

    async def load(self, path: Path) -> None:
        """Weights and optimizer were loaded when the policy was made; ValueError if that was from another folder."""
        if path != self._loaded:
            raise ValueError(f"the policy was made from checkpoint {self._loaded}, and now {path} is asked for.")

    # ---- updates and scores ----------------------------------------------------------------------------------------

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Forward, loss, backward, one optimizer step on `train_rows` rows, of which the last only fill up.

        ValueError if there are more rows than that: another number would bend the learning rate's schedule.
        """
        shape = self._shape
        if batch.rows > shape.train_rows:
            raise ValueError(
                f"an update of {batch.rows} rows does not fit policy.train_global_batch_size = {shape.train_rows}."
            )
        whole = filled(batch, shape.train_rows, shape)
        data = self._data(reordered(whole, self._order(whole)).as_dict())
        nemo_loss = self._loss(loss)
        self._phases.stale = True
        results = await self._phases.training(lambda: self._policy.train(data, nemo_loss, gbs=shape.train_rows))
        self._updates += 1
        return update_result(results)

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """[B, S] nats, log-probability of every token under the present weights; 0 outside rows and at column 0."""
        return await self._scores(batch, temperature, self._policy.get_logprobs, "logprobs")

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same under the reference policy. ValueError if NeMo-RL did not load one."""
        if not self._has_reference:
            raise ValueError(
                "no reference model was loaded: neither loss_fn.reference_policy_kl_penalty nor tapo.loss.kl_rows is "
                "above 0, and the algorithm is not opsd."
            )
        return await self._scores(batch, temperature, self._policy.get_reference_policy_logprobs, "reference_logprobs")

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """The same: the teacher is the reference policy."""
        return await self.reference_logprobs(batch, temperature)

    async def _scores(self, batch: Batch, temperature: float, call: Callable[[Any], Any], key: str) -> Tensor:
        assert temperature == self._shape.temperature, "the workers score at policy.generation.temperature"
        rows = -(-batch.rows // self._shape.row_multiple) * self._shape.row_multiple
        whole = filled(batch, rows, self._shape)
        order = self._order(whole)
        names = ("input_ids", "input_lengths", "token_mask", "sample_mask")
        data = self._data({k: v for k, v in reordered(whole, order).as_dict().items() if k in names})
        scored: Tensor = (await self._phases.scoring(lambda: call(data)))[key]
        out = torch.zeros(whole.input_ids.shape)
        out[order, : scored.shape[1]] = scored.float()
        width = batch.input_ids.shape[1]
        outside = torch.arange(width) >= batch.input_lengths[:, None]
        return out[: batch.rows, :width].masked_fill(outside, 0.0)

    def _order(self, batch: Batch) -> list[int]:
        """Rows as NeMo-RL is to get them: it gives each data-parallel rank a run of rows, so each run gets long and
        short ones alike (where it packs sequences or batches dynamically, it deals them itself).
        """
        return [i for share in deal(batch.input_lengths.tolist(), self._shape.data_parallel) for i in share]

    # ---- weights and files -----------------------------------------------------------------------------------------

    async def weights(self) -> Weights:
        """A handle for `Generator.update_weights`; the weights themselves stay where they are."""
        return Weights(self._updates)

    async def save(self, path: Path) -> None:
        """policy/{weights,optimizer,tokenizer} below `path`, in NeMo-RL's format.

        With Megatron's asynchronous saving the files may still be under way: checkpoints.py waits for them.
        """
        folder = path / "policy"
        optimizer = str(folder / "optimizer") if self._checkpointing.get("save_optimizer", True) else None
        await self._phases.training(
            lambda: self._policy.save_checkpoint(
                weights_path=str(folder / "weights"),
                optimizer_path=optimizer,
                tokenizer_path=str(folder / "tokenizer"),
                checkpointing_cfg=self._checkpointing,
            )
        )

    async def export(self, path: Path) -> None:
        """A Hugging Face model directory, by NeMo-RL's converter from the newest checkpoint."""
        await blocking(lambda: self._export(path))


def filled(batch: Batch, rows: int, shape: Shape) -> Batch:
    """`batch` with `rows` rows, its width a multiple of `shape.width_multiple`. Added rows are in no loss."""
    width = max(batch.input_ids.shape[1], FILLER_LENGTH)
    width = -(-width // shape.width_multiple) * shape.width_multiple
    added = rows - batch.rows
    changes: dict[str, Tensor] = {}
    for each in fields(batch):
        value = getattr(batch, each.name)
        if value is None:
            continue
        filler = shape.pad_id if each.name == "input_ids" else 0
        size = (rows, width) if value.ndim == 2 else (rows,)
        whole = torch.full(size, filler, dtype=value.dtype)
        whole[tuple(slice(n) for n in value.shape)] = value
        changes[each.name] = whole
    changes["input_lengths"][rows - added :] = FILLER_LENGTH
    return replace(batch, **changes)


def reordered(batch: Batch, order: Sequence[int]) -> Batch:
    """The rows in another order, as wide as they are: Megatron takes the width that it is given."""
    return replace(batch, **{name: value[list(order)] for name, value in batch.as_dict().items()})


def update_result(results: Mapping[str, Any]) -> UpdateResult:
    """`Policy.train`'s answer: every metric is a list of additive shares, one a micro-batch and rank."""
    shares = results["all_mb_metrics"]
    return UpdateResult(
        loss=float(torch.as_tensor(results["loss"]).sum()),
        grad_norm=float(torch.as_tensor(results["grad_norm"]).reshape(-1)[0]),
        # DTensor's workers report nothing of micro-batches without a valid row, and so nothing of an idle update.
        learning_rate=float(shares["lr"][0]) if "lr" in shares else math.nan,
        metrics=reduce_worker_metrics(shares),
    )
