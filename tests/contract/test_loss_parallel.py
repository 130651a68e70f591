"""The loss under NeMo-RL's packing, tensor, context and data parallelism against the float64 reference.

What runs between logits and gradient is NeMo-RL's and Megatron's own code; see loss_ranks.py.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from nemo_tapo.runtime.nemo_rl.loss_setup import reduce_worker_metrics
from tests.contract import loss_ranks as setting
from tests.distributed.launch import run_ranks
from tests.helpers import reference

pytestmark = pytest.mark.nemo_rl
Results = dict[tuple[int, int, bool, str], tuple[Tensor, dict[str, list[float]]]]
CASES = [(1, 1, True), (1, 1, False), (2, 1, True), (2, 1, False), (1, 2, True), (2, 2, True)]  # TP, CP, packed


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    folder: Path = tmp_path_factory.mktemp("loss")
    run_ranks("tests.contract.loss_ranks", 4, folder, timeout=300)
    loaded: Results = torch.load(folder / "results.pt")
    return loaded


@pytest.fixture(scope="module", params=setting.OBJECTIVES)
def ratio(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture(scope="module")
def expected(ratio: str) -> dict[str, Any]:
    """Loss, gradient of the output layer and means, from tests/reference.py in float64."""
    batch = setting.fixed_batch()
    embedding, output = (t.double() for t in setting.model())
    output.requires_grad_()
    rows, logits = [], []
    for i, length in enumerate(setting.LENGTHS):
        ids = batch.input_ids[i, :length]
        z = embedding[ids[2:-1]] @ output.t() / setting.TEMPERATURE  # three prompt tokens: the third predicts the first
        logits.append(z)
        values = [t[i, 3:length].tolist() for t in (batch.prev_logprobs, batch.reference_policy_logprobs)]
        rows.append(
            reference.Response(
                z.tolist(), ids[3:].tolist(), float(batch.advantages[i]), bool(batch.constructed[i]), *values
            )
        )
    o = setting.OBJECTIVE
    settings = reference.Settings(
        setting.LAMBDA, o.suppression, o.w_min, o.w_max, o.clip_low, o.clip_high, o.kl_coef, token_mean=False,
        sequence=ratio == "sequence",
    )  # fmt: skip
    loss = reference.differentiable_loss(rows, logits, settings)
    loss.backward()
    tokens = [(r, t) for r in rows for t in range(len(r.tokens))]
    weights = [reference.ots_weight(r.logits[t], r.tokens[t], o.w_min, o.w_max) for r, t in tokens if r.constructed]
    entropies = [reference.entropy(r.logits[t]) for r, t in tokens if not r.constructed]
    return {
        "loss": reference.tapo_loss(rows, settings),
        "gradient": output.grad,
        "tapo/ots_weight_mean": sum(weights) / len(weights),
        "entropy": sum(entropies) / len(entropies),
    }


@pytest.mark.parametrize(("tp", "cp", "packed"), CASES)
def test_the_gradient_is_the_reference(
    tp: int, cp: int, packed: bool, ratio: str, results: Results, expected: dict[str, Any]
) -> None:
    gradient, _ = results[tp, cp, packed, ratio]
    torch.testing.assert_close(gradient.double(), expected["gradient"], rtol=1e-4, atol=2e-6)


@pytest.mark.parametrize(("tp", "cp", "packed"), CASES)
def test_the_metrics_are_the_reference(
    tp: int, cp: int, packed: bool, ratio: str, results: Results, expected: dict[str, Any]
) -> None:
    metrics = reduce_worker_metrics(results[tp, cp, packed, ratio][1])
    for name in ("loss", "tapo/ots_weight_mean", "entropy"):
        assert metrics[name] == pytest.approx(expected[name], rel=1e-5), name
    assert metrics["num_valid_samples"] == 7
    assert metrics["loss/original"] + metrics["loss/reflection"] == pytest.approx(metrics["loss"], abs=1e-6)
    assert metrics["gen_kl_error"] == pytest.approx(torch.expm1(torch.tensor(-0.01)).item() + 0.01, rel=2e-2)
    assert metrics["token_mult_prob_error"] == pytest.approx(torch.tensor(0.01).exp().item(), rel=1e-4)


def test_the_padding_columns_of_the_vocabulary_count(expected: dict[str, Any]) -> None:
    """The model gives them mass, so that a loss without them would not pass the tests above."""
    embedding, output = setting.model()
    probabilities = torch.softmax(embedding @ output.t() / setting.TEMPERATURE, -1)
    assert float(probabilities[:, setting.VOCAB :].sum(-1).mean()) > 0.01
    assert float(expected["gradient"][setting.VOCAB :].abs().max()) > 1e-3
