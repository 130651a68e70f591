"""OPSD on the real Megatron worker under every layout, against two plain Hugging Face models in float64."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor
from transformers import Qwen3ForCausalLM

from tests.distributed.launch import run_ranks
from tests.distributed.layout_ranks import LAYOUTS, Layout
from tests.distributed.opsd_ranks import OBJECTIVES, SPLITS, TEMPERATURE, taught_batch
from tests.distributed.test_layouts import assert_close, write_model
from tests.helpers.divergence_reference import reference

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
ONE, ALL = LAYOUTS[0], SPLITS[0]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two models that differ; the student is the teacher and noise."""
    folder = tmp_path_factory.mktemp("opsd")
    for name in ("teacher", "student"):
        write_model(folder / name, tied=True)
    file = folder / "student" / "model.safetensors"
    torch.manual_seed(1)
    noisy = {name: t + 0.05 * torch.randn_like(t) for name, t in load_file(file).items()}
    save_file(noisy, file, metadata={"format": "pt"})
    return folder


@pytest.fixture(scope="module")
def results(folder: Path) -> dict[Any, Any]:
    run_ranks("tests.distributed.opsd_ranks", 2, folder, timeout=240)
    return torch.load(folder / "results.pt", weights_only=False)  # type: ignore[no-any-return]


def by_hugging_face(folder: Path, name: str) -> tuple[float, dict[str, Tensor], dict[str, float]]:
    """(loss, gradients, means over tokens): row by row, each response cut out of both models' logits by hand."""
    student = Qwen3ForCausalLM.from_pretrained(folder / "student", attn_implementation="eager").double()
    teacher = Qwen3ForCausalLM.from_pretrained(folder / "teacher", attn_implementation="eager").double()
    if name == "live":
        teacher = student
    batch = taught_batch()
    assert batch.teacher_input_ids is not None and batch.teacher_input_lengths is not None
    values, advantages, logps = [], [], []
    for i in range(batch.rows):
        length, told = int(batch.input_lengths[i]), int(batch.teacher_input_lengths[i])
        count = int(batch.token_mask[i].sum())  # the last tokens of both rows
        tokens = batch.input_ids[i, length - count : length]
        assert torch.equal(tokens, batch.teacher_input_ids[i, told - count : told])
        x = student(batch.input_ids[i : i + 1, :length]).logits[0, length - count - 1 : length - 1]
        with torch.no_grad():
            y = teacher(batch.teacher_input_ids[i : i + 1, :told]).logits[0, told - count - 1 : told - 1]
        rules = OBJECTIVES[name].rules if name in OBJECTIVES else OBJECTIVES["jsd"].rules
        found = reference(x, y, tokens, rules.beta, rules.entry_clip, TEMPERATURE)
        values.append(found["value"])
        logps.append(found["logp"])
        advantages.append((found["teacher_logp"] - found["logp"]).detach())
    value, advantage = torch.cat(values), torch.cat(advantages)
    responses = sum(3 + (5 * i) % 11 for i in range(7))  # tokens, those without loss among them
    loss = value.sum() / responses
    if name == "sampled":
        loss = -(advantage * torch.cat(logps)).sum() / responses
    loss.backward()
    gradients = {n: p.grad.float() for n, p in student.named_parameters() if p.grad is not None}
    return float(loss.detach()), gradients, {"divergence": float(value.mean()), "advantage": float(advantage.mean())}


@pytest.mark.parametrize("name", [*OBJECTIVES, "sampled"])
def test_one_rank_is_two_hugging_face_models(name: str, folder: Path, results: dict[Any, Any]) -> None:
    loss, gradients, means = by_hugging_face(folder, name)
    ours = results[ONE][name, ALL]
    assert ours["loss"] == pytest.approx(loss, rel=1e-4, abs=1e-6)
    assert_close(ours["gradients"], gradients, 1e-4)
    assert ours["metrics"]["opsd/advantage"] == pytest.approx(means["advantage"], rel=1e-4, abs=1e-6)
    if name != "sampled":
        assert ours["metrics"]["opsd/divergence"] == pytest.approx(means["divergence"], rel=1e-4, abs=1e-6)
    assert ours["metrics"]["ratio_deviation"] == 0.0
    assert ours["metrics"]["entropy"] > 0


def test_the_cases_are_worth_comparing(results: dict[Any, Any]) -> None:
    """The clip acts on some entries, not on all; the teachers differ; the batch has rows of many lengths."""
    metrics = results[ONE]["forward", ALL]["metrics"]
    assert 0 < metrics["opsd/clipped_share"] < 0.5
    assert abs(metrics["opsd/advantage"] - results[ONE]["live", ALL]["metrics"]["opsd/advantage"]) > 1e-3
    batch = taught_batch()
    assert batch.teacher_input_lengths is not None
    assert len(set((batch.teacher_input_lengths - batch.input_lengths).tolist())) == 7


@pytest.mark.parametrize("tokens", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_gradient_is_the_same_for_every_layout_and_micro_batch(
    name: str, layout: Layout, tokens: int, results: dict[Any, Any]
) -> None:
    expected, other = results[ONE][name, ALL], results[layout][name, tokens]
    assert_close(other["gradients"], expected["gradients"], 1e-5)
    for key in ("loss", "norm"):
        assert other[key] == pytest.approx(expected[key], rel=1e-5, abs=1e-7)
    assert other["metrics"] == pytest.approx(expected["metrics"], rel=1e-4, abs=1e-6)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_teacher_given_by_its_folder_and_the_sampled_token(layout: Layout, results: dict[Any, Any]) -> None:
    """As the reference that it was before; the sampled variant alike under every layout."""
    own = results[layout]
    assert_close(own["given", ALL]["gradients"], own["forward", ALL]["gradients"], 1e-6)
    assert_close(own["sampled", ALL]["gradients"], results[ONE]["sampled", ALL]["gradients"], 1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_a_step_that_teaches_nothing_has_gradient_0(layout: Layout, results: dict[Any, Any]) -> None:
    nothing = results[layout]["nothing", ALL]
    assert nothing["loss"] == 0.0 and nothing["norm"] == 0.0
