"""The GPU kernels against equations/vocab.py, without a GPU: in Triton's interpreter, and compiled for two GPUs."""

from __future__ import annotations

import importlib.util
import json
import math
import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.equations import kernels, vocab
from nemo_tapo.equations.vocab import VocabShard, token_logprobs_and_entropy
from tests.helpers.imports import ROOT

needs_triton = pytest.mark.skipif(
    importlib.util.find_spec("triton") is None,
    reason="Triton is not installed: pip install triton (200 MB; no GPU is needed)",
)
Case = dict[str, Any]


def run(*arguments: str | Path, **environment: str) -> str:
    """Run Python from the root of the checkout; return what it printed."""
    command = [sys.executable, *map(str, arguments)]
    changed = os.environ | {"OMP_NUM_THREADS": "1"} | environment
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=ROOT, env=changed, timeout=300)
    assert done.returncode == 0, done.stderr[-4000:]
    return done.stdout


# ---- values ----------------------------------------------------------------------------------------------------------


def case(logits: Tensor, targets: Tensor | None = None, **others: Any) -> Case:
    """A case for the interpreter; `size` is the true vocabulary, the rest of the columns is padding."""
    size = others.get("size", logits.shape[-1])
    if targets is None:
        targets = torch.randint(0, size, logits.shape[:2])
    slope = torch.randn(targets.shape, dtype=torch.float64 if logits.dtype == torch.float64 else torch.float32)
    return {"logits": logits, "targets": targets, "slope": slope, "start": 0, "size": size, "entropy": True} | others


def cases() -> dict[str, Case]:
    """Each by the name of what it is about. A block has 16 columns, 8 in the gradient."""
    torch.manual_seed(0)
    wide = torch.float64
    bent = torch.randn(2, 3, 50, dtype=wide)
    bent[..., 45:] = torch.tensor([math.nan, math.inf, -math.inf, 1e30, 0.0])
    holes = torch.randn(3, 4, 40, dtype=wide).masked_fill(torch.rand(3, 4, 40) < 0.6, -math.inf)
    holes[0, 0, :16], holes[0, 1, 16:], holes[0, 2] = -math.inf, -math.inf, -math.inf  # whole blocks; a whole row
    rising = torch.arange(48, dtype=wide).expand(1, 2, 48).clone() * 40  # a new maximum in every block
    rising[:, 1] *= 30  # and more than 800 above the last
    no_tokens, ends = torch.tensor([[-1, 38, 99, 2**32 + 5]]), torch.tensor([[99, 100, 137, 138]])
    broken = torch.randn(1, 5, 40)
    broken[0, 0, 3], broken[0, 1, 39], broken[0, 2, 20], broken[0, 3] = math.nan, math.nan, math.inf, math.nan
    return {
        "float64": case(torch.randn(3, 5, 53, dtype=wide) * 5),
        "float32": case(torch.randn(3, 5, 53) * 5),
        "bfloat16": case((torch.randn(3, 5, 53) * 5).bfloat16()),
        "float16": case((torch.randn(3, 5, 53) * 5).half()),
        "whole blocks": case(torch.randn(2, 3, 48, dtype=wide)),
        "less than a block": case(torch.randn(2, 3, 5, dtype=wide)),
        "one column": case(torch.randn(2, 3, 1, dtype=wide)),
        "padding of any content": case(bent, size=45),
        "a block of padding alone": case(torch.randn(2, 3, 40, dtype=wide), size=13),
        "nothing but padding": case(torch.randn(2, 3, 20, dtype=wide), torch.ones(2, 3).long(), start=20, size=20),
        "no columns": case(torch.randn(2, 3, 0), torch.ones(2, 3).long(), start=20, size=20),
        "logits of -inf": case(holes),
        "logits of nan and inf": case(broken),
        "targets that are no tokens": case(torch.randn(1, 4, 40, dtype=wide), no_tokens, size=38),
        "the columns from 100 on": case(torch.randn(1, 4, 40, dtype=wide), ends, start=100, size=138),
        "a rising maximum": case(rising),
        "a falling maximum": case(rising.flip(-1)),
        "large offset": case(torch.randn(2, 4, 40) + 2e4),
        "large offset in float64": case(torch.randn(2, 4, 40, dtype=wide) + 1e4),
        "large scale": case(torch.randn(2, 4, 40, dtype=wide) * 60),
        "all logits equal": case(torch.zeros(2, 4, 40)),
        "a slice of the sequences": case(torch.randn(3, 6, 53, dtype=wide)[:, 1:-1]),
        "a slice of the columns": case(torch.randn(3, 6, 53, dtype=wide)[..., 3:40]),
        "sequences first": case(torch.randn(6, 3, 53, dtype=wide).transpose(0, 1)),
        "a slice of sequences first": case(torch.randn(6, 3, 53, dtype=wide).transpose(0, 1)[:, :-1]),
        "one slope for all": case(torch.randn(2, 3, 40, dtype=wide), slope=torch.ones((), dtype=wide).expand(2, 3)),
        "slope 0": case(torch.randn(2, 3, 40, dtype=wide), slope=torch.zeros(2, 3, dtype=wide)),
        "targets across": case(torch.randn(2, 3, 40, dtype=wide), torch.randint(0, 40, (3, 2)).t()),
        "without entropy": case(torch.randn(2, 3, 40, dtype=wide), entropy=False),
        "no positions": case(torch.zeros(2, 0, 8)),
        "no rows": case(torch.zeros(0, 2, 8)),
    }  # fmt: skip


