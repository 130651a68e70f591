"""equations/divergence.py against a dense float64 reference by plain autograd, and by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

from nemo_tapo.equations import divergence as module
from nemo_tapo.equations.divergence import DivergenceRules, TokenDivergence, token_divergence
from nemo_tapo.equations.vocab import VocabShard
from tests.helpers.divergence_reference import reference

torch.set_num_threads(1)  # small tensors on shared cores
BETAS = (0.0, 0.2, 0.5, 1.0)


class Case:
    """Logits [b, s, V + padding] of which n places count, and the teacher's there."""

    def __init__(self, seed: int, scale: float = 2.0, size: int = 31, padding: int = 2, n: int = 12) -> None:
        draw = torch.Generator().manual_seed(seed)
        self.size, width = size, size + padding
        self.logits = torch.randn(4, 9, width, generator=draw) * scale
        self.teacher = torch.randn(n, width, generator=draw) * scale
        flat = torch.randperm(36, generator=draw)[:n].sort().values
        self.places = flat // 9, flat % 9
        self.tokens = torch.randint(0, size, (n,), generator=draw)
        self.slope = torch.randn(n, generator=draw)

    def ours(self, rules: DivergenceRules, chunk: int = 1024) -> tuple[TokenDivergence, Tensor]:
        """What is computed, and the gradient of sum(slope * value)."""
        leaf = self.logits.clone().requires_grad_()
        shard = VocabShard(0, self.size, chunk)
        found = token_divergence(leaf, self.places, self.tokens, self.teacher, rules, shard)
        (found.value * self.slope.to(found.value.dtype)).sum().backward()
        assert leaf.grad is not None
        return found, leaf.grad

    def expected(self, rules: DivergenceRules) -> tuple[dict[str, Tensor], Tensor]:
        leaf = self.logits.double().requires_grad_()
        student = leaf[self.places][:, : self.size]
        found = reference(
            student, self.teacher[:, : self.size], self.tokens, rules.beta, rules.entry_clip, rules.temperature
        )
        (found["value"] * self.slope.double()).sum().backward()
        assert leaf.grad is not None
        return found, leaf.grad

    def rounding(self, rules: DivergenceRules) -> float:
        """What a gradient may be off by: a log-probability is known to eps times the size of the logits, which is the
        relative error of p, and p multiplies the log-ratio of the two models."""
        student, teacher = self.logits[self.places].double()[:, : self.size], self.teacher.double()[:, : self.size]
        s, t = (torch.log_softmax(x / rules.temperature, -1) for x in (student, teacher))
        ratio, logits = (s - t)[torch.isfinite(s - t)], student[torch.isfinite(student)] / rules.temperature
        eps = 2.0**-52 if self.logits.dtype == torch.float64 else 2.0**-23
        error = eps * max(float(logits.abs().max()), 1.0) * max(float(ratio.abs().max()), 1.0)
        return error * float(self.slope.abs().max()) / rules.temperature

    def check(self, rules: DivergenceRules, tolerance: float = 1e-5, chunk: int = 1024) -> TokenDivergence:
        (found, gradient), (expected, slope) = self.ours(rules, chunk), self.expected(rules)
        for name, value in expected.items():
            ours = getattr(found, name).double()
            torch.testing.assert_close(ours, value.detach(), rtol=tolerance, atol=tolerance, msg=name)
        limit = max(tolerance, float(torch.finfo(self.logits.dtype).eps))  # the gradient has the logits' type
        torch.testing.assert_close(gradient.double(), slope, rtol=limit, atol=max(limit, self.rounding(rules)))
        assert torch.all(gradient[..., self.size :] == 0)
        return found


@given(
    seed=st.integers(0, 2**20),
    beta=st.sampled_from(BETAS),
    clip=st.sampled_from([None, 0.05, 0.3]),
    temperature=st.sampled_from([1.0, 0.7, 1.2]),
    scale=st.sampled_from([0.0, 1.0, 4.0]),
    chunk=st.sampled_from([1, 3, 1024]),
)
@settings(max_examples=80, deadline=None)
def test_values_and_gradients_are_those_of_the_dense_float64_computation(
    seed: int, beta: float, clip: float | None, temperature: float, scale: float, chunk: int
) -> None:
    """The reference clips at exactly the same entries unless rounding decides: such cases have no two sides."""
    case, rules = Case(seed, scale), DivergenceRules(beta, clip, temperature)
    if clip is not None:
        student, teacher = case.logits[case.places][:, : case.size], case.teacher[:, : case.size]
        near = reference(student, teacher, case.tokens, beta, None, temperature, entries=True)["entries"] - clip
        if bool((near.abs() < 1e-5).any()):
            return
    case.check(rules, chunk=chunk)


