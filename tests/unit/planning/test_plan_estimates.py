"""Estimates of `nemo-tapo plan`: sizes against published ones, memory by hand, times against published steps."""

from __future__ import annotations

import json
import math
import random
from dataclasses import replace
from pathlib import Path

import pytest

from nemo_tapo.planning import decoding, memory, plan_text, step_time
from nemo_tapo.planning.cluster_setup import Assumptions, ClusterSetup, GiB, update_rows
from nemo_tapo.planning.decoding import Completions, Stage
from nemo_tapo.planning.lengths import Lengths
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
        ("Qwen3-235B-A22B", 235),
        ("DeepSeek-V3", 671),
    ],
)
def test_other_families_have_their_published_size(name: str, billions: float) -> None:
    assert KNOWN_SHAPES[name].parameters / 1e9 == pytest.approx(billions, rel=0.01)


def test_active_parameters_of_the_mixture() -> None:
    for name, billions in (("Qwen3-30B-A3B", 3.3), ("Qwen3-235B-A22B", 22), ("DeepSeek-V3", 37)):  # their model cards
        assert KNOWN_SHAPES[name].active_parameters / 1e9 == pytest.approx(billions, rel=0.02)
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
    assert phase.classes["second gradient of packed logits"] == 1000 * 50 * 2
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


def test_without_packing_the_logits_have_one_gradient() -> None:
    phase = memory.training_phase(KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, packed=False), ASSUMED)
    assert "second gradient of packed logits" not in phase.classes


@pytest.mark.parametrize(("tp", "pp", "gib"), [(1, 1, 2), (2, 1, 7), (1, 2, 7)])
def test_a_sleeping_engine_of_several_gpus_keeps_more(tp: int, pp: int, gib: float) -> None:
    """NeMo-RL issue 223: 0.8 GiB with TP 1, 7.2 GiB with TP 2; also while weights are handed over."""
    for phase in memory.phases(KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, engine_tp=tp, engine_pp=pp), ASSUMED)[1:]:
        assert phase.classes["sleeping engine"] == gib * GiB
    own = memory.training_phase(KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, engine_tp=tp), Assumptions(asleep_gib=3))
    assert own.classes["sleeping engine"] == 3 * GiB


def test_fp32_is_counted_and_named_as_such() -> None:
    """Weights and gradients of 4 bytes, two moments of 4 and no master weight; the engine as its own precision says."""
    shape, setup = KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, policy_bytes=4, engine_bytes=4, cache_bytes=4)
    half, full = (memory.training_phase(shape, each, ASSUMED).classes for each in (SETUP, setup))
    assert full["weights (fp32)"] == full["gradients"] == 2 * half["weights (bf16)"]
    assert full["optimizer (two fp32 moments)"] / half["optimizer (fp32 master, two moments)"] == pytest.approx(2 / 3)
    assert full["activations"] == 2 * half["activations"]
    assert memory.engine_weight_bytes(shape, setup) == 4 * shape.parameters
    assert memory.checkpoint_bytes(shape, setup) == 12 * shape.parameters
    text = "\n".join(plan_text.describe_plan(shape, setup, ASSUMED))
    assert "weights (fp32)" in text and "bf16" not in text
    assert memory.engine_weight_bytes(shape, replace(SETUP, engine_bytes=1)) == shape.parameters


def test_the_conversion_has_a_peak_of_its_own_on_the_host() -> None:
    """TP 2: eight ranks write half the model each, the files are read, and eight engines' weights lie beside them."""
    shape = KNOWN_SHAPES["Qwen3-8B"]
    peak = memory.conversion_host_bytes(shape, SETUP)
    assert sum(peak.values()) == pytest.approx((8 * 2 / 2 + 2 + 8 * 2) * shape.parameters, rel=1e-3)
    assert "engine's weights, put aside" not in memory.conversion_host_bytes(shape, replace(SETUP, colocated=False))
    small = Assumptions(host_memory_gib=190)
    told = list(plan_text.find_faults(shape, SETUP, small))
    assert [fault.split(",")[0] for fault in told] == ["in the steps", "while the model is converted"]


def test_a_cache_is_not_divided_further_than_its_heads() -> None:
    """Qwen3-30B-A3B has 4 key-value heads: an engine of TP 8 has each of them twice."""
    shape = KNOWN_SHAPES["Qwen3-30B-A3B"]
    four, eight = (replace(SETUP, engine_tp=tp) for tp in (4, 8))
    room = memory.generation_phase(shape, eight, ASSUMED).classes["KV cache"]
    assert memory.kv_cache_tokens(shape, eight, ASSUMED) == int(room * 4 / shape.kv_bytes_per_token)
    assert memory.kv_cache_tokens(shape, four, ASSUMED) < memory.kv_cache_tokens(shape, eight, ASSUMED)


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