@pytest.fixture(scope="module")
def interpreted(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Tensor | None]]:
    """What the kernels gave in the interpreter, by the case's name; from one process for all."""
    folder = tmp_path_factory.mktemp("kernels")
    torch.save(list(cases().values()), folder / "cases.pt")
    run("-m", "tests.unit.equations.interpreted_kernels", folder)
    assert all(found < 1e-4 for found in json.loads((folder / "compared.json").read_text()))
    return dict(zip(cases(), torch.load(folder / "results.pt"), strict=True))


@needs_triton
@pytest.mark.parametrize("name", cases())
def test_the_kernels_give_what_the_reference_gives(name: str, interpreted: dict[str, dict[str, Tensor | None]]) -> None:
    given, seen = cases()[name], interpreted[name]
    leaf = given["logits"].requires_grad_()
    shard = VocabShard(given["start"], given["size"])
    logp, entropy = token_logprobs_and_entropy(leaf, given["targets"], shard, given["entropy"])
    logp.backward(given["slope"])
    assert leaf.grad is not None and seen["gradient"] is not None
    limit = 1e-12 if leaf.dtype == torch.float64 else 1e-5
    near = {"rtol": limit, "atol": limit, "equal_nan": True}
    torch.testing.assert_close(seen["logp"], logp.detach(), **near)
    torch.testing.assert_close(seen["entropy"], entropy, **near)
    rounding = max(limit, float(torch.finfo(leaf.dtype).eps))  # of the gradient to the logits' type
    torch.testing.assert_close(seen["gradient"], leaf.grad, rtol=rounding, atol=limit, equal_nan=True)
    assert torch.all(seen["gradient"][..., shard.columns(leaf.shape[-1]) :] == 0)


@needs_triton
def test_the_gradient_is_that_of_torch(interpreted: dict[str, dict[str, Tensor | None]]) -> None:
    """Not of the reference: of log_softmax itself, in float64."""
    given = cases()["float64"]
    leaf = given["logits"].requires_grad_()
    chosen = torch.log_softmax(leaf, -1).gather(-1, given["targets"].unsqueeze(-1)).squeeze(-1)
    chosen.backward(given["slope"])
    torch.testing.assert_close(interpreted["float64"]["gradient"], leaf.grad, rtol=1e-12, atol=1e-12)


class Stand:
    """Stands for kernels that compute right, or not: by the reference itself."""

    def __init__(self, wrong_sums: float = 0.0, wrong_gradient: float = 0.0) -> None:
        self.wrong_sums, self.wrong_gradient, self.calls = wrong_sums, wrong_gradient, 0

    def terms(
        self, logits: Tensor, targets: Tensor, start: int, width: int, with_entropy: bool
    ) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        self.calls += 1
        shard = VocabShard(start, start + width)
        top, mass, drift = vocab._local_sums(logits, shard, with_entropy)
        return top + self.wrong_sums, mass, drift, vocab._own_targets(logits, targets, shard, top.dtype)

    def gradient(
        self, logits: Tensor, targets: Tensor, top: Tensor, mass: Tensor, slope: Tensor, start: int, width: int
    ) -> Tensor:
        return vocab._gradient(logits, targets, None, slope, VocabShard(start, start + width)) + self.wrong_gradient


