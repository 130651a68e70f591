"""The policy under training: `interfaces.Actor` over NeMo-RL's `Policy`.

```
Batch --pad_batch--> rows balanced over DP ranks --BatchedDataDict--> Policy.train / get_logprobs
UpdateResult <--reduce_parts-- additive shares of micro-batches and ranks
```
NeMo-RL owns the optimizer, its schedule, the weight files and the reference model. It creates them with the Policy.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, fields, replace
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.losses.base import Loss
from nemo_tapo.runtime.batch_sharding import deal_rows
from nemo_tapo.runtime.nemo_rl.colocation import ColocationScheduler
from nemo_tapo.runtime.nemo_rl.loss_setup import reduce_worker_metrics
from nemo_tapo.runtime.nemo_rl.nemo_calls import run_blocking
from nemo_tapo.types import Batch, UpdateResult

FILLER_LENGTH = 2  # tokens of a padding row: one that predicts and one that is predicted


@dataclass(frozen=True)
class BatchShape:
    """The sizes that NeMo-RL requires of every batch, and how to pad to them."""

    train_rows: int  # policy.train_global_batch_size: every update has so many, so the schedule advances evenly
    row_multiple: int  # a forward pass has a multiple of it: DP x logprob_batch_size rows
    width_multiple: int  # policy.make_sequence_length_divisible_by
    data_parallel: int  # ranks
    pad_id: int
    temperature: float  # policy.generation.temperature: the workers divide logits by it


@dataclass(frozen=True)
class PolicyOrigin:
    """What NeMo-RL loaded when it made the policy.

    >>> PolicyOrigin(model=Path("Qwen/Qwen3-8B"), checkpoint=None, has_reference=True)
    PolicyOrigin(model=PosixPath('Qwen/Qwen3-8B'), checkpoint=None, has_reference=True)
    """

    model: Path  # policy.model_name
    checkpoint: Path | None  # the checkpoint folder that weights and optimizer came from; None: a new run
    has_reference: bool  # whether a frozen copy of the model is kept as the reference


@dataclass(frozen=True)
class PolicyAdapters:
    """Functions that turn this package's objects into NeMo-RL's."""

    make_loss: Callable[[Loss], Any]  # NeMo-RL's loss function from one of this package's
    make_batch: Callable[[Mapping[str, Any]], Any]  # a BatchedDataDict from {field: tensor}
    export: Callable[[Path], None]  # writes the newest checkpoint as a Hugging Face directory


@dataclass(frozen=True)
class WeightsHandle:
    """The result of `NemoActor.weights`. NeMo-RL moves the weights itself, when the engine is next needed."""

    version: int  # updates done so far


class NemoActor:
    """The Actor over NeMo-RL's Policy; see the module docstring."""

    def __init__(
        self,
        policy: Any,
        scheduler: ColocationScheduler,
        shape: BatchShape,
        origin: PolicyOrigin,
        adapters: PolicyAdapters,
        checkpointing: Mapping[str, Any],
    ) -> None:
        """Wrap `policy`, a Policy; `checkpointing` is NeMo-RL's section of that name."""
        self._policy, self._scheduler, self._shape = policy, scheduler, shape
        self._origin, self._adapters = origin, adapters
        self._checkpointing = dict(checkpointing)
        self._configured, self._updates = False, 0

    # ---- what NeMo-RL did when it made the policy ------------------------------------------------------------------

    async def configure(self, optimizer: OptimizerConfig, total_steps: int) -> None:
        """Accept the first call and change nothing: NeMo-RL built optimizer and schedule together with the policy.

        They come from policy.megatron_cfg.optimizer and .scheduler. NeMo-RL cannot build a second optimizer on the
        present weights, so a cold start and the training after it are two jobs. Raises ValueError on a second call.
        """
        if self._configured:
            raise ValueError(
                "the NeMo-RL runtime trains once in a job: it cannot begin a new optimizer and schedule. Run the "
                "stages as jobs of their own, each with its policy.model_name."
            )
        self._configured = True

    async def load_model(self, path: Path) -> None:
        """Check that `path` is policy.model_name, which the policy was made from.

        Raises ValueError for any other model.
        """
        model = self._origin.model
        if Path(path) != model:
            raise ValueError(
                f"the policy was made from policy.model_name = {model}; NeMo-RL cannot load {path} into it. "
                "Start a job with that model."
            )

    async def set_reference(self) -> None:
        """Check that no update was made yet: the reference is policy.model_name, loaded together with the policy."""
        assert not self._updates, "NeMo-RL's reference is the model a run starts from"

    async def set_teacher(self, path: Path) -> None:
        """Raise ValueError: NeMo-RL keeps one frozen model, the reference, and no other teacher."""
        raise ValueError(f"the NeMo-RL runtime has no second frozen model; leave teacher_path = {path} out.")

    async def load(self, path: Path) -> None:
        """Check that `path` is the checkpoint that weights and optimizer were loaded from when the policy was made.

        Raises ValueError for any other folder.
        """
        loaded = self._origin.checkpoint
        if path != loaded:
            raise ValueError(f"the policy was made from checkpoint {loaded}, and now {path} is asked for.")

    # ---- updates and scores ----------------------------------------------------------------------------------------

    async def train(self, batch: Batch, loss: Loss) -> UpdateResult:
        """Run forward, loss, backward and one optimizer step on `train_rows` rows; the last ones may be padding.

        Raises ValueError for a larger batch: another number of rows would distort the learning-rate schedule.
        """
        shape = self._shape
        if batch.rows > shape.train_rows:
            raise ValueError(
                f"an update of {batch.rows} rows does not fit policy.train_global_batch_size = {shape.train_rows}."
            )
        padded = pad_batch(batch, shape.train_rows, shape)
        data = self._adapters.make_batch(reorder_rows(padded, self._balance_ranks(padded)).as_dict())
        nemo_loss = self._adapters.make_loss(loss)
        self._scheduler.stale = True
        update = partial(self._policy.train, data, nemo_loss, gbs=shape.train_rows)
        results = await self._scheduler.training(update, "updating")
        self._updates += 1
        return make_update_result(results)

    async def logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the log-probability of every token under the present weights, [B, S] nats.

        It is 0 outside rows and at column 0.
        """
        return await self._compute_scores(batch, temperature, self._policy.get_logprobs, "logprobs")

    async def reference_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the same under the reference policy. Raises ValueError if NeMo-RL did not load one."""
        if not self._origin.has_reference:
            raise ValueError(
                "no reference model was loaded: neither loss_fn.reference_policy_kl_penalty nor tapo.loss.kl_rows is "
                "above 0, and the algorithm has no teacher."
            )
        return await self._compute_scores(
            batch, temperature, self._policy.get_reference_policy_logprobs, "reference_logprobs"
        )

    async def teacher_logprobs(self, batch: Batch, temperature: float = 1.0) -> Tensor:
        """Return the reference log-probabilities: the reference policy is the teacher."""
        return await self.reference_logprobs(batch, temperature)

    async def _compute_scores(self, batch: Batch, temperature: float, call: Callable[[Any], Any], key: str) -> Tensor:
        assert temperature == self._shape.temperature, "the workers score at policy.generation.temperature"
        rows = -(-batch.rows // self._shape.row_multiple) * self._shape.row_multiple
        padded = pad_batch(batch, rows, self._shape)
        order = self._balance_ranks(padded)
        names = ("input_ids", "input_lengths", "token_mask", "sample_mask")
        data = self._adapters.make_batch({k: v for k, v in reorder_rows(padded, order).as_dict().items() if k in names})
        scores: Tensor = (await self._scheduler.scoring(lambda: call(data), f"computing {key}"))[key]
        out = torch.zeros(padded.input_ids.shape)
        out[order, : scores.shape[1]] = scores.float()
        width = batch.input_ids.shape[1]
        outside = torch.arange(width) >= batch.input_lengths[:, None]
        return out[: batch.rows, :width].masked_fill(outside, 0.0)

    def _balance_ranks(self, batch: Batch) -> list[int]:
        """Return a row order in which every data-parallel rank gets long and short rows alike.

        NeMo-RL gives each rank a contiguous block of rows. (With sequence packing or dynamic batching it distributes
        the rows itself.)
        """
        return [i for share in deal_rows(batch.input_lengths.tolist(), self._shape.data_parallel) for i in share]

    # ---- weights and files -----------------------------------------------------------------------------------------

    async def weights(self) -> WeightsHandle:
        """Return a handle for `Generator.update_weights`; the weights themselves are not moved."""
        return WeightsHandle(self._updates)

    async def save(self, path: Path) -> None:
        """Write policy/{weights,optimizer,tokenizer} below `path`, in NeMo-RL's format.

        With Megatron's asynchronous saving the files may still be incomplete on return: `NemoCheckpoints.settle` waits
        for them.
        """
        folder = path / "policy"
        optimizer = str(folder / "optimizer") if self._checkpointing.get("save_optimizer", True) else None
        await self._scheduler.training(
            lambda: self._policy.save_checkpoint(
                weights_path=str(folder / "weights"),
                optimizer_path=optimizer,
                tokenizer_path=str(folder / "tokenizer"),
                checkpointing_cfg=self._checkpointing,
            ),
            "saving a checkpoint",
        )

    async def export(self, path: Path) -> None:
        """Write a Hugging Face model directory: NeMo-RL's converter makes it from the newest checkpoint.

        The converter has a deadline of its own (hf_export.py); Stopped ends it as it ends the loop.
        """
        await run_blocking(lambda: self._adapters.export(path), "NeMo-RL's converter", math.inf)


def pad_batch(batch: Batch, rows: int, shape: BatchShape) -> Batch:
    """Pad a batch to `rows` rows and to a width that is a multiple of `shape.width_multiple`.

    Added rows have zero masks and coefficients, so they are in no loss.

    >>> from nemo_tapo.batch import collate
    >>> from nemo_tapo.types import Kind, Row
    >>> shape = BatchShape(train_rows=4, row_multiple=1, width_multiple=8, data_parallel=1, pad_id=0, temperature=1.0)
    >>> row = Row("7/0", "7", Kind.ORIGINAL, prompt_ids=(5, 6), response_ids=(7,))
    >>> pad_batch(collate([row], pad_id=0), 4, shape).input_ids.shape
    torch.Size([4, 8])
    """
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
        padded = torch.full(size, filler, dtype=value.dtype)
        padded[tuple(slice(n) for n in value.shape)] = value
        changes[each.name] = padded
    changes["input_lengths"][rows - added :] = FILLER_LENGTH
    return replace(batch, **changes)


def reorder_rows(batch: Batch, order: Sequence[int]) -> Batch:
    """Return the batch with its rows in another order.

    Keeps the padded width, unlike `Batch.select`: Megatron uses the width of its input.
    """
    return replace(batch, **{name: value[list(order)] for name, value in batch.as_dict().items()})


def make_update_result(results: Mapping[str, Any]) -> UpdateResult:
    """Reduce what `Policy.train` returns: every metric is a list of additive shares, one a micro-batch and rank.

    >>> shares = {"lr": [0.1, 0.1], "loss": [0.5, 0.25]}
    >>> results = {"loss": torch.tensor([0.75]), "grad_norm": torch.tensor([2.0]), "all_mb_metrics": shares}
    >>> make_update_result(results)
    UpdateResult(loss=0.75, grad_norm=2.0, learning_rate=0.1, metrics={'loss': 0.75}, token_weights=None)
    """
    shares = results["all_mb_metrics"]
    return UpdateResult(
        loss=float(torch.as_tensor(results["loss"]).sum()),
        grad_norm=float(torch.as_tensor(results["grad_norm"]).reshape(-1)[0]),
        # DTensor's workers report nothing for micro-batches without a valid row, hence no "lr" if all rows are padding.
        learning_rate=float(shares["lr"][0]) if "lr" in shares else math.nan,
        metrics={**reduce_worker_metrics(shares), **read_model_metrics(results)},
    )


def read_model_metrics(results: Mapping[str, Any]) -> dict[str, float]:
    """Return what the model itself reports of an update: the load of its experts, multi-token prediction.

    The names are those of NeMo-RL's own trainer.

    >>> read_model_metrics({"loss": 0.5, "moe_metrics": {"load_balancing_loss": torch.tensor(1.5)}})
    {'moe/load_balancing_loss': 1.5}
    """
    return {
        f"{kind}/{name}": float(value)
        for kind in ("moe", "mtp")
        for name, value in (results.get(f"{kind}_metrics") or {}).items()
    }
