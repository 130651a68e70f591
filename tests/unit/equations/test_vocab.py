"""equations/vocab.py against a dense float64 reference: values, gradients, odd logits, memory."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_tapo.equations import vocab as module
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy

torch.set_num_threads(1)  # small tensors on shared cores


def dense(logits: Tensor, targets: Tensor, size: int) -> tuple[Tensor, Tensor]:
    """log p(target) and entropy from the whole softmax, float64, over the first `size` columns."""
    logp = torch.log_softmax(logits[..., :size].double(), -1)
    entropy = -torch.where(logp == -math.inf, 0, logp.exp() * logp).sum(-1)
    return logp.gather(-1, targets.unsqueeze(-1)).squeeze(-1), entropy


def with_gradient(function: Any, logits: Tensor, slope: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(logp, entropy, d sum(slope * logp) / d logits)."""
    leaf = logits.clone().requires_grad_()
    logp, entropy = function(leaf)
    torch.where(slope == 0, 0, slope * logp).sum().backward()
    assert leaf.grad is not None
    return logp.detach(), entropy.detach(), leaf.grad


def assert_same_as_dense(logits: Tensor, targets: Tensor, shard: VocabShard, tolerance: float = 1e-5) -> None:
    torch.manual_seed(3)
    slope = torch.randn(targets.shape, dtype=torch.float64)
    logp, entropy, gradient = with_gradient(
        lambda x: token_logprobs_and_entropy(x, targets, shard), logits, slope.to(torch.float32)
    )
    expected = with_gradient(lambda x: dense(x, targets, shard.size), logits.double(), slope)
    torch.testing.assert_close(logp.double(), expected[0], rtol=tolerance, atol=tolerance)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=tolerance, atol=tolerance)
    limit = max(tolerance, float(torch.finfo(logits.dtype).eps))  # the gradient is rounded to the logits' type
    torch.testing.assert_close(gradient.double(), expected[2], rtol=limit, atol=limit)


@st.composite
def cases(draw: st.DrawFn) -> tuple[Tensor, Tensor, VocabShard]:
    """Logits of any scale and offset, some -inf, with padding columns of any content, cut into small pieces."""
    b, s = draw(st.integers(1, 4)), draw(st.integers(1, 6))
    size, padding = draw(st.integers(1, 33)), draw(st.integers(0, 3))
    torch.manual_seed(draw(st.integers(0, 2**20)))
    scale, offset = draw(st.sampled_from([0.0, 1.0, 8.0, 60.0])), draw(st.sampled_from([0.0, -300.0, 2e4]))
    logits = torch.randn(b, s, size + padding) * scale + offset
    targets = torch.randint(0, size, (b, s))
    if draw(st.booleans()):
        impossible = torch.rand(logits.shape) < 0.4
        logits = logits.masked_fill(impossible, -math.inf).scatter(-1, targets.unsqueeze(-1), offset)
    if draw(st.booleans()):
        logits[..., size:] = draw(st.sampled_from([math.nan, math.inf, 1e30]))
    return logits, targets, VocabShard(0, size, chunk=draw(st.sampled_from([1, 3, 1024])))


