"""The divergence over two gloo ranks' shares of a vocabulary against the dense float64 reference: values, gradients."""

from __future__ import annotations

import math
from itertools import product
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.distributed.launch import run_ranks
from tests.helpers.divergence_reference import reference

pytestmark = pytest.mark.distributed
RANKS = 2
Case = dict[str, Any]
BETAS, CLIPS = (0.0, 0.5, 1.0), (None, 0.1)


def case(
    logits: Tensor,
    teacher: Tensor,
    size: int | None = None,
    rules: tuple[float, float | None, float] = (0.0, None, 1.0),
) -> Case:
    """A case for the ranks: of `logits` [b, s, V], n places at random; `rules` are beta, clip, temperature."""
    size, count = size or logits.shape[-1], len(teacher)
    flat = torch.randperm(logits.shape[0] * logits.shape[1])[:count]
    places = flat // logits.shape[1], flat % logits.shape[1]
    tokens = torch.randint(0, size, (count,))
    slope = torch.randn(count)
    return {
        "logits": logits, "teacher": teacher, "places": places, "tokens": tokens, "slope": slope, "size": size,
        "rules": rules,
    }  # fmt: skip


def cases() -> dict[str, Case]:
    """Each by the name of what it is about."""
    torch.manual_seed(0)
    made = {
        f"beta {beta}, clip {clip}": case(torch.randn(3, 7, 64) * 2, torch.randn(9, 64) * 2, rules=(beta, clip, 1.2))
        for beta, clip in product(BETAS, CLIPS)
    }
    here, uneven = torch.randn(2, 5, 16), torch.randn(2, 5, 16)
    here[..., 8:] = -math.inf  # the second rank has no token that the student could say
    uneven[..., 8:] += 300  # the student's whole mass on the second rank
    made |= {
        "padding on the last rank": case(torch.randn(3, 7, 64), torch.randn(8, 64), size=61),
        "a rank of padding alone": case(torch.randn(2, 3, 16), torch.randn(4, 16), size=8),
        "nothing possible on rank 1": case(here, torch.randn(6, 16), rules=(1.0, None, 1.0)),
        "uneven": case(uneven, torch.randn(6, 16), rules=(0.5, None, 1.0)),
        "bfloat16": case(torch.randn(2, 9, 32).bfloat16(), torch.randn(7, 32).bfloat16(), rules=(0.5, None, 0.9)),
        "no places": case(torch.randn(2, 3, 8), torch.zeros(0, 8)),
    }
    return made


@pytest.fixture(scope="module")
def parallel(tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """{name: [what each rank computed]}, from one start of the ranks for all cases."""
    folder: Path = tmp_path_factory.mktemp("divergence")
    torch.save(list(cases().values()), folder / "cases.pt")
    run_ranks("tests.distributed.divergence_ranks", RANKS, folder, timeout=60)
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]
    return dict(zip(cases(), zip(*ranks, strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cases())
def test_as_the_dense_reference(name: str, parallel: dict[str, list[dict[str, Tensor]]]) -> None:
    given, ranks = cases()[name], parallel[name]
    size = given["size"]
    whole = given["logits"].double().requires_grad_()
    expected = reference(whole[given["places"]][:, :size], given["teacher"][:, :size], given["tokens"], *given["rules"])
    expected["value"].backward(given["slope"].double())
    for key, value in expected.items():
        for rank in ranks:
            torch.testing.assert_close(rank[key].double(), value.detach(), rtol=1e-5, atol=1e-5)
            assert torch.equal(rank[key], ranks[0][key])  # bitwise equal on all ranks, or they drift apart
    gradient = torch.cat([rank["gradient"] for rank in ranks], -1)
    assert torch.all(gradient[..., size:] == 0)
    assert whole.grad is not None
    limit = max(1e-5, float(torch.finfo(gradient.dtype).eps))
    torch.testing.assert_close(gradient.double(), whole.grad.nan_to_num(), rtol=limit, atol=limit)
