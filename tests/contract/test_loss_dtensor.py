"""The loss of logits that are DTensors: split over tensor-parallel ranks, or whole on each."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import Tensor

from nemo_tapo.batch import collate
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.types import Batch, Kind, Row
from tests.distributed.launch import run_ranks

VOCAB = 13  # odd: the second of two ranks holds one column less


def case() -> tuple[Tensor, dict[str, Tensor]]:
    draw = torch.Generator().manual_seed(8)
    rows = [
        Row("0", "q", Kind.ORIGINAL, (1, 2), (3, 12, 0, 6, 7), 1.0, 0.7),
        Row("1", "q_reflected", Kind.CONSTRUCTED, (5,), (8, 2, 4, 4, 9, 10, 11, 1), 1.0, 1.0),
    ]
    batch = collate(rows, pad_id=0)
    return torch.randn(*batch.input_ids.shape, VOCAB, generator=draw) * 2, batch.as_dict()


def test_as_one_tensor(tmp_path: Path) -> None:
    logits, data = case()
    leaf = logits.clone().requires_grad_()
    value = PolicyLoss()(leaf, Batch.from_dict(data), VocabShard(0, VOCAB)).loss
    value.backward()
    run_ranks("tests.contract.loss_dtensor_ranks", 2, tmp_path)
    results = torch.load(tmp_path / "results.pt")
    for name in ("split", "whole"):
        assert results[name][0] == pytest.approx(float(value.detach()), rel=1e-6), name
        torch.testing.assert_close(results[name][1], leaf.grad, rtol=1e-5, atol=1e-7)
    assert "context_parallel_size=1" in results["refused"]