@given(cases())
@settings(max_examples=100, deadline=None)
def test_values_and_gradients_are_those_of_the_dense_float64_softmax(case: tuple[Tensor, Tensor, VocabShard]) -> None:
    logits, targets, shard = case
    slope = torch.randn(targets.shape)
    logp, entropy, gradient = with_gradient(lambda x: token_logprobs_and_entropy(x, targets, shard), logits, slope)
    assert torch.all(gradient[..., shard.size :] == 0)
    true = logits[..., : shard.size]
    expected = with_gradient(lambda x: dense(x, targets, shard.size), true.double(), slope.double())
    # x - m is exact where it matters, but its ulp grows with the distance from the largest logit
    torch.testing.assert_close(logp.double(), expected[0], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(entropy.double(), expected[1], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(gradient[..., : shard.size].double(), expected[2], rtol=1e-5, atol=1e-5)


def test_by_hand() -> None:
    """Two tokens with odds 3 : 1. log p = log 3/4, H = log 4 - 3/4 log 3, d log p / d x = (1/4, -1/4)."""
    logits = torch.tensor([[[math.log(3.0), 0.0]]], requires_grad=True)
    logp, entropy = token_logprobs_and_entropy(logits, torch.tensor([[0]]), VocabShard(0, 2))
    assert entropy is not None and not entropy.requires_grad
    logp.sum().backward()
    assert logp.item() == pytest.approx(math.log(0.75), abs=1e-6)
    assert entropy.item() == pytest.approx(math.log(4) - 0.75 * math.log(3), abs=1e-6)
    torch.testing.assert_close(logits.grad, torch.tensor([[[0.25, -0.25]]]))


def test_one_possible_token_has_entropy_0_and_an_impossible_target_is_minus_infinity() -> None:
    logits = torch.tensor([[[-math.inf, 5.0, -math.inf], [0.0, 0.0, -math.inf]]])
    leaf = logits.clone().requires_grad_()
    logp, entropy = token_logprobs_and_entropy(leaf, torch.tensor([[1, 2]]), VocabShard(0, 3))
    assert logp[0, 0] == 0 and logp[0, 1] == -math.inf
    torch.testing.assert_close(entropy, torch.tensor([[0.0, math.log(2)]]))
    logp.sum().backward()
    assert torch.isfinite(leaf.grad).all()  # type: ignore[arg-type]


@pytest.mark.parametrize("target", [-1, 3, 4, 10**9])
def test_a_target_outside_the_vocabulary_is_impossible(target: int) -> None:
    logits = torch.zeros(1, 1, 4)  # the fourth column is padding
    logp, entropy = token_logprobs_and_entropy(logits, torch.tensor([[target]]), VocabShard(0, 3))
    assert logp.item() == -math.inf
    assert entropy is not None and entropy.item() == pytest.approx(math.log(3))


@pytest.mark.parametrize("shape", [(0, 5, 7), (3, 0, 7), (0, 0, 7)])
def test_no_positions(shape: tuple[int, int, int]) -> None:
    leaf = torch.zeros(shape, requires_grad=True)
    logp, entropy = token_logprobs_and_entropy(leaf, torch.zeros(shape[:2], dtype=torch.long), VocabShard(0, 7))
    logp.sum().backward()
    assert logp.shape == shape[:2] and entropy is not None and entropy.shape == shape[:2]
    assert leaf.grad is not None and leaf.grad.shape == shape


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_are_computed_in_fp32(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    logits = (torch.randn(3, 9, 50) * 4).to(dtype)
    logp, _ = token_logprobs_and_entropy(logits, torch.zeros(3, 9, dtype=torch.long), VocabShard(0, 47))
    assert logp.dtype == torch.float32
    assert_same_as_dense(logits, torch.randint(0, 47, (3, 9)), VocabShard(0, 47))


@pytest.mark.parametrize("chunk", [1, 2, 7, 1024])
def test_any_piece_size_and_any_strides_give_the_same(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_BUFFER", 64)
    torch.manual_seed(0)
    storage = torch.randn(9, 4, 33)
    logits = storage.transpose(0, 1)[:, :-1]  # [4, 8, 33], neither contiguous nor a view of one
    assert_same_as_dense(logits, torch.randint(0, 31, (4, 8)), VocabShard(0, 31, chunk=chunk))


def test_without_entropy_the_log_probabilities_are_the_same() -> None:
    torch.manual_seed(0)
    logits, targets = torch.randn(2, 5, 40), torch.randint(0, 40, (2, 5))
    alone, nothing = token_logprobs_and_entropy(logits, targets, VocabShard(0, 40), with_entropy=False)
    both, _ = token_logprobs_and_entropy(logits, targets, VocabShard(0, 40))
    assert nothing is None and torch.equal(alone, both)


def test_gradcheck() -> None:
    torch.manual_seed(0)
    logits = torch.randn(2, 3, 6, dtype=torch.float64, requires_grad=True)
    targets = torch.randint(0, 5, (2, 3))
    shard = VocabShard(0, 5)
    assert torch.autograd.gradcheck(lambda x: token_logprobs_and_entropy(x, targets, shard)[0], (logits,))


def test_shapes_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match=r"\[b, s, V\]"):
        token_logprobs_and_entropy(torch.zeros(2, 3, 4), torch.zeros(2, 4, dtype=torch.long), VocabShard(0, 4))


class Allocations(TorchDispatchMode):
    """Bytes of every tensor that an operator makes anew (views and outputs written in place are not)."""

    def __init__(self) -> None:
        super().__init__()
        self.sizes: list[int] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        given = {x.untyped_storage().data_ptr() for x in [*args, *(kwargs or {}).values()] if isinstance(x, Tensor)}
        for made in out if isinstance(out, tuple | list) else [out]:
            if isinstance(made, Tensor) and made.untyped_storage().data_ptr() not in given:
                self.sizes.append(made.untyped_storage().nbytes())
        return out


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("shape", [(12, 100, 2048), (2, 64, 32_768)])
def test_no_second_tensor_of_the_logits_size(shape: tuple[int, int, int], dtype: torch.dtype) -> None:
    logits = torch.randn(shape).to(dtype).requires_grad_()
    targets = torch.randint(0, shape[2], shape[:2])
    whole = logits.untyped_storage().nbytes()
    with Allocations() as forward:
        logp, _ = token_logprobs_and_entropy(logits, targets, VocabShard(0, shape[2]))
        total = logp.sum()
    assert max(forward.sizes) <= whole / 25  # two buffers are alive at once
    with Allocations() as backward:
        total.backward()
    assert sorted(backward.sizes)[-1] == whole  # the gradient, once
    assert sorted(backward.sizes)[-2] <= whole / 25
