"""Estimates of `nemo-tapo plan`: sizes against published ones, memory by hand, times against published steps."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_tapo.planning import memory, plan_text, step_time
from nemo_tapo.planning.cluster_setup import Assumptions, ClusterSetup, GiB, update_rows
from nemo_tapo.planning.model_shape import KNOWN_SHAPES, ModelShape, get_model_shape

ASSUMED = Assumptions()
SETUP = ClusterSetup(
    nodes=1, gpus_per_node=8, train_gpus=8, engine_gpus=8, megatron=True, tp=2, pp=1, cp=1, ep=1, etp=1,
    sequence_parallel=True, recompute=frozenset(), micro_batch_tokens=1000, logit_chunk=100, fp32_logits=False,
    fp32_gradients=False, distributed_optimizer=True, precision_aware=True, offloaded_optimizer=0.0, colocated=True,
    engine_tp=1, engine_pp=1, engine_memory=0.6, reference=False, queries=32, samples=8, most_constructed=128,
    deferred=False, lag=0, update_rows=384, updates=1, max_response=8192, max_synthesis=8192, max_row=10240,
    max_model_len=27136, steps=500, save_every=25, kept=2, saves_optimizer=True,
)  # fmt: skip


@pytest.mark.parametrize(
    ("name", "billions", "without_embedding"),
    [  # the model cards, https://huggingface.co/Qwen
        ("Qwen3-0.6B", 0.6, 0.44),
        ("Qwen3-1.7B", 1.7, 1.4),
        ("Qwen3-4B", 4.0, 3.6),
        ("Qwen3-8B", 8.2, 6.95),
        ("Qwen3-14B", 14.8, 13.2),
        ("Qwen3-32B", 32.8, 31.2),
        ("Qwen3-30B-A3B", 30.5, 29.9),
    ],
)
def test_parameters_are_the_published_ones(name: str, billions: float, without_embedding: float) -> None:
    shape = KNOWN_SHAPES[name]
    assert shape.parameters / 1e9 == pytest.approx(billions, abs=0.051)
    rest = shape.parameters - shape.embedding_parameters * (1 if shape.tied else 2)
    assert rest / 1e9 == pytest.approx(without_embedding, abs=0.051)


@pytest.mark.parametrize(
    ("name", "billions"),
    [  # the model cards of Qwen2.5 and Llama 3, which round less carefully than Qwen3's
        ("Qwen2.5-0.5B", 0.49),
        ("Qwen2.5-1.5B", 1.54),
        ("Qwen2.5-3B", 3.09),
        ("Qwen2.5-7B", 7.61),
        ("Qwen2.5-14B", 14.7),
        ("Qwen2.5-32B", 32.5),
        ("Qwen2.5-72B", 72.7),
        ("Llama-3.2-1B", 1.23),
        ("Llama-3.2-3B", 3.21),
        ("Llama-3.1-8B", 8.03),
        ("Llama-3.1-70B", 70.6),
    ],
)
def test_other_families_have_their_published_size(name: str, billions: float) -> None:
    assert KNOWN_SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_active_parameters_of_the_mixture() -> None:
    assert KNOWN_SHAPES["Qwen3-30B-A3B"].active_parameters / 1e9 == pytest.approx(3.3, abs=0.06)  # its model card
    assert KNOWN_SHAPES["Qwen3-8B"].active_parameters == KNOWN_SHAPES["Qwen3-8B"].parameters


def test_parameters_of_a_real_model_directory() -> None:
    """The committed tiny model: its safetensors header is counted independently."""
    folder = Path(__file__).parents[3] / "assets" / "tiny-base"
    raw = (folder / "model.safetensors").read_bytes()
    header = json.loads(raw[8 : 8 + int.from_bytes(raw[:8], "little")])
    counted = 0
    for name, tensor in header.items():
        if name != "__metadata__":
            size = 1
            for dimension in tensor["shape"]:
                size *= dimension
            counted += size
    assert get_model_shape(str(folder)).parameters == counted


def test_unknown_models_are_a_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"model acme/Big is not known.*Qwen3-8B"):
        get_model_shape("acme/Big")
    (tmp_path / "config.json").write_text('{"model_type": "mamba"}')
    with pytest.raises(ValueError, match="no estimate is made for model_type 'mamba'"):
        get_model_shape(str(tmp_path))
    assert get_model_shape("meta-llama/Llama-3.1-8B-Instruct") == KNOWN_SHAPES["Llama-3.1-8B"]
    assert get_model_shape("Qwen/Qwen3-8B-Base") == KNOWN_SHAPES["Qwen3-8B"]


def test_training_memory_by_hand() -> None:
    """A model small enough to be counted on paper; TP 2, DP 4."""
    shape = ModelShape(layers=4, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=100, qk_norm=False)
    # attention 8*8 + 2*8*4 + 8*8 = 192, ffn 3*8*16 = 384, norms 16 a layer; two vocabulary matrices of 800
    rank = (4 * (192 + 384) + 2 * 800) / 2 + 4 * 16
    assert memory.count_rank_parameters(shape, SETUP, 0).total == rank == 2016
    phase = memory.training_phase(shape, SETUP, ASSUMED)
    assert phase.classes["weights (bf16)"] == 2 * 2016
    assert phase.classes["gradients"] == 2 * 2016
    assert phase.classes["optimizer (fp32 master, two moments)"] == 12 * 2016 / 4
    # a token and layer, sequence parallel, bf16: norms 4*8/2, q k v and the attention's output (8+8+8)/2, ffn 3*16/2
    assert phase.classes["activations"] == 1000 * 4 * 2 * (16 + 12 + 24)
    assert phase.classes["logits and their gradient"] == 1000 * 50 * 4
    assert phase.classes["log-probability and entropy chunk"] == 100 * 50 * 4 * 3
    assert "gradients' fp32 copy" not in phase.classes


@pytest.mark.parametrize(
    ("change", "name", "factor"),
    [
        ({"distributed_optimizer": False}, "optimizer (fp32 master, two moments)", 4),
        ({"fp32_gradients": True}, "gradients", 2),
        ({"fp32_logits": True}, "logits and their gradient", 2.5),
        ({"offloaded_optimizer": 0.75}, "optimizer (fp32 master, two moments)", 0.25),
        ({"cp": 2}, "activations", 0.5),
        ({"cp": 2}, "optimizer (fp32 master, two moments)", 1),  # CP ranks share it like DP ranks
        ({"pp": 2}, "activations", 1),  # half the layers, two micro-batches in flight
        ({"micro_batch_tokens": 2000}, "logits and their gradient", 2),
    ],
)
def test_each_setting_moves_its_class(change: dict[str, object], name: str, factor: float) -> None:
    shape = KNOWN_SHAPES["Qwen3-8B"]
    before = (
        _stage_zero(shape, SETUP)[name]
        if "pp" in change
        else memory.training_phase(shape, SETUP, ASSUMED).classes[name]
    )
    changed = replace(SETUP, **change)  # type: ignore[arg-type]
    after = (
        _stage_zero(shape, changed)[name]
        if "pp" in change
        else memory.training_phase(shape, changed, ASSUMED).classes[name]
    )
    assert after / before == pytest.approx(factor)


def _stage_zero(shape: ModelShape, setup: ClusterSetup) -> dict[str, float]:
    return memory.stage_training_phase(shape, setup, ASSUMED, 0).classes


def test_full_recomputation_keeps_the_layers_inputs() -> None:
    shape = KNOWN_SHAPES["Qwen3-8B"]
    kept = memory.activation_bytes(shape, replace(SETUP, recompute=frozenset({"full"})))
    one_layer = memory.layer_activation_bytes(shape, SETUP) * 1000
    assert kept == pytest.approx(1000 * 36 * 2 * 4096 / 2 + one_layer)


def test_experts_are_divided_by_expert_parallelism() -> None:
    shape = KNOWN_SHAPES["Qwen3-30B-A3B"]
    alone, parallel = (memory.count_rank_parameters(shape, replace(SETUP, ep=ep), 0) for ep in (1, 8))
    assert alone.expert / parallel.expert == 8
    assert alone.dense == parallel.dense
    assert (alone.expert_ranks, parallel.expert_ranks) == (8, 1)


def test_the_class_that_breaks_a_plan_is_named() -> None:
    big = replace(SETUP, tp=8, engine_tp=4, micro_batch_tokens=10240)
    fault = list(plan_text.find_faults(KNOWN_SHAPES["Qwen3-32B"], big, ASSUMED))
    assert len(fault) == 1
    assert fault[0].startswith("training needs about")
    assert "the largest part is optimizer (fp32 master, two moments) with 45.8." in fault[0]  # 12 bytes x 32.76e9 / 8
    assert not list(
        plan_text.find_faults(KNOWN_SHAPES["Qwen3-32B"], replace(big, nodes=8, train_gpus=64, engine_gpus=64), ASSUMED)
    )


def test_an_engine_without_room_for_one_completion_is_refused() -> None:
    faults = list(plan_text.find_faults(KNOWN_SHAPES["Qwen3-32B"], replace(SETUP, tp=8), ASSUMED))
    assert any("the KV cache holds" in fault and "engine's weights take 61.0 GiB" in fault for fault in faults)


def test_kv_cache_by_hand() -> None:
    """Qwen3-8B: 2 x 36 layers x 8 heads x 128 x 2 bytes = 147,456 bytes a token."""
    shape = KNOWN_SHAPES["Qwen3-8B"]
    assert shape.kv_bytes_per_token == 147_456
    room = 0.6 * 79.1 * GiB - 2 * 8_190_735_360 - 4 * GiB
    assert memory.kv_cache_tokens(shape, SETUP, ASSUMED) == int(room / 147_456)


def test_checkpoint_and_host_by_hand() -> None:
    shape = KNOWN_SHAPES["Qwen3-8B"]
    assert memory.checkpoint_bytes(shape, SETUP) == 14 * 8_190_735_360
    assert memory.checkpoint_bytes(shape, replace(SETUP, saves_optimizer=False)) == 2 * 8_190_735_360
    host = memory.host_bytes(shape, replace(SETUP, tp=1))
    assert host["engine's weights, put aside"] == 8 * 2 * 8_190_735_360
    # each of 8 ranks its weights, and the node together one optimizer
    assert host["policy's weights and optimizer, put aside"] == pytest.approx((8 * 2 + 12) * 8_190_735_360, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "rows"),
    [
        ((32, 8, 4, 1, 8), 384),  # 32 x (8 + 4)
        ((32, 8, 0, 1, 8), 256),
        ((32, 8, 4, 1, 5), 385),  # filled up to a multiple of DP
        ((32, 8, 4, 4, 8), 96),
        ((10, 8, 4, 4, 1), 36),  # a part has at most ceil(10 / 4) = 3 queries
    ],
)
def test_rows_of_an_update(arguments: tuple[int, int, int, int, int], rows: int) -> None:
    assert update_rows(*arguments) == rows


LLAMA_8B = ModelShape(32, 4096, 32, 8, 128, 14336, 128256, qk_norm=False)
BENCHMARK = replace(
    SETUP, queries=64, samples=32, most_constructed=0, max_response=4096, max_row=4096, micro_batch_tokens=4096,
    reference=True, updates=4,
)  # fmt: skip
SEPARATE = replace(BENCHMARK, colocated=False, engine_memory=0.8, lag=1)  # as their recipes have it


@pytest.mark.parametrize(
    ("shape", "setup", "mean", "seconds"),
    [  # NeMo-RL's published GRPO steps on H100 (docs/about/performance-summary.md of v0.5 and v0.6), 2,048 rollouts
        (LLAMA_8B, replace(BENCHMARK, nodes=2, train_gpus=16, engine_gpus=16, tp=1, pp=2), 1060, 92.8),
        (
            KNOWN_SHAPES["Qwen3-30B-A3B"],
            replace(BENCHMARK, nodes=4, train_gpus=32, engine_gpus=32, tp=1, ep=8, engine_tp=2),
            3203,
            192,
        ),
        # one step off: half of the GPUs for the policy, half for the engines
        (LLAMA_8B, replace(SEPARATE, nodes=2, train_gpus=8, engine_gpus=8, tp=1), 1123, 64.8),
        (
            KNOWN_SHAPES["Qwen3-30B-A3B"],
            replace(SEPARATE, nodes=4, train_gpus=16, engine_gpus=16, tp=1, pp=2, ep=8, engine_tp=2),
            3201,
            152,
        ),
    ],
    ids=["Llama-3.1-8B", "Qwen3-30B-A3B", "Llama-3.1-8B one step off", "Qwen3-30B-A3B one step off"],
)
def test_times_are_of_the_published_size(shape: ModelShape, setup: ClusterSetup, mean: int, seconds: float) -> None:
    parts = step_time.step_seconds(shape, setup, Assumptions(response_share=mean / 4096))
    estimate = step_time.total_seconds(parts, setup.lag)
    assert seconds / 1.5 < estimate < seconds * 1.5


def test_synthesis_costs_time_only_when_something_is_constructed() -> None:
    shape = KNOWN_SHAPES["Qwen3-8B"]
    assert "synthesis" in step_time.step_seconds(shape, SETUP, ASSUMED)
    assert "synthesis" not in step_time.step_seconds(shape, replace(SETUP, most_constructed=0), ASSUMED)


def test_with_a_lag_the_longer_of_sampling_and_training_counts() -> None:
    """8B: the update of a node hides behind the rollouts; the update of a single GPU is what is waited for."""
    own = {"colocated": False, "train_gpus": 8, "engine_gpus": 24}
    shape, nodes = KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, **own, deferred=True, updates=2, lag=1)
    single = replace(nodes, train_gpus=1, tp=1)
    for setup, hidden in (
        (nodes, {"update", "old log-probabilities"}),
        (single, {"rollouts", "synthesis"}),
    ):
        parts = step_time.step_seconds(shape, setup, ASSUMED)
        total = sum(seconds for name, seconds in parts.items() if name not in hidden)
        assert step_time.total_seconds(parts, setup.lag) == pytest.approx(total)
        lines = "\n".join(plan_text.describe_time(shape, setup, ASSUMED))
        assert f"about {total:.0f} s" in lines and "is sampled beside the update" in lines
    assert "beside the update" not in "\n".join(plan_text.describe_time(shape, replace(nodes, lag=0), ASSUMED))


def test_deferred_synthesis_hides_behind_the_rollouts() -> None:
    """8B on 4 x 8 GPUs, bound by latency: twice GRPO's step with synthesis after the rollouts, within 1.10 beside."""
    shape, setup = KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, nodes=4, train_gpus=32, engine_gpus=32)
    grpo, after, beside = (
        sum(step_time.step_seconds(shape, each, ASSUMED).values())
        for each in (replace(setup, most_constructed=0), setup, replace(setup, deferred=True))
    )
    assert after / grpo > 1.7
    assert 1.0 < beside / grpo < 1.10