def test_by_hand() -> None:
    """Student (3/4, 1/4), teacher (1/4, 3/4). Forward and reverse KL are both (1/2) log 3; with m = (1/2, 1/2) the JSD
    of beta 1/2 is log 2 - H(1/4).
    """
    logits, teacher = torch.tensor([[[math.log(3.0), 0.0]]]), torch.tensor([[0.0, math.log(3.0)]])
    entropy = math.log(4) - 0.75 * math.log(3)
    by_beta = {0.0: 0.5 * math.log(3), 1.0: 0.5 * math.log(3), 0.5: math.log(2) - entropy}
    for beta, expected in by_beta.items():
        found = divergence_of(logits, teacher, DivergenceRules(beta))
        assert found.value.item() == pytest.approx(expected, abs=1e-6), beta
        assert found.logp.item() == pytest.approx(math.log(0.75), abs=1e-6)
        assert found.teacher_logp.item() == pytest.approx(math.log(0.25), abs=1e-6)
        assert found.entropy.item() == pytest.approx(entropy, abs=1e-6)


def test_the_clip_by_hand() -> None:
    """Forward entries are -1/4 log 3 = -0.27 and 3/4 log 3 = 0.82. With c = 1/2 the second is cut to it and has no
    gradient; of the first, g = -1/4, the gradient is -1/4 (onehot - p) = (-1/16, 1/16).
    """
    leaf = torch.tensor([[[math.log(3.0), 0.0]]], requires_grad=True)
    found = divergence_of(leaf, torch.tensor([[0.0, math.log(3.0)]]), DivergenceRules(0.0, 0.5))
    found.value.sum().backward()
    assert found.value.item() == pytest.approx(0.5 - 0.25 * math.log(3), abs=1e-6)
    assert found.clipped.item() == 1
    torch.testing.assert_close(leaf.grad, torch.tensor([[[-1 / 16, 1 / 16]]]))


def divergence_of(logits: Tensor, teacher: Tensor, rules: DivergenceRules, token: int = 0) -> TokenDivergence:
    """At the first place of the first row."""
    first = torch.tensor([0])
    size = logits.shape[-1]
    return token_divergence(logits, (first, first), torch.tensor([token]), teacher, rules, VocabShard(0, size))


@pytest.mark.parametrize("beta", BETAS)
def test_equal_distributions_have_no_divergence_and_no_gradient(beta: float) -> None:
    leaf = torch.randn(1, 1, 50, requires_grad=True)
    found = divergence_of(leaf, leaf.detach()[0], DivergenceRules(beta))
    found.value.sum().backward()
    assert abs(found.value.item()) < 1e-6
    torch.testing.assert_close(leaf.grad, torch.zeros(1, 1, 50), atol=1e-7, rtol=0)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("clip", [None, 0.05])
def test_what_both_exclude_adds_nothing(beta: float, clip: float | None) -> None:
    """As without these tokens at all."""
    whole, part = Case(3, padding=0), Case(3, padding=0)
    part.size = 20
    for case in (whole, part):
        case.logits[..., 20:], case.teacher[..., 20:] = -math.inf, -math.inf
        case.tokens %= 20
    (found, gradient), (expected, slope) = (
        whole.ours(DivergenceRules(beta, clip)),
        part.expected(DivergenceRules(beta, clip)),
    )
    torch.testing.assert_close(found.value.double(), expected["value"].detach(), atol=1e-5, rtol=1e-5)
    torch.testing.assert_close(gradient[..., :20].double(), slope[..., :20], atol=1e-5, rtol=1e-5)
    assert torch.all(gradient[..., 20:] == 0)