def sampling(setup: ClusterSetup, **assumed: object) -> dict[str, float]:
    """The seconds of what the engines do for Qwen3-8B."""
    return step_time.estimate_sampling(KNOWN_SHAPES["Qwen3-8B"], setup, Assumptions.model_validate(assumed))


def test_the_parts_of_a_step_are_added_or_overlapped() -> None:
    """A run one step ahead takes the longer of the two; the hand-over of weights stops both."""
    estimate = step_time.estimate_step(KNOWN_SHAPES["Qwen3-8B"], SETUP, ASSUMED)
    assert estimate.total == pytest.approx(sum(estimate.parts.values()))
    ahead = step_time.estimate_step(KNOWN_SHAPES["Qwen3-8B"], replace(SETUP, lag=1), ASSUMED)
    longer = max(sum(ahead.engines.values()), sum(ahead.policy.values()))
    assert ahead.total == pytest.approx(longer + sum(ahead.both.values()))


def test_an_iteration_by_hand() -> None:
    """Qwen3-8B, TP 1: 16.38 GB of weights, 10 completions of 1,000 tokens at 147,456 bytes, 60% of 3.35 TB/s, 4 ms."""
    shape = KNOWN_SHAPES["Qwen3-8B"]
    by_hand = (2 * 8_190_735_360 + 10 * 1000 * 147_456) / (0.6 * 3.35e12) + 0.004
    assert decoding.iteration_seconds(shape, SETUP, ASSUMED, 10, 1000) == pytest.approx(by_hand)
    # TP 4 divides both and waits 2 x 36 times 10 us; on nodes of 2 GPUs 90 us
    for gpus_per_node, wait in ((8, 10e-6), (2, 90e-6)):
        setup = replace(SETUP, engine_tp=4, gpus_per_node=gpus_per_node)
        shared = (by_hand - 0.004) / 4 + 2 * 36 * wait + 0.004
        assert decoding.iteration_seconds(shape, setup, ASSUMED, 10, 1000) == pytest.approx(shared)
    # TP 16 has each of the 8 key-value heads twice: the cache is read as with TP 8
    repeated = decoding.iteration_seconds(shape, replace(SETUP, engine_tp=16, gpus_per_node=16), ASSUMED, 10, 1000)
    read = 2 * 8_190_735_360 / 16 + 10 * 1000 * 147_456 / 8
    assert repeated == pytest.approx(read / (0.6 * 3.35e12) + 2 * 36 * 10e-6 + 0.004)
    # with 50,000 live completions the matrix products take longer than the reading: 2 N FLOPs at 38% of 989 TFLOP/s
    many = decoding.iteration_seconds(shape, SETUP, ASSUMED, 50_000, 1)
    assert many == pytest.approx(50_000 * 2 * 8_190_735_360 / (0.38 * 989e12) + 0.004)


def test_a_mixture_reads_the_experts_that_are_chosen() -> None:
    """One token reads 8 of 128 experts; with 64, (1 - 8/128)^64 = 1.6% of them are read by none."""
    shape = KNOWN_SHAPES["Qwen3-30B-A3B"]
    experts = 48 * 128 * 3 * 2048 * 768
    assert shape.count_read_parameters(1) == shape.active_parameters
    assert shape.count_read_parameters(64) == pytest.approx(shape.parameters - experts * (1 - 8 / 128) ** 64)


def test_a_forward_pass_by_hand() -> None:
    """A model of 2016 parameters a rank (above), PP 2: 512 rows of 100 tokens, ten of them in a micro-batch of 1000."""
    shape = ModelShape(layers=4, hidden=8, heads=2, kv_heads=1, head_dim=4, ffn=16, vocab=100, qk_norm=False)
    setup = replace(SETUP, tp=1, pp=2)  # DP 4: 12.8 micro-batches each, and one more to fill the pipeline
    flops = 512 * 100 * (2 * shape.parameters + 4 * 4 * 2 * 4 * 100 / 2)
    by_hand = (1 + 1 / 12.8) * flops / (0.38 * 989e12 * 8)
    assert step_time.forward_seconds(shape, setup, ASSUMED, 512, 100, 1000) == pytest.approx(by_hand)
    slow = step_time.forward_seconds(shape, replace(setup, policy_bytes=4), ASSUMED, 512, 100, 1000)
    assert slow == pytest.approx(by_hand * 989 / 67)
    fast = step_time.forward_seconds(shape, replace(setup, fp8_training=True), ASSUMED, 512, 100, 1000)
    assert fast == pytest.approx(by_hand / 2)