@pytest.mark.parametrize(
    ("stand", "used"), [(Stand(), True), (Stand(wrong_sums=0.01), False), (Stand(wrong_gradient=0.01), False),
                        (Stand(wrong_sums=math.nan), False)],
)  # fmt: skip
def test_kernels_that_are_off_are_told_and_not_used(
    stand: Stand, used: bool, monkeypatch: pytest.MonkeyPatch, recwarn: pytest.WarningsRecorder
) -> None:
    monkeypatch.setattr(vocab, "_agreeing", {})
    monkeypatch.setattr(vocab, "find_kernels", lambda logits: stand)
    logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log()
    for _ in range(2):
        logp, _ = token_logprobs_and_entropy(logits, torch.tensor([[0]]), VocabShard(0, 3))
        assert logp.item() == pytest.approx(math.log(0.5))
    assert stand.calls == (3 if used else 1)  # compared once, whatever is found
    assert [str(warning.message).split(" are off")[0] for warning in recwarn] == (
        [] if used else ["the Triton kernels of the log-probability pass"]
    )


# ---- compiling, shipping, choosing -----------------------------------------------------------------------------------


@needs_triton
@pytest.mark.parametrize(("capability", "kind"), [(80, "bf16"), (90, "bf16"), (90, "fp32"), (90, "fp64")])
def test_they_compile_for_a_gpu_and_move_16_bytes_at_a_time(capability: int, kind: str, tmp_path: Path) -> None:
    compiled = ("-m", "tests.unit.equations.compiled_kernels", str(capability), kind)
    lines = [line.split() for line in run(*compiled, TRITON_CACHE_DIR=str(tmp_path)).splitlines()]
    assert [line[:2] for line in lines] == [["_terms", "128"], ["_terms", "128"], ["_gradient", "128"]]
    nearest = ["rn"] if kind == "bf16" else []  # the interpreter cuts the gradient off to bf16; a GPU rounds it
    assert lines[2][2:] == ["128", *nearest]


SHIP = """
import sys
import cloudpickle, torch
import nemo_tapo.equations
from nemo_tapo.equations import kernels, vocab
cloudpickle.register_pickle_by_value(nemo_tapo.equations)
vocab.find_kernels = lambda logits: kernels.load_kernels()
with open(sys.argv[1], "wb") as file:
    cloudpickle.dump((vocab.token_logprobs_and_entropy, vocab.VocabShard(0, 3)), file)
"""
RECEIVE = """
import sys
import cloudpickle, torch
sys.modules["nemo_tapo"] = None  # as if it were not installed
with open(sys.argv[1], "rb") as file:
    scores, shard = cloudpickle.load(file)
logits = torch.tensor([[[0.5, 0.25, 0.25]]]).log().requires_grad_()
logp, entropy = scores(logits, torch.tensor([[0]]), shard)
logp.sum().backward()
print(*[round(x, 4) for x in (logp.item(), entropy.item(), *logits.grad.flatten().tolist())])
"""


@needs_triton
def test_they_travel_to_a_worker_that_lacks_the_package(tmp_path: Path) -> None:
    """log p = ln 1/2, H = 3/2 ln 2, gradient (1/2, -1/4, -1/4)."""
    pytest.importorskip("cloudpickle", reason="cloudpickle is not installed: it comes with vLLM")
    run("-c", SHIP, tmp_path / "shipped")
    printed = run("-c", RECEIVE, tmp_path / "shipped", TRITON_INTERPRET="1")
    assert printed.split() == ["-0.6931", "1.0397", "0.5", "-0.25", "-0.25"]


def logits_of(cuda: bool = True, stride: int = 1) -> Any:
    return SimpleNamespace(is_cuda=cuda, stride=lambda dimension: stride)


def test_they_are_chosen_for_logits_on_a_gpu_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    installed = {"triton": object()}
    monkeypatch.delenv(kernels.SWITCH, raising=False)
    monkeypatch.setattr(kernels, "load_kernels", lambda: "kernels")
    monkeypatch.setattr(kernels, "find_spec", installed.get)
    assert kernels.find_kernels(logits_of()) == "kernels"
    assert kernels.find_kernels(logits_of(cuda=False)) is None
    assert kernels.find_kernels(logits_of(stride=2)) is None
    monkeypatch.setenv(kernels.SWITCH, "0")
    assert kernels.find_kernels(logits_of()) is None
    monkeypatch.setenv(kernels.SWITCH, "1")
    assert kernels.find_kernels(logits_of()) == "kernels"
    installed.clear()
    assert kernels.find_kernels(logits_of()) is None


def test_what_fails_to_load_leaves_no_half_of_a_module(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "triton", None)
    monkeypatch.delitem(sys.modules, kernels.NAME, raising=False)
    with pytest.raises(ImportError):
        kernels.load_kernels()
    assert kernels.NAME not in sys.modules