def test_what_only_the_student_excludes_is_infinite_forwards_unless_it_is_clipped() -> None:
    logits, teacher = torch.tensor([[[0.0, -math.inf]]]), torch.zeros(1, 2)
    assert divergence_of(logits, teacher, DivergenceRules(0.0)).value.item() == math.inf
    clipped = divergence_of(logits, teacher, DivergenceRules(0.0, 0.05))
    assert clipped.value.item() == pytest.approx(0.5 * math.log(0.5) + 0.05)
    assert divergence_of(logits, teacher, DivergenceRules(1.0)).value.item() == pytest.approx(math.log(2))
    jsd = 0.25 * math.log(0.5 / 0.75) + 0.25 * math.log(0.5 / 0.25) + 0.5 * math.log(1 / 0.75)
    assert divergence_of(logits, teacher, DivergenceRules(0.5)).value.item() == pytest.approx(jsd)


def test_what_only_the_teacher_excludes() -> None:
    logits, teacher = torch.zeros(1, 1, 2), torch.tensor([[0.0, -math.inf]])
    leaf = logits.requires_grad_()
    forward = divergence_of(leaf, teacher, DivergenceRules(0.0))
    forward.value.sum().backward()
    assert forward.value.item() == pytest.approx(math.log(2))
    torch.testing.assert_close(leaf.grad, torch.tensor([[[-0.5, 0.5]]]))
    assert divergence_of(logits, teacher, DivergenceRules(1.0)).value.item() == math.inf


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_sixteen_bit_logits_are_computed_in_fp32(dtype: torch.dtype) -> None:
    case = Case(1)
    case.logits, case.teacher = case.logits.to(dtype), case.teacher.to(dtype)
    found = case.check(DivergenceRules(0.5, None, 1.1))
    assert found.value.dtype == torch.float32


def test_any_strides_and_piece_sizes(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "SMALLEST_BUFFER", 64)  # a token or two a piece
    case = Case(2)
    case.logits = case.logits.transpose(0, 1).contiguous().transpose(0, 1)  # Megatron's order
    case.check(DivergenceRules(0.3, 0.05))


@pytest.mark.parametrize("beta", BETAS)
def test_gradcheck(beta: float) -> None:
    case = Case(0, size=5, padding=1, n=4)
    shard, rules = VocabShard(0, 5), DivergenceRules(beta, None, 0.8)
    leaf = case.logits.double().requires_grad_()

    def value(x: Tensor) -> Tensor:
        return token_divergence(x, case.places, case.tokens, case.teacher.double(), rules, shard).value

    assert torch.autograd.gradcheck(value, (leaf,))


def test_no_places() -> None:
    case = Case(0, n=0)
    found, gradient = case.ours(DivergenceRules())
    assert found.value.shape == (0,) and torch.all(gradient == 0)


def test_a_teacher_of_another_vocabulary_is_a_sentence() -> None:
    with pytest.raises(ValueError, match=r"are not \[n, V\] = \[1, 4\]"):
        divergence_of(torch.zeros(1, 1, 4), torch.zeros(1, 5), DivergenceRules())


class Sizes(TorchDispatchMode):
    """Notes the memory of every tensor that is made: its address and its size, in numbers."""

    def __init__(self) -> None:
        super().__init__()
        self.made: set[tuple[int, int]] = set()

    def above(self, size: float) -> list[int]:
        return [own for _, own in self.made if own > size]

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        out = func(*args, **(kwargs or {}))
        results = [t for t in (out if isinstance(out, tuple) else (out,)) if isinstance(t, Tensor)]
        self.made |= {(t.untyped_storage().data_ptr(), t.untyped_storage().nbytes() // t.itemsize) for t in results}
        return out


def test_nothing_of_the_logits_size_is_made_but_the_gradient() -> None:
    V, n = 8192, 600
    logits, teacher = torch.randn(1, n, V, requires_grad=True), torch.randn(n, V)
    places, tokens = (torch.zeros(n, dtype=torch.long), torch.arange(n)), torch.randint(0, V, (n,))
    rules = DivergenceRules(0.5, 0.05, 1.1)
    with Sizes() as forward:
        found = token_divergence(logits, places, tokens, teacher, rules, VocabShard(0, V))
    given = {(t.untyped_storage().data_ptr(), t.numel()) for t in (logits, teacher)}  # seen as views
    forward.made -= given
    assert not forward.above(n * V / 100)
    with Sizes() as backward:
        found.value.sum().backward()
    backward.made -= given
    assert backward.above(n * V / 100) == [n * V]
