"""NeMo-RL's `loss_fn` section: what our loss does with it, and what it refuses; the rules behind it, by hand."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch

from nemo_tapo.equations.importance import ImportanceRules, importance_weights
from nemo_tapo.equations.surrogate import KLRules, kl_penalty
from nemo_tapo.runtime.nemo_rl.loss_setup import read_loss_settings, reduce_worker_metrics

TRUNCATED = {"use_importance_sampling_correction": True, "truncated_importance_sampling_ratio": 2.0}


def test_defaults_are_nemo_rls() -> None:
    settings = read_loss_settings({})
    assert settings.kl == KLRules(sampling_gradient=True, input_clamp=20.0, output_clamp=10.0)
    assert settings.importance is None


def test_what_is_set_is_taken() -> None:
    settings = read_loss_settings(
        TRUNCATED
        | {"kl_input_clamp_value": None, "kl_output_clamp_value": 5.0, "truncated_importance_sampling_type": "tis"}
    )
    assert settings.kl == KLRules(True, None, 5.0)
    assert settings.importance == ImportanceRules("tis", 0.0, 2.0)
    assert read_loss_settings({"use_importance_sampling_correction": True}).importance == ImportanceRules()
    by_row = {"sequence_level_importance_ratios": True, "use_importance_sampling_correction": True}
    assert read_loss_settings(by_row).importance == ImportanceRules(sequence=True)


@pytest.mark.parametrize(
    ("loss_fn", "named"),
    [
        ({"disable_ppo_ratio": True}, "disable_ppo_ratio = True"),
        (
            TRUNCATED
            | {"truncated_importance_sampling_type": "seq-mask-tis", "truncated_importance_sampling_ratio_min": 0.5}
            | {"sequence_level_importance_ratios": True},
            "corrects by token",
        ),
        ({"use_kl_in_reward": True}, "use_kl_in_reward"),
        ({"use_on_policy_kl_approximation": True}, "use_on_policy_kl_approximation"),
        ({"positive_example_nll_weight": 0.1}, "positive_example_nll_weight = 0.1"),
        ({"reference_policy_kl_type": "k1", "reference_policy_kl_penalty": 0.1}, "reference_policy_kl_type = k1"),
        ({"truncated_importance_sampling_ratio": 2.0}, "without truncated_importance_sampling_type"),
        (TRUNCATED | {"truncated_importance_sampling_type": "tsi"}, "tsi is none of tis"),
        ({"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio": 2.0}, "needs use_impor"),
        (
            TRUNCATED | {"truncated_importance_sampling_type": "icepop"},
            "icepop needs truncated_",
        ),
        (
            TRUNCATED | {"truncated_importance_sampling_type": "tis", "truncated_importance_sampling_ratio_min": 3.0},
            "ratio_min = 3.0 is above",
        ),
        (
            {"use_importance_sampling_correction": True, "truncated_importance_sampling_type": "tis"},
            "needs a positive truncated_importance_sampling_ratio",
        ),
    ],
)
def test_another_loss_is_refused_by_name(loss_fn: dict[str, Any], named: str) -> None:
    with pytest.raises(ValueError, match="loss_fn") as raised:
        read_loss_settings(loss_fn)
    assert named in str(raised.value)


def test_every_fault_is_told_at_once() -> None:
    with pytest.raises(ValueError, match="loss_fn") as raised:
        read_loss_settings({"disable_ppo_ratio": True, "use_kl_in_reward": True})
    assert len(str(raised.value).splitlines()) == 2


def test_neutral_values_are_no_fault() -> None:
    read_loss_settings({"disable_ppo_ratio": False, "positive_example_nll_weight": 0, "ratio_clip_min": 0.1})
    read_loss_settings({"reference_policy_kl_type": "k1", "reference_policy_kl_penalty": 0})


def test_worker_metrics_add_up() -> None:
    """Two micro-batches of two ranks: 1 + 2 + 3 over 4 + 0 + 2, and NeMo-RL's own entries left out."""
    reported = {"loss": [0.5, 0.25], "x:sum": [1.0, 2, 3], "x:count": [4.0, 0, 2], "lr": [1e-6] * 2, "wd": [0.1] * 2}
    assert reduce_worker_metrics(reported) == {"loss": 0.75, "x": 1.0}


def slope(rules: KLRules, logp: float, reference: float) -> tuple[float, float]:
    """(penalty, its derivative by logp)."""
    leaf = torch.tensor(logp, dtype=torch.float64, requires_grad=True)
    value = kl_penalty(leaf, torch.tensor(reference, dtype=torch.float64), rules)
    value.backward()
    assert leaf.grad is not None
    return float(value.detach()), float(leaf.grad)


def test_the_penaltys_gradients() -> None:
    """At log pi = -1, log pi_ref = -1.5: d = -0.5. k3' = 1 - e^d; with the sampling part log pi - log pi_ref = 0.5."""
    k3 = math.exp(-0.5) - 1 + 0.5
    assert slope(KLRules(), -1.0, -1.5) == pytest.approx((k3, 1 - math.exp(-0.5)))
    assert slope(KLRules(sampling_gradient=True), -1.0, -1.5) == pytest.approx((k3, 0.5))
    assert slope(KLRules(True, input_clamp=0.2), -1.0, -1.5) == pytest.approx((math.exp(-0.2) - 0.8, 0.0))
    assert slope(KLRules(True, output_clamp=0.05), -1.0, -1.5) == pytest.approx((0.05, 0.0))


def weights(rules: ImportanceRules) -> tuple[list[list[float]], list[list[float]]]:
    """Two rows of pi_old / pi_engine = (2, 0.5, 8) and (1.1, 1.0, -), the last token outside the mask."""
    quotients = torch.tensor([[2.0, 0.5, 8.0], [1.1, 1.0, 50.0]], dtype=torch.float64)
    mask = torch.tensor([[1.0, 1, 1], [1, 1, 0]])
    found, outside = importance_weights(quotients.log(), torch.zeros(2, 3, dtype=torch.float64), mask, rules)
    return [row[: int(m.sum())] for row, m in zip(found.tolist(), mask, strict=True)], (outside * mask).tolist()


def test_importance_weights_by_hand() -> None:
    assert weights(ImportanceRules())[0] == [pytest.approx([2, 0.5, 8]), pytest.approx([1.1, 1])]
    assert weights(ImportanceRules("tis", 0.9, 4))[0] == [pytest.approx([2, 0.9, 4]), pytest.approx([1.1, 1])]
    kept, outside = weights(ImportanceRules("icepop", 0.9, 4))
    assert kept == [pytest.approx([2, 0, 0]), pytest.approx([1.1, 1])] and outside == [[0, 1, 1], [0, 0, 0]]


def test_a_row_is_masked_by_its_geometric_mean() -> None:
    """(2 * 0.5 * 8)^(1/3) = 2 and sqrt(1.1) = 1.049: the first lies above 1.5, its neighbours' tokens do not matter."""
    assert weights(ImportanceRules("seq-mask-tis", 0.9, 1.5))[0] == [[0, 0, 0], pytest.approx([1.1, 1])]
    assert weights(ImportanceRules("seq-mask-tis", 0.9, 2.5))[0] == [
        pytest.approx([2, 0.5, 8]),
        pytest.approx([1.1, 1]),
    ]
