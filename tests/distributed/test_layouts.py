"""The real Megatron worker under every layout: same gradients, same log-probabilities, checkpoints that travel.

The ranks run once for all tests here (layout_ranks.py); the tests compare what they wrote, among themselves and
with a plain Hugging Face model.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch import Tensor
from transformers import AutoModelForCausalLM, Qwen3Config, Qwen3ForCausalLM

from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.base import next_token_scores
from tests.distributed.launch import run_ranks
from tests.distributed.layout_ranks import FAMILY_LAYOUTS, LAYOUTS, OBJECTIVE, SPLITS, VOCAB, Layout, fixed_batch
from tests.helpers.model_families import FAMILIES, write_family

pytestmark = [pytest.mark.distributed, pytest.mark.timeout(300)]
Results = dict[Any, Any]
ONE = LAYOUTS[0]


def write_model(folder: Path, tied: bool) -> None:
    """A tiny Qwen3 with random norms, so that no two tensors of equal shape can be confused unnoticed."""
    config = Qwen3Config(
        vocab_size=VOCAB,
        hidden_size=24,
        intermediate_size=20,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=6,
        max_position_embeddings=64,
        rope_parameters={"rope_type": "default", "rope_theta": 5e5},
        tie_word_embeddings=tied,
        initializer_range=0.2,
    )
    torch.manual_seed(7)
    model = Qwen3ForCausalLM(config)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if "norm" in name:
                parameter.copy_(1 + 0.3 * torch.randn_like(parameter))
    model.save_pretrained(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("layouts")


@pytest.fixture(scope="module")
def results(folder: Path) -> Results:
    for name in ("tied", "untied"):
        write_model(folder / name, tied=name == "tied")
    for family in FAMILIES:
        write_family(folder / family, family)
    run_ranks("tests.distributed.layout_ranks", 2, folder, timeout=240)
    return torch.load(folder / "results.pt", weights_only=False)  # type: ignore[no-any-return]


def assert_close(given: dict[str, Tensor], expected: dict[str, Tensor], tolerance: float) -> None:
    """Every tensor within `tolerance` of the expected one, relative to the latter's norm."""
    assert given.keys() == expected.keys()
    far = {n: float((given[n] - t).norm() / t.norm()) for n, t in expected.items()}
    assert all(x <= tolerance for x in far.values()), {n: x for n, x in far.items() if x > tolerance}


def hugging_face(folder: Path) -> tuple[dict[str, Any], dict[str, Tensor], Tensor]:
    """(loss, gradients, log-probabilities) of the fixed batch by transformers, all rows at once."""
    model = AutoModelForCausalLM.from_pretrained(folder, attn_implementation="eager")
    batch, vocab = fixed_batch(), VocabShard(0, VOCAB)
    logits = model(input_ids=batch.input_ids, use_cache=False).logits
    logp, _ = next_token_scores(logits.detach(), batch, vocab, with_entropy=False)
    output = OBJECTIVE(logits, batch, vocab)
    assert output.token_weights is not None
    output.loss.backward()
    outside = torch.arange(logp.shape[1]) >= batch.input_lengths[:, None]
    gradients = {n: p.grad for n, p in model.named_parameters() if p.grad is not None}
    report = {
        "loss": float(output.loss.detach()),
        "token_weights": output.token_weights.masked_fill(outside, 1.0),
    }
    return report, gradients, logp.masked_fill(outside, 0.0)


@pytest.mark.parametrize("model", ["tied", "untied"])
def test_one_rank_is_hugging_faces_model(model: str, folder: Path, results: Results) -> None:
    """Log-probabilities, loss, OTS weights, and the gradient: so nothing in Megatron divided it by anything."""
    report, gradients, logp = hugging_face(folder / model)
    ours = results["gradient", model, ONE, SPLITS[0]]
    torch.testing.assert_close(results["logprobs", model, ONE]["before"], logp, rtol=1e-4, atol=1e-4)
    torch.testing.assert_close(ours["token_weights"], report["token_weights"], rtol=1e-4, atol=1e-4)
    assert ours["loss"] == pytest.approx(report["loss"], rel=1e-5, abs=1e-6)
    assert_close(ours["gradients"], gradients, 1e-4)


def test_the_batch_is_worth_comparing() -> None:
    """OTS weights that differ from row to row, clipped ratios, and both kinds of rows: nothing is trivially equal."""
    batch = fixed_batch()
    assert set(batch.constructed.tolist()) == {True, False}
    assert len(set(batch.input_lengths.tolist())) > 4