def test_synthesis_costs_time_only_when_something_is_constructed() -> None:
    assert "synthesis" in sampling(SETUP)
    assert "synthesis" not in sampling(replace(SETUP, most_constructed=0))


def test_pipelines_overlap_as_they_do() -> None:
    """8B on 4 x 8 GPUs, bound by latency: deferred synthesis hides, and the later it may begin, the longer it takes."""
    setup = replace(SETUP, nodes=4, train_gpus=32, engine_gpus=32)
    barrier, overlapped, deferred = (
        sampling(each)["synthesis"] for each in (replace(setup, barrier=True), setup, replace(setup, deferred=True))
    )
    alone = sampling(setup)["rollouts"]
    assert deferred < 0.10 * alone < 0.8 * alone < overlapped < barrier < 1.05 * alone


def test_a_long_tail_costs_more_than_its_mean() -> None:
    """The same mean: with sigma 0.1 a step of 256 ends after 3,236 tokens, with sigma 0.8 at the longest, 8,192."""
    narrow, wide = (sampling(SETUP, length_sigma=sigma)["rollouts"] for sigma in (0.1, 0.8))
    assert wide > 1.7 * narrow


def test_prefilled_answers_decode_less() -> None:
    """60% of an answer and of its limit; the synthesis prompt grows by the rest."""
    setup = replace(SETUP, barrier=True)
    given = step_time.describe_corrections(replace(setup, prefilled=True), ASSUMED)
    whole = step_time.describe_corrections(setup, ASSUMED)
    assert given.lengths.longest == pytest.approx(0.6 * whole.lengths.longest)
    assert given.prompt - whole.prompt == pytest.approx(0.4 * 0.3 * 8192)
    assert sampling(replace(setup, prefilled=True))["synthesis"] < 0.7 * sampling(setup)["synthesis"]


def test_dynamic_sampling_takes_rounds() -> None:
    """32 queries, half of them of equal rewards: 16, 8, 4, 2 and 1 more, and no more than the factor allows."""
    assert step_time.count_replaced(32, 0.5, 10) == [16, 8, 4, 2, 1, 0.5]
    assert step_time.count_replaced(32, 0.5, 1.75) == [16, 8]
    assert step_time.count_replaced(32, 0.0, 3) == []
    seconds = sampling(replace(SETUP, sampled_at_most=10.0))
    assert seconds["rollouts"] < seconds["dynamic sampling"] < 3 * seconds["rollouts"]  # a third round is rare
    assert "dynamic sampling" not in sampling(SETUP)


def test_validation_is_shared_out_over_its_steps() -> None:
    every = [sampling(replace(SETUP, validated=192, validate_every=n))["validation"] for n in (1, 10)]
    assert every[0] == pytest.approx(10 * every[1])
    assert "validation" not in sampling(replace(SETUP, validated=192))


def test_a_longest_length_is_expected_by_hand() -> None:
    """Two lengths: E[max] = integral of 1 - F^2; of many, the limit. Against 20,000 draws from the distribution."""
    lengths = Lengths(mean=1000, longest=4096, sigma=0.8)
    draw = random.Random(0)
    drawn = [min(4096.0, math.exp(draw.gauss(lengths.mu, 0.8))) for _ in range(20_000)]
    assert sum(drawn) / len(drawn) == pytest.approx(1000, rel=0.02)
    for count in (2, 8):
        longest = [max(drawn[i : i + count]) for i in range(0, len(drawn), count)]
        assert lengths.expect_longest(count) == pytest.approx(sum(longest) / len(longest), rel=0.02)
    with pytest.raises(ValueError, match="is not between 0 and the longest"):
        Lengths(mean=5000, longest=4096, sigma=0.8)


def test_in_turn_ends_as_drawn_completions_do() -> None:
    """Groups of 4, each followed by 2 more: against 2,000 steps of 8 groups drawn at random, 3 of which go on."""
    first, then = Lengths(500, 2000, 0.6), Lengths(300, 1500, 0.6)
    draw = random.Random(0)

    def one(lengths: Lengths) -> float:
        return min(lengths.longest, math.exp(draw.gauss(lengths.mu, lengths.sigma)))

    ends = []
    for _ in range(2000):
        groups = [max(one(first) for _ in range(4)) for _ in range(8)]
        ends.append(max([*groups[3:], *(end + max(one(then), one(then)) for end in groups[:3])]))
    stages = [Stage(Completions(32, 100, first), groups=8), Stage(Completions(6, 500, then), groups=3)]
    load = decoding.sample_in_turn(stages)
    assert load.iterations == pytest.approx(sum(ends) / len(ends), rel=0.02)
