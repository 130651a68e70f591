"""A vocabulary split over two gloo ranks against the same vocabulary on one: values and gradients.

The ranks compute in pieces; and once more by the GPU kernels, in Triton's interpreter, where Triton is installed.
"""

from __future__ import annotations

import importlib.util
import math
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy
from tests.distributed.launch import run_ranks

pytestmark = pytest.mark.distributed
RANKS = 2
Case = dict[str, Any]


def case(logits: Tensor, size: int | None = None, targets: Tensor | None = None) -> Case:
    """A case for the ranks; `size` is the true vocabulary, the rest of the columns is padding."""
    size = size or logits.shape[-1]
    targets = torch.randint(0, size, logits.shape[:2]) if targets is None else targets
    return {"logits": logits, "size": size, "targets": targets, "slope": torch.randn(targets.shape)}


def cases() -> dict[str, Case]:
    """Each by the name of what it is about."""
    torch.manual_seed(0)
    here, there = torch.zeros(2, 3, 16), torch.zeros(2, 3, 16)
    here[..., 8:], there[..., :8] = -math.inf, -math.inf  # one rank has no possible token at all
    uneven = torch.randn(2, 5, 16)
    uneven[..., 8:] += 300  # the whole mass on the second rank
    return {
        "plain": case(torch.randn(3, 7, 64) * 5),
        "padding on the last rank": case(torch.randn(3, 7, 64), size=61),
        "a rank of padding alone": case(torch.randn(2, 3, 16), size=8),
        "nothing possible on rank 1": case(here, targets=torch.full((2, 3), 5)),
        "nothing possible on rank 0": case(there, targets=torch.full((2, 3), 11)),
        "targets without mass": case(uneven, targets=torch.full((2, 5), 3)),
        "large offset": case(torch.randn(2, 4, 32) + 2e4),
        "bfloat16": case(torch.randn(2, 9, 32).bfloat16(), size=30),
        "no positions": case(torch.zeros(2, 0, 8)),
    }


@pytest.fixture(scope="module", params=["pieces", "kernels"])
def how(request: pytest.FixtureRequest) -> str:
    """How the ranks compute."""
    if request.param == "kernels" and importlib.util.find_spec("triton") is None:
        pytest.skip("Triton is not installed: pip install triton (200 MB; no GPU is needed)")
    return str(request.param)


@pytest.fixture(scope="module")
def parallel(how: str, tmp_path_factory: pytest.TempPathFactory) -> dict[str, list[dict[str, Tensor]]]:
    """{name: [what each rank computed]}, from one start of the ranks for all cases."""
    folder: Path = tmp_path_factory.mktemp("vocab")
    torch.save(list(cases().values()), folder / "cases.pt")
    run_ranks("tests.distributed.vocab_ranks", RANKS, folder, how, timeout=60)
    ranks = [torch.load(folder / f"rank{rank}.pt") for rank in range(RANKS)]
    return dict(zip(cases(), zip(*ranks, strict=True), strict=True))  # type: ignore[arg-type]


@pytest.mark.parametrize("name", cases())
def test_as_unsharded(name: str, how: str, parallel: dict[str, list[dict[str, Tensor]]]) -> None:
    given, ranks = cases()[name], parallel[name]
    whole = given["logits"].clone().requires_grad_()
    logp, entropy = token_logprobs_and_entropy(whole, given["targets"], VocabShard(0, given["size"]))
    logp.backward(given["slope"])
    for rank in ranks:
        torch.testing.assert_close(rank["logp"], logp.detach(), rtol=1e-5, atol=1e-5)
        torch.testing.assert_close(rank["entropy"], entropy, rtol=1e-5, atol=1e-5)
        assert torch.equal(rank["logp"], ranks[0]["logp"])  # bitwise equal on all ranks, or they drift apart
    gradient = torch.cat([rank["gradient"] for rank in ranks], -1)
    assert torch.all(gradient[..., given["size"] :] == 0)
    assert whole.grad is not None
    cut = how == "kernels" and whole.grad.dtype == torch.bfloat16  # Triton's interpreter does so; a GPU rounds
    limit = torch.finfo(torch.bfloat16).eps if cut else 1e-5
    torch.testing.assert_close(gradient, whole.grad, rtol=limit, atol=1e-5)