@pytest.mark.parametrize("tokens", SPLITS)
@pytest.mark.parametrize("layout", LAYOUTS)
def test_the_gradient_is_the_same_for_every_layout_and_micro_batch(
    layout: Layout, tokens: int, results: Results
) -> None:
    reference, other = results["gradient", "tied", ONE, SPLITS[0]], results["gradient", "tied", layout, tokens]
    assert_close(other["gradients"], reference["gradients"], 1e-5)
    for name in ("loss", "norm", "lr"):
        assert other[name] == pytest.approx(reference[name], rel=1e-5, abs=1e-7)
    assert other["metrics"] == pytest.approx(reference["metrics"], rel=1e-4, abs=1e-6)
    assert 0 < other["metrics"]["clip_fraction"] < 1
    torch.testing.assert_close(other["token_weights"], reference["token_weights"], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_an_untied_output_layer_too(layout: Layout, results: Results) -> None:
    reference, other = (results["gradient", "untied", x, SPLITS[0]] for x in (ONE, layout))
    assert "lm_head.weight" in reference["gradients"]
    assert_close(other["gradients"], reference["gradients"], 1e-5)
    assert other["norm"] == pytest.approx(reference["norm"], rel=1e-5)


@pytest.mark.parametrize("model", ["tied", "untied"])
@pytest.mark.parametrize("layout", LAYOUTS)
def test_log_probabilities_come_back_in_place(layout: Layout, model: str, results: Results) -> None:
    reference, other = results["logprobs", model, ONE], results["logprobs", model, layout]
    for when in ("before", "after", "reference"):
        torch.testing.assert_close(other[when], reference[when], rtol=1e-4, atol=2e-4)
    assert torch.equal(other["reference"], other["before"])  # frozen while the policy moved
    assert float((other["after"] - other["before"]).abs().max()) > 1e-3
    lengths = fixed_batch().input_lengths
    outside = torch.arange(other["before"].shape[1]) >= lengths[:, None]
    assert torch.all(other["before"][outside] == 0) and torch.all(other["before"][:, 0] == 0)


@pytest.mark.parametrize("layout", FAMILY_LAYOUTS)
@pytest.mark.parametrize("family", FAMILIES)
def test_every_family_has_hugging_faces_logits_and_gradient(
    family: str, layout: Layout, folder: Path, results: Results
) -> None:
    """Biases, norms of heads or none, scaled positions, sharded files; and what was read is exported again."""
    batch = fixed_batch()
    with torch.no_grad():
        model = AutoModelForCausalLM.from_pretrained(folder / family, attn_implementation="eager")
        logits = model(input_ids=batch.input_ids, use_cache=False).logits
    inside = torch.arange(batch.input_ids.shape[1]) < batch.input_lengths[:, None]
    ours = results["logits", family, layout]
    torch.testing.assert_close(ours[inside], logits[inside], rtol=1e-5, atol=1e-5)

    files = sorted((folder / family).glob("*.safetensors"))
    assert len(files) > 1
    stored = {name: tensor for file in files for name, tensor in load_file(file).items()}
    exported = results["weights", family, layout]
    assert exported.keys() == stored.keys()
    assert all(torch.equal(exported[name], tensor) for name, tensor in stored.items())

    report, gradients, _ = hugging_face(folder / family)
    trained = results["gradient", family, layout, SPLITS[0]]
    assert trained["loss"] == pytest.approx(report["loss"], rel=1e-5, abs=1e-6)
    assert_close(trained["gradients"], gradients, 1e-4)


@pytest.mark.parametrize("layout", [LAYOUTS[0], LAYOUTS[3]])
def test_a_resumed_run_is_bitwise_the_undisturbed_one(layout: Layout, results: Results) -> None:
    run = results["checkpoint", layout, layout]
    for kind, tensors in run["continued"].items():
        assert all(torch.equal(run["resumed"][kind][name], t) for name, t in tensors.items()), kind


def test_a_checkpoint_travels_between_layouts(results: Results) -> None:
    run = results["checkpoint", LAYOUTS[1], LAYOUTS[2]]
    for kind, tensors in run["saved"].items():
        assert all(torch.equal(run["loaded"][kind][name], t) for name, t in tensors.items()), kind
    assert_close(run["resumed"]["weights"], run["continued"]["weights"], 1e-5)


def test_a_checkpoint_is_plain_safetensors_under_hugging_face_names(folder: Path, results: Results) -> None:
    saved = next(folder.glob("checkpoint-2-1-1*"))
    original = load_file(folder / "tied" / "model.safetensors")
    weights, moments = load_file(saved / "model.safetensors"), load_file(saved / "optimizer.safetensors")
    assert {n: t.shape for n, t in weights.items()} == {n: t.shape for n, t in original.items()}
    assert moments.keys() == {f"{kind}.{n}" for kind in ("exp_avg", "exp_avg_sq") for n in weights}
    assert json.loads((saved / "optimizer.json").read_text())["steps_done"] == 2


def test_a_gradient_that_is_not_finite_changes_nothing_on_any_rank(results: Results) -> None:
    report = results["not finite"]
    assert len(report["messages"]) == 2
    assert all("update 1: the loss is nan" in message for message in report["messages"])
    assert all(torch.equal(report["after"][n], t) for n, t in report["before"].items())
    assert any(not torch.equal(report["next"][n], t) for n, t in report["before"].items())  # the next one counts
