"""Cluster configs: what is derived from NeMo-RL's keys, what is refused at start, and the `plan` command."""

from __future__ import annotations

import re
import shlex
import subprocess
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml

from nemo_tapo.runtime.nemo_rl.config import checkout, cluster_run, describe_run, node_checks, validate
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config, find_source
from nemo_tapo.runtime.nemo_rl.config.cluster_run import ClusterRun, is_nemo_rl_config
from nemo_tapo.runtime.nemo_rl.config.key_fates import get_fate, list_fates
from nemo_tapo.runtime.nemo_rl.config.translate import DERIVED
from tests.helpers.cluster_files import cluster_file
from tests.helpers.command import nemo_tapo


@pytest.fixture(autouse=True)
def without_nemo_rl(monkeypatch: pytest.MonkeyPatch) -> None:
    """What these tests say holds with or without NeMo-RL's source; its known keys are the contract tests' subject."""
    monkeypatch.delenv("NEMO_RL_SRC", raising=False)


def load(folder: Path, *overrides: str) -> ClusterRun:
    return cluster_run.load_cluster_run(cluster_file(folder), overrides)


def test_every_derived_setting(tmp_path: Path) -> None:
    cfg = load(tmp_path, "grpo.seed=7", "policy.generation.temperature=0.9", "tapo.temperature=0.9").cfg
    r, m, o = cfg.rollout, cfg.model, cfg.optimizer
    assert (cfg.runtime, cfg.algorithm, cfg.task.name, cfg.seed, cfg.steps) == ("nemo_rl", "tapo", "nemo_rl", 7, 500)
    assert (r.queries_per_step, r.samples_per_query, r.max_tokens, r.temperature, r.top_p) == (32, 8, 8192, 0.9, 1.0)
    assert (str(m.path), m.max_length, m.enable_thinking) == ("Qwen/Qwen3-8B", 10240, False)
    assert (cfg.loss.clip_low, cfg.loss.clip_high, cfg.loss.token_mean, cfg.loss.kl_coef) == (0.2, 0.28, False, 0.0)
    assert (o.lr, o.betas, o.warmup_steps, o.schedule) == (1e-6, (0.9, 0.95), 10, "cosine")
    assert o.min_lr_ratio == pytest.approx(0.1)
    assert (cfg.checkpoint.every, cfg.checkpoint.keep, str(cfg.output)) == (25, 2, "results/x")
    assert cfg.rollout.overlong == "keep" and cfg.rollout.dynamic_sampling is None
    assert load(tmp_path, "+grpo.use_dynamic_sampling=true").cfg.rollout.dynamic_sampling == 10
    limited = load(tmp_path, "+grpo.use_dynamic_sampling=true", "+grpo.dynamic_sampling_max_gen_batches=3")
    assert limited.cfg.rollout.dynamic_sampling == 3
    assert any("up to 3 times as many" in note for note in limited.notes)
    off = load(tmp_path, "+grpo.use_dynamic_sampling=false", "+grpo.dynamic_sampling_max_gen_batches=3")
    assert off.cfg.rollout.dynamic_sampling is None
    assert load(tmp_path, "+grpo.overlong_filtering=true").cfg.rollout.overlong == "mask"
    assert (cfg.evaluation.max_tokens, cfg.evaluation.synthesis_queries) == (8192, 0)


def test_the_loss_variants_have_nemo_rls_keys(tmp_path: Path) -> None:
    loss = load(tmp_path, "+loss_fn.ratio_clip_c=3", "+loss_fn.sequence_level_importance_ratios=true").cfg.loss
    assert (loss.dual_clip, loss.ratio, loss.surrogate) == (3.0, "sequence", "clipped")
    loss = load(tmp_path, "+loss_fn.use_cispo=true", "loss_fn.token_level_loss=true").cfg.loss
    assert (loss.dual_clip, loss.ratio, loss.surrogate) == (None, "token", "cispo")
    with pytest.raises(ValueError, match=r"CISPO \(loss_fn.use_cispo\) .* set loss_fn.token_level_loss to true"):
        load(tmp_path, "+loss_fn.use_cispo=true")
    with pytest.raises(ValueError, match=r"use_cispo and loss_fn.force_on_policy_ratio contradict"):
        load(
            tmp_path, "+loss_fn.use_cispo=true", "loss_fn.token_level_loss=true", "+loss_fn.force_on_policy_ratio=true"
        )
    with pytest.raises(ValueError, match=r"loss_fn.ratio_clip_c: Input should be greater than 1"):
        load(tmp_path, "+loss_fn.ratio_clip_c=1")
    with pytest.raises(ValueError, match=r"tapo.loss.ratio is derived: set loss_fn.sequence_level_importance_ratios"):
        load(tmp_path, "+tapo.loss.ratio=sequence")


def test_rows_go_into_nemo_rls_batch_size(tmp_path: Path) -> None:
    """32 x 8 rollouts and 32 x min(m_max, K - n_pos) constructed rows at most; GRPO constructs none."""
    assert load(tmp_path).master["policy"]["train_global_batch_size"] == 384
    assert load(tmp_path, "tapo.algorithm=grpo").master["policy"]["train_global_batch_size"] == 256
    assert load(tmp_path, "tapo.n_pos=6", "tapo.n_neg=2").master["policy"]["train_global_batch_size"] == 320
    assert load(tmp_path, "tapo.loss.updates_per_batch=4").master["policy"]["train_global_batch_size"] == 96
    assert load(tmp_path, "policy.train_global_batch_size=384").setup.update_rows == 384
    six = load(tmp_path, "cluster.gpus_per_node=10")  # DP 5
    assert six.master["policy"]["train_global_batch_size"] == 385


def test_rows_are_a_multiple_of_micro_batches_without_packing(tmp_path: Path) -> None:
    run = load(tmp_path, "policy.sequence_packing.enabled=false", "policy.train_micro_batch_size=5")
    assert run.setup.update_rows == 400  # a multiple of DP 4 x 5
    assert run.setup.micro_batch_tokens == 5 * 10240


def test_importance_correction_needs_every_steps_log_probabilities(tmp_path: Path) -> None:
    assert load(tmp_path).cfg.rollout.logprobs == "always"
    with pytest.raises(ValueError, match="needs the engine's log-probabilities at every step"):
        load(tmp_path, "loss_fn.use_importance_sampling_correction=true", "tapo.rollout.logprobs=first_step")


def test_reporting_the_kl_keeps_a_reference_and_counts_its_memory(tmp_path: Path) -> None:
    assert not load(tmp_path).setup.reference
    assert load(tmp_path, "tapo.loss.kl_rows=64").setup.reference


def test_the_gap_that_is_allowed_follows_the_number_format(tmp_path: Path) -> None:
    assert (
        load(tmp_path).cfg.engine_gap_bound == load(tmp_path, "+policy.precision=bfloat16").cfg.engine_gap_bound == 0.05
    )
    assert load(tmp_path, "+policy.precision=float32").cfg.engine_gap_bound == 0.01
    coarse = load(tmp_path, "+policy.precision=float32", "+policy.generation.vllm_cfg.precision=bfloat16")
    assert coarse.cfg.engine_gap_bound == 0.05
    assert load(tmp_path, "tapo.engine_gap_bound=0.2").cfg.engine_gap_bound == 0.2


DTENSOR = ("policy.megatron_cfg.enabled=false", "policy.dtensor_cfg.enabled=true", "+policy.optimizer.kwargs.lr=1e-6")
WARM_UP = "{name: torch.optim.lr_scheduler.LinearLR, kwargs: {start_factor: 0.1, end_factor: 1.0, total_iters: 50}}"
COSINE = "{name: torch.optim.lr_scheduler.CosineAnnealingLR, kwargs: {T_max: 450, eta_min: 1.0e-7}}"
CONSTANT = "{name: torch.optim.lr_scheduler.ConstantLR, kwargs: {factor: 1.0, total_iters: 100}}"


def test_the_dtensor_workers_schedule_is_read(tmp_path: Path) -> None:
    """A LinearLR over 50 updates has the whole rate in update 51."""
    o = load(tmp_path, *DTENSOR, f"+policy.scheduler=[{WARM_UP},{CONSTANT},{{milestones: [50]}}]").cfg.optimizer
    assert (o.lr, o.warmup_steps, o.schedule) == (1e-6, 51, "constant")
    o = load(tmp_path, *DTENSOR, f"+policy.scheduler=[{WARM_UP},{COSINE},{{milestones: [50]}}]").cfg.optimizer
    assert (o.warmup_steps, o.schedule, o.min_lr_ratio) == (51, "cosine", pytest.approx(0.1))
    o = load(tmp_path, *DTENSOR, f"+policy.scheduler={CONSTANT}").cfg.optimizer
    assert (o.warmup_steps, o.schedule) == (0, "constant")
    other = load(
        tmp_path, *DTENSOR, "+policy.scheduler={name: torch.optim.lr_scheduler.StepLR, kwargs: {step_size: 3}}"
    )
    assert "policy.scheduler has StepLR, which the settings above do not show" in other.notes


def test_one_step_off_is_nemo_rls_async_grpo(tmp_path: Path) -> None:
    own = "{enabled: false, resources: {gpus_per_node: 4, num_nodes: 1}}"
    goes_with = ("loss_fn.use_importance_sampling_correction=true", "policy.generation.vllm_cfg.async_engine=true")
    run = load(tmp_path, LAG, *(f"++{each}" for each in goes_with), f"++policy.generation.colocated={own}")
    assert (run.cfg.rollout.lag, run.setup.lag, run.setup.colocated) == (1, 1, False)
    assert run.cfg.rollout.logprobs == "always"
    idle = load(tmp_path, "+grpo.async_grpo={enabled: false, in_flight_weight_updates: true}")
    assert (idle.cfg.rollout.lag, idle.setup.lag) == (0, 0)


def test_a_recipe_of_sft_is_found_beside_the_file_that_names_it(tmp_path: Path) -> None:
    (tmp_path / "deep").mkdir()
    path = cluster_file(tmp_path / "deep", "tapo: {coldstart: {sft_recipe: sft.yaml}}\n")
    assert cluster_run.load_cluster_run(path).cfg.coldstart.sft_recipe == Path("sft.yaml")  # it is nowhere yet
    recipe = tmp_path / "deep" / "sft.yaml"
    recipe.write_text("sft: {}\n")
    child = tmp_path / "child.yaml"
    child.write_text("defaults: deep/run.yaml\n")
    for file in (path, child):
        assert cluster_run.load_cluster_run(file).cfg.coldstart.sft_recipe == recipe.resolve()


def test_nemo_rls_own_keys_are_kept(tmp_path: Path) -> None:
    raw = compose_config(cluster_file(tmp_path))
    master = load(tmp_path).master
    raw["policy"]["train_global_batch_size"] = 384
    assert master == raw


LAG = "+grpo.async_grpo.enabled=true"
REFUSED = [
    # the loop and the loss
    (f"{LAG}", "with policy.generation.colocated.enabled = true is not supported: engines sample while the policy tr"),
    (f"{LAG} policy.generation.vllm_cfg.async_engine=false", "NeMo-RL trains this way with the async engine alone"),
    (f"{LAG}", "use_importance_sampling_correction = .* is not supported: it corrects for the update between"),
    (f"{LAG} +grpo.async_grpo.max_trajectory_age_steps=2", "rollouts are one step old, never more. Set it to 1"),
    (f"{LAG} +grpo.async_grpo.in_flight_weight_updates=true", "sampled by one set of weights from end to end"),
    (f"{LAG} +grpo.async_grpo.max_generation_failures=3", "every rollout of a step is trained on, so none may fail"),
    (f"{LAG} +tapo.rollout.logprobs=first_step", "reports of every rollout: set tapo.rollout.logprobs to always"),
    (f"{LAG} tapo.algorithm=reflective_sft", "grpo.async_grpo.enabled trains on rollouts of the weights before"),
    ("+tapo.rollout.lag=1", "tapo.rollout.lag is derived: set grpo.async_grpo.enabled instead"),
    ("+grpo.use_dynamic_sampling=true +grpo.dynamic_sampling_max_gen_batches=1", "batches: Input should be greater"),
    ("+grpo.batch_multiplier=2", "grpo.batch_multiplier = 2 is not supported"),
    ("+grpo.reward_shaping.enabled=true", "grpo.reward_shaping.enabled"),
    ("+grpo.reward_scaling.enabled=true", "grpo.reward_scaling.enabled"),
    ("+grpo.normalize_rewards=false", "divided by the group's deviation, Eq. 1. Set it to true"),
    ("+grpo.adv_estimator.name=reinforce_plus_plus", "grpo.adv_estimator.name"),
    ("+grpo.advantage_clip_high=2.0", "grpo.advantage_clip_high"),
    ("+grpo.seq_logprob_error_threshold=1.5", "grpo.seq_logprob_error_threshold"),
    ("+grpo.stop_at_validation_metric=accuracy", "a run makes all of its steps"),
    ("+grpo.max_rollout_turns=3", "a response is one turn"),
    ("+reward_penalties.penalize_unwanted_tokens=true", "reward_penalties"),
    ("+data_plane.enabled=true", "the normaliser rides in the data"),
    ("+on_policy_distillation.x=1", "there is no teacher"),
    ("+env.should_use_nemo_gym=true", "rollouts are this project's own"),
    ("+policy.sequence_packing.fuse_loss=true", "fuse_loss = true is not supported: the OTS weight needs the logits"),
    ("+policy.megatron_cfg.use_fused_linear_logprobs=true", "use_fused_linear_logprobs = true is not supported"),
    ("+policy.megatron_cfg.use_linear_ce_fusion_loss=true", "use_linear_ce_fusion_loss = true is not supported"),
    ("+policy.draft.enabled=true", "policy.draft.enabled"),
    ("+policy.quant_cfg=NVFP4_DEFAULT_CFG", "quantised while they train"),
    ("+policy.generation.real_quant=true", "a quantised engine has not been tried"),
    ("+policy.generation.bad_words=[no]", "the distribution with every word"),
    ("+grpo.use_best_at_k=true", "advantages are Eq. 1, 4 and 5"),
    ("+policy.router_replay.enabled=true", "constructed rows have no recorded routes"),
    ("policy.generation.backend=sglang", 'no other engine has been connected. Set it to "vllm"'),
    ("policy.generation.top_p=0.9", "policy.generation.top_p = 0.9 is not supported"),
    ("policy.generation.top_k=50", "policy.generation.top_k = 50 is not supported"),
    ("+policy.generation.stop_strings=[END]", "one stop would end rollouts and synthesis alike"),
    ("+policy.generation.vllm_cfg.kv_cache_dtype=fp8", "kv_cache_dtype = .fp8. is not supported"),
    ("+policy.generation.vllm_cfg.logprobs_mode=raw_logprobs", "at the engine's temperature. Set it to .processed_l"),
    ("+policy.megatron_cfg.peft.enabled=true", "peft.enabled = true is not supported: .* not of adapters"),
    ("+policy.dtensor_cfg.lora_cfg.enabled=true", "lora_cfg.enabled = true is not supported"),
    ("+checkpointing.save_optimizer=false", "a resumed run would begin Adam and the schedule anew. Set it to true"),
    ("+checkpointing.ft_save_period=5", "checkpointing.ft_save_period = 5 is not supported: checkpointing.save_period"),
    ("+checkpointing.is_async=true", "nothing waits for the writer"),
    (
        "policy.megatron_cfg.enabled=false policy.dtensor_cfg.enabled=true +policy.dtensor_cfg._v2=false "
        "+checkpointing.model_save_format=safetensors",
        "model_save_format = 'safetensors' is for policy.dtensor_cfg._v2=true.* Set it to null",
    ),
    (
        "policy.megatron_cfg.enabled=false policy.dtensor_cfg.enabled=true +policy.scheduler=null",
        "policy.scheduler = null: DTensor's workers fail on it",
    ),
    (
        "policy.megatron_cfg.enabled=false policy.dtensor_cfg.enabled=true +policy.optimizer=null",
        "policy.optimizer = null: DTensor's workers need its name",
    ),
    ("+policy.megatron_cfg.scheduler.lr_warmup_init=0", "first update a learning rate of 0.* the optimizer's lr / 11"),
    ("checkpointing.enabled=false", "checkpointing.enabled = false is not supported"),
    ("checkpointing.metric_name=val:accuracy", "set tapo.evaluation.every to a divisor of checkpointing.save_period"),
    ("+loss_fn.use_cispo=true", "loss_fn.use_cispo"),
    # divisions
    ("cluster.num_nodes=0", "cluster.num_nodes = 0 is not a whole number from 1 on"),
    ("policy.megatron_cfg.tensor_model_parallel_size=0", "tensor_model_parallel_size = 0 is not a whole number from 1"),
    ("policy.megatron_cfg.tensor_model_parallel_size=two", "tensor_model_parallel_size = 'two' is not a whole number"),
    ("policy.generation.vllm_cfg.tensor_parallel_size=0.5", "tensor_parallel_size = 0.5 is not a whole number from 1"),
    ("policy.train_micro_batch_size=0", "policy.train_micro_batch_size = 0 is not a whole number from 1 on"),
    ("policy.sequence_packing.train_mb_tokens=many", "train_mb_tokens = 'many' is not a whole number from 1 on"),
    (
        "policy.sequence_packing.train_mb_tokens=8192",
        "= 8192 has no room for the longest row, .* 10240.",
    ),
    ("policy.max_total_sequence_length=10241", "the longest row, .* = 10241, filled up to 10242"),
    (
        "policy.generation.vllm_cfg.gpu_memory_utilization=1.5",
        "gpu_memory_utilization = 1.5 is no share of a GPU's mem",
    ),
    ("+policy.precision=float8", "policy.precision = 'float8' is not one of float32, bfloat16, float16"),
    (
        "policy.generation.vllm_cfg.tensor_parallel_size=4 cluster.gpus_per_node=6 cluster.num_nodes=2",
        "an engine of TP 4 x PP 1 = 4 GPUs neither divides a node's 6 GPUs nor is a multiple of them",
    ),
    ("policy.megatron_cfg.tensor_model_parallel_size=3", "TP 3 x PP 1 x CP 1 = 3 ranks do not divide the policy's 8"),
    ("policy.generation.vllm_cfg.tensor_parallel_size=3", "an engine of TP 3 x PP 1 does not divide 8 GPUs"),
    ("policy.megatron_cfg.expert_model_parallel_size=3", "expert parallel 3"),
    ("policy.megatron_cfg.tensor_model_parallel_size=1", "sequence_parallel needs tensor parallelism"),
    ("policy.make_sequence_length_divisible_by=3", "must be a multiple of 2: .* .TP 2."),
    ("policy.megatron_cfg.context_parallel_size=2", "divisible_by = 2 must be a multiple of 8: .* 2 CP pieces .CP 2."),
    (
        "policy.megatron_cfg.context_parallel_size=4 policy.megatron_cfg.sequence_parallel=false "
        "policy.make_sequence_length_divisible_by=4",
        "divisible_by = 4 must be a multiple of 8",
    ),
    ("policy.dynamic_batching.enabled=true", "exclude each other"),
    ("policy.logprob_batch_size=4 policy.megatron_cfg.tensor_model_parallel_size=4", "must equal policy.train_micro_b"),
    (
        "+policy.logprob_chunk_size=512 policy.megatron_cfg.defer_fp32_logits=false",
        "needs policy.megatron_cfg.defer_fp",
    ),
    (
        "policy.megatron_cfg.context_parallel_size=2 policy.sequence_packing.enabled=false",
        "context parallelism needs policy.sequence_packing.enabled=true",
    ),
    (
        "policy.dynamic_batching.enabled=true +policy.dynamic_batching.train_mb_tokens=10240 "
        "policy.sequence_packing.enabled=false policy.megatron_cfg.pipeline_model_parallel_size=2",
        "does not work with pipeline parallelism",
    ),
    ("policy.generation.colocated.enabled=false", "so that both have GPUs"),
    (
        "policy.generation.colocated.enabled=false cluster.num_nodes=2 "
        "policy.generation.colocated.resources={num_nodes:1,gpus_per_node:4}",
        "must be cluster.gpus_per_node = 8",
    ),
    (
        "+policy.generation.vllm_cfg.pipeline_parallel_size=2 policy.generation.vllm_cfg.async_engine=false",
        "needs policy.generation.vllm_cfg.async_engine=true",
    ),
    ("policy.dtensor_cfg.enabled=true", "exactly one of policy.megatron_cfg.enabled and policy.dtensor_cfg.enabled"),
    # lengths and rows
    ("policy.generation.max_new_tokens=10240", "no room is left for a query"),
    ("policy.generation.vllm_cfg.max_model_len=8192", "is less than policy.max_total_sequence_length = 10240"),
    ("policy.generation.vllm_cfg.max_model_len=12000", "too small for the synthesis.*Raise it to 27136 for all to fit"),
    ("policy.train_global_batch_size=512", "but an update has 384 rows .256 rollouts and at most 128 constructed"),
    ("grpo.max_num_steps=1000000", "this loop counts steps: set it"),
    ("policy.generation.temperature=0.7", "engine samples everything at policy.generation.temperature = 0.7"),
    (
        "+grpo.skip_reference_policy_logprobs_calculation=true loss_fn.reference_policy_kl_penalty=0.1",
        "contradict each other",
    ),
    ("loss_fn.force_on_policy_ratio=true tapo.loss.updates_per_batch=2", "needs one update a batch"),
    # values and keys
    ("grpo.num_generations_per_prompt=5", "n_neg = 6 is more than grpo.num_generations_per_prompt = 5"),
    ("grpo.num_prompts_per_step=many", "grpo.num_prompts_per_step = 'many' is not a whole number"),
    ("~grpo.max_num_steps", "grpo.max_num_steps is not set"),
    ("tapo.n_poss=2", "unknown key 'tapo.n_poss'.*did you mean 'tapo.n_pos'"),
    ("tapo.rollout.samples_per_query=4", "derived: set grpo.num_generations_per_prompt instead"),
    ("tapo.w_min=20", "tapo.w_min = 20.0 is above"),
    ("tapo.pipeline=none", "tapo.pipeline: .*'overlapped', 'barrier' or 'deferred'"),
    ("tapo.call_timeout=0", "tapo.call_timeout: Input should be greater than 0 .got 0."),
    ("tapo.start_timeout=soon", "tapo.start_timeout: Input should be a valid number"),
    ("tapo.plan.gpu=V100", "tapo.plan.gpu: .*'H100'"),
    ("tapo.container=nvcr.io/nvidia/nemo-rl:v0.5.0", "container nvcr.io/nvidia/nemo-rl:v0.5.0 is not supported"),
    ("tapo.container=docker://nvcr.io/nvidia/nemo-rl:v0.5.0", "nemo-rl:v0.5.0 is not supported"),
    ("tapo", "override 'tapo' is not key=value"),
    ("grpo.seed=1,2", "is a sweep"),
]


@pytest.mark.parametrize(("overrides", "sentence"), REFUSED, ids=[o.split("=")[0] for o, _ in REFUSED])
def test_what_cannot_run_is_refused_with_a_sentence(tmp_path: Path, overrides: str, sentence: str) -> None:
    load(tmp_path)  # it is the override that is refused
    with pytest.raises(ValueError, match=sentence):
        load(tmp_path, *overrides.split())


@pytest.mark.parametrize(
    "overrides",
    [
        "tapo.container=nvcr.io/nvidia/nemo-rl:v0.7.0",
        "tapo.container=registry.example/ours:5",
        "loss_fn.force_on_policy_ratio=true",
        "+policy.megatron_cfg.use_linear_ce_fusion_loss=false",
        "policy.generation.top_k=-1",
        "+policy.generation.vllm_cfg.kv_cache_dtype=auto +policy.generation.vllm_cfg.logprobs_mode=processed_logprobs",
        "policy.megatron_cfg.context_parallel_size=2 policy.make_sequence_length_divisible_by=8",
        "policy.megatron_cfg.context_parallel_size=2 policy.make_sequence_length_divisible_by=4 "
        "policy.megatron_cfg.sequence_parallel=false",
        "+policy.megatron_cfg.peft.enabled=false +checkpointing.save_optimizer=true +checkpointing.ft_save_period=null",
        "+policy.megatron_cfg.scheduler.lr_warmup_init=1e-7",
        "tapo.call_timeout=600 tapo.start_timeout=1e4",
        "policy.megatron_cfg.tensor_model_parallel_size=1 policy.megatron_cfg.sequence_parallel=false",
        "policy.generation.colocated.enabled=false policy.generation.colocated.resources.gpus_per_node=4",
        "tapo.task={name:mathematics,mathematics:{benchmarks:{mine:{path:a.jsonl}}}}",
        "tapo.evaluation.endpoint.extra_body.anything=1",
        "checkpointing.metric_name=val:accuracy tapo.evaluation.every=5",
        "tapo.algorithm=grpo tapo.temperature=0.5",
    ],
)
def test_what_can_run_is_not_refused(tmp_path: Path, overrides: str) -> None:
    assert load(tmp_path, *overrides.split()).cfg.runtime == "nemo_rl"


def test_every_key_is_explained_once_and_a_strange_one_is_told(tmp_path: Path) -> None:
    """What is refused or derived stands in the table as that; a key that nothing explains is in the plan's notes."""
    found = {fate.pattern: fate.what for fate in reversed(list_fates())}
    refused = {path for path, *_ in validate.ALLOWED_SETTINGS}
    assert all(found[path] == "refused" for path in refused)
    assert all(found[path] == "served" for path in set(DERIVED.values()) - refused)
    assert get_fate("grpo.reward_shaping.max_response_length").what == "unused"  # type: ignore[union-attr]
    assert get_fate("policy.brand_new") is get_fate("loss_fn.brand_new") is None
    assert not any("does not know" in note for note in load(tmp_path).notes)
    notes = load(tmp_path, "+policy.brand_new=3", "+grpo.also_new=null").notes
    assert any(note.startswith("grpo.also_new, policy.brand_new: this loop does not know") for note in notes)


def test_several_faults_are_told_at_once(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="reward_scaling") as told:
        load(tmp_path, "+grpo.reward_scaling.enabled=true", "policy.generation.top_p=0.5")
    assert len(str(told.value).splitlines()) == 2


def test_a_model_that_does_not_allow_the_division(tmp_path: Path) -> None:
    path = cluster_file(tmp_path)
    for overrides, sentence in (
        (["policy.megatron_cfg.pipeline_model_parallel_size=8", "cluster.num_nodes=2"], "PP 8 does not divide .* 36 l"),
        (["policy.megatron_cfg.expert_model_parallel_size=2"], "for a model without experts"),
        (["policy.generation.vllm_cfg.max_model_len=65536"], "more than the model's 40960 positions"),
        (
            ["policy.generation.vllm_cfg.tensor_parallel_size=3", "cluster.gpus_per_node=6"],
            "TP 3 and 8 key-value",
        ),
        (
            [
                "policy.model_name=Qwen/Qwen2.5-0.5B",
                "policy.megatron_cfg.tensor_model_parallel_size=2",
                "policy.generation.vllm_cfg.tensor_parallel_size=14",
                "cluster.gpus_per_node=14",
                "policy.generation.vllm_cfg.max_model_len=32768",
            ],
            "the engine's TP 14 does not divide the model's feed-forward size, 4864",
        ),
    ):
        with pytest.raises(ValueError, match=sentence):
            describe_run.load_checked_run(path, overrides)


def test_a_model_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    overrides = [
        "policy.model_name=Qwen/Qwen3-32B",
        "policy.megatron_cfg.tensor_model_parallel_size=8",
        "policy.generation.vllm_cfg.tensor_parallel_size=4",
    ]
    with pytest.raises(ValueError, match=r"training needs about .* H100 has 79.1: the largest part is optimizer"):
        describe_run.load_checked_run(cluster_file(tmp_path), overrides)
    describe_run.load_checked_run(cluster_file(tmp_path), [*overrides, "tapo.plan.gpu=H200"])


def test_a_model_of_unknown_shape_is_planned_without_estimate(tmp_path: Path) -> None:
    run = describe_run.load_checked_run(cluster_file(tmp_path), ["policy.model_name=acme/Big"])
    assert "no estimate of memory and time: the shape of model acme/Big is not known" in describe_run.describe(run)


def test_environment_is_asked_for_when_a_run_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TORCH_CUDA_ARCH_LIST", raising=False)
    monkeypatch.setattr(node_checks, "NVIDIA", tmp_path / "no GPUs here")
    run = describe_run.load_checked_run(cluster_file(tmp_path))
    with pytest.raises(ValueError, match="TORCH_CUDA_ARCH_LIST is not set"):
        describe_run.require_environment(run)
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "9.0")
    describe_run.require_environment(run)
    monkeypatch.setattr(node_checks, "NVIDIA", tmp_path)
    monkeypatch.setattr(node_checks, "SHARED_MEMORY", tmp_path)
    monkeypatch.setattr(node_checks, "SHARED_GIB", 1e9)
    with pytest.raises(ValueError, match=r"GiB free, and 8 GPUs need about 1e\+09 GiB for NCCL"):
        describe_run.require_environment(run)


def test_a_node_without_room_in_shared_memory_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Docker's default is 64 MiB; 8 GPUs need 1 + 8 x 0.5 GiB."""
    room = {"free": 64 * 2**20}
    monkeypatch.setattr(node_checks.shutil, "disk_usage", lambda folder: SimpleNamespace(**room))
    (told,) = node_checks.check_shared_memory(8, tmp_path)
    assert told.startswith(f"{tmp_path} has 0.1 GiB free, and 8 GPUs need about 5 GiB") and "--shm-size=64g" in told
    room["free"] = 5 * 2**30
    assert not list(node_checks.check_shared_memory(8, tmp_path))
    assert list(node_checks.check_shared_memory(8, tmp_path / "nowhere"))


@pytest.mark.parametrize("name", node_checks.CACHES)
def test_a_cache_in_a_place_that_is_not_mounted_is_told(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str
) -> None:
    for other in node_checks.CACHES:
        monkeypatch.delenv(other, raising=False)
    monkeypatch.setenv(name, str(tmp_path / "lustre" / "cache"))
    (told,) = node_checks.check_caches()
    assert told.startswith(f"{name} = {tmp_path}/lustre/cache, and {tmp_path}/lustre is not on this node: mount it")
    monkeypatch.setenv(name, str(tmp_path / "new"))
    assert not list(node_checks.check_caches())


@pytest.mark.parametrize("old", [True, False])
def test_a_nemo_rl_before_0_7_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, old: bool) -> None:
    """By what its `setup` takes, for its version number does not tell; it is not imported."""
    (tmp_path / "nemo_rl" / "algorithms").mkdir(parents=True)
    (tmp_path / "nemo_rl" / "__init__.py").write_text("raise RuntimeError('imported')")
    more = "" if old else ", policy_factory=None"
    (tmp_path / "nemo_rl" / "algorithms" / "grpo.py").write_text(f"def setup(master_config, tokenizer{more}): ...\n")
    monkeypatch.syspath_prepend(tmp_path)
    told = list(node_checks.check_release())
    assert len(told) == old and all("is older than v0.7.0" in sentence for sentence in told)


def test_notes_say_what_is_read_otherwise(tmp_path: Path) -> None:
    run = load(tmp_path, "+grpo.use_leave_one_out_baseline=true", "policy.generation.vllm_cfg.max_model_len=20000")
    notes = "\n".join(run.notes)
    assert "use_leave_one_out_baseline is not used" in notes
    assert "NeMo-RL's engines take no seed from it" in notes
    assert "longer than about 9248 tokens is dropped" in notes  # 20000 - 8192 answer - 512 template - 2048 question


def test_notes_say_that_checkpoints_are_written_at_once(tmp_path: Path) -> None:
    key = "policy.megatron_cfg.checkpoint"
    run = load(tmp_path, f"+{key}={{async_save: true, ckpt_assume_constant_structure: true}}")
    told = [note for note in run.notes if note.startswith(key)]
    assert [note.split(" is ")[0] for note in told] == [f"{key}.async_save", f"{key}.ckpt_assume_constant_structure"]
    assert not any("async_save" in note for note in load(tmp_path).notes)


def test_files_are_told_apart(tmp_path: Path) -> None:
    assert is_nemo_rl_config(cluster_file(tmp_path))
    assert not is_nemo_rl_config(Path(__file__).parents[3] / "examples" / "configs" / "tapo-tiny-1n0g.yaml")
    assert not is_nemo_rl_config(None)
    (tmp_path / "child.yaml").write_text("defaults: run.yaml\ntapo: {n_pos: 1}\n")
    assert is_nemo_rl_config(tmp_path / "child.yaml")


def test_files_inherit_with_nemo_rls_rules(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("x: {p: 1, q: 2}\ny: {p: 1, q: 2}\nz: ???\nw: ${mul:${x.p}, 10}\n")
    (tmp_path / "b.yaml").write_text("p: 5\n")
    (tmp_path / "c.yaml").write_text(
        "defaults: [a.yaml, b.yaml@tapo.inner]\nx: {p: 7}\ny: {_override_: true, r: 3}\nz: 4\n"
    )
    assert compose_config(tmp_path / "c.yaml") == {
        "x": {"p": 7, "q": 2},
        "y": {"r": 3},
        "z": 4,
        "w": 70,
        "tapo": {"inner": {"p": 5}},
    }
    with pytest.raises(ValueError, match="Missing mandatory value: z"):
        compose_config(tmp_path / "a.yaml")


def test_a_parent_that_is_nowhere_says_what_to_set(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "child.yaml"
    path.write_text("defaults: grpo_math_8B_megatron.yaml\n")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if find_source() is None:
        fetch = f"fetch its files once with `{checkout.get_fetch_command()}`"
        with pytest.raises(ValueError, match=re.escape(fetch)) as told:
            compose_config(path)
        assert "inherits grpo_math_8B_megatron.yaml" in str(told.value) and "set NEMO_RL_SRC" in str(told.value)
    monkeypatch.setenv("NEMO_RL_SRC", str(tmp_path))
    with pytest.raises(ValueError, match="is no NeMo-RL checkout"):
        compose_config(path)
    (tmp_path / "examples" / "configs").mkdir(parents=True)
    (tmp_path / "examples" / "configs" / "grpo_math_8B_megatron.yaml").write_text("a: 1\n")
    assert compose_config(path) == {"a": 1}


def test_the_command_that_is_named_fetches_the_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run as it is written, with a repository in the place of NeMo-RL's."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    if find_source() is not None:
        pytest.skip("NeMo-RL is installed here and would be found first")
    there = tmp_path / "RL"
    (there / "examples" / "configs").mkdir(parents=True)
    (there / "examples" / "configs" / "grpo_math_8B_megatron.yaml").write_text("a: 1\n")
    git = ["git", "-C", str(there), "-c", "user.name=n", "-c", "user.email=e"]
    for command in (["init", "-q"], ["add", "."], ["commit", "-qm", "x"], ["tag", checkout.RELEASE]):
        subprocess.run([*git, *command], check=True)
    fetch = checkout.get_fetch_command().replace("https://github.com/NVIDIA-NeMo/RL", f"file://{there}")
    subprocess.run(shlex.split(fetch), check=True, capture_output=True)
    child = tmp_path / "child.yaml"
    child.write_text("defaults: grpo_math_8B_megatron.yaml\n")
    assert find_source() == checkout.get_fetched_source()
    assert compose_config(child) == {"a": 1}


def test_keys_that_no_class_and_no_example_has(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Against a source tree of a few lines, in the ways in which NeMo-RL declares keys."""
    package = tmp_path / "src" / "nemo_rl" / "algorithms"
    package.mkdir(parents=True)
    (package / "grpo.py").write_text(
        "class Base(BaseModel):\n    inherited: int\n"
        "class GRPOConfig(Base, extra='allow'):\n    num_prompts: int\n"
        "class Engine(TypedDict):\n    backend: str\n"
        "class VllmEngine(Engine):\n    vllm_cfg: 'VllmArgs | None'\n"
        "class VllmArgs(TypedDict):\n    kwargs: NotRequired[dict[str, Any]]\n    length: int\n"
        "class MasterConfig(BaseModel):\n    grpo: GRPOConfig\n    generation: NotRequired[Engine]\n"
    )
    (package / "sft.py").write_text("class MasterConfig(BaseModel):\n    sft: int\n")
    examples = tmp_path / "src" / "examples" / "configs"
    examples.mkdir(parents=True)
    (examples / "grpo_x.yaml").write_text("grpo: {only_in_an_example: 1}\n")
    (examples / "sft.yaml").write_text("sft: {lr: 1}\n")
    monkeypatch.setenv("NEMO_RL_SRC", str(tmp_path / "src"))
    fine = {"grpo": {"num_prompts": 1, "inherited": 2, "only_in_an_example": 3}, "env": {"anything": {"goes": 1}}}
    fine["generation"] = {"backend": "vllm", "vllm_cfg": {"length": 1, "kwargs": {"what": {"ever": 1}}}}
    assert list(cluster_run.find_unknown_keys(fine, find_source())) == []
    wrong = {"grpo": {"num_prompt": 1}, "generation": {"vllm_cfg": {"lenght": 1}}, "sft": 1}
    told = list(cluster_run.find_unknown_keys(wrong, find_source()))
    assert told[0] == "unknown key 'grpo.num_prompt': nothing reads it; did you mean 'grpo.num_prompts'?"
    assert "'generation.vllm_cfg.lenght'" in told[1] and "'generation.vllm_cfg.length'" in told[1]
    assert "unknown key 'sft'" in told[2]


def test_the_plan_command(tmp_path: Path) -> None:
    path = cluster_file(tmp_path)
    done = nemo_tapo("plan", "--config", str(path), "cluster.num_nodes=2")
    assert done.returncode == 0, done.stderr
    for line in (
        "plan      it can run, as far as this can tell",
        "a step    32 queries x 8 rollouts, 1 update(s), at most 128 constructed rows",
        "policy    16 of 2 x 8 GPUs = TP 2 x DP 8",
        "engines   16 of TP 1 x PP 1 on the same GPUs",
        "memory, GiB of 79.1 a GPU (H100), estimated",
        "disk, GiB: checkpoint 106.8 every 25 steps, 2 kept and one being written: 320.4",
    ):
        assert line in done.stdout.splitlines()
    assert "lambda: 1.0" not in done.stdout
    full = nemo_tapo("plan", "--full", "--config", str(path), "cluster.num_nodes=2").stdout
    assert [line.removeprefix("# ") for line in full.splitlines()][
        : done.stdout.count("\n")
    ] == done.stdout.splitlines()
    for line in (
        "500 steps of 32 queries x 8 rollouts, 1 update(s) each",
        "rows of an update: 384, always: 256 rollouts, at most 128 constructed, the rest masked",
        "policy: 16 of 2 x 8 GPUs = TP 2 x PP 1 x CP 1 x DP 8, sequence parallel, in bf16",
        "checkpoint: 106.8 GiB every 25 steps, 2 kept: 213.6 GiB",
        "decode_overhead_ms 4",
        "lambda: 1.0",
        "adam_beta2: 0.95",
        "note: grpo.max_num_epochs is not used",
    ):
        assert line in full
    assert "tapo" in yaml.safe_load(full)
    dry = nemo_tapo("train", "--dry-run", "--config", str(path), "cluster.num_nodes=2")
    assert dry.stdout == done.stdout


@pytest.mark.parametrize(
    "overrides",
    [
        "",
        "policy.model_name=acme/Big",
        "policy.model_name=deepseek-ai/DeepSeek-V3 policy.generation.vllm_cfg.tensor_parallel_size=32 "
        "cluster.num_nodes=64 policy.megatron_cfg.pipeline_model_parallel_size=8 "
        "+policy.megatron_cfg.num_layers_in_last_pipeline_stage=5 tapo.pipeline=overlapped "
        "tapo.loss.updates_per_batch=4 "
        "loss_fn.reference_policy_kl_penalty=0.1 tapo.evaluation.every=5 +grpo.use_dynamic_sampling=true",
        "policy.megatron_cfg.enabled=false policy.dtensor_cfg.enabled=true +policy.optimizer.kwargs.lr=1e-6",
        f"checkpointing.checkpoint_dir=results/{'a-long-name/' * 9}x checkpointing.keep_top_k=null",
    ],
)
def test_the_summary_fits_a_screen(tmp_path: Path, overrides: str) -> None:
    """80 x 24 characters, the last row for the shell's prompt."""
    run = cluster_run.load_cluster_run(cluster_file(tmp_path), overrides.split())
    lines = describe_run.describe(run, faults=describe_run.find_faults(run)).splitlines()
    assert len(lines) <= 23 and max(map(len, lines)) <= 80
    assert lines[0].startswith("plan ") and lines[-1].startswith("--full shows")


def test_the_plan_command_refuses_with_exit_code_2(tmp_path: Path) -> None:
    """The summary says which phase does not fit, and the sentences below what to do about it."""
    done = nemo_tapo("plan", "--config", str(cluster_file(tmp_path)), "policy.model_name=Qwen/Qwen3-32B")
    assert done.returncode == 2
    assert "the largest part is" in done.stderr and "Traceback" not in done.stderr
    assert done.stdout.startswith("plan      it cannot run: 3 reason(s), below\n")
    assert "DOES NOT FIT, largest: " in done.stdout
    assert nemo_tapo("plan", "--config", "nothing.yaml").returncode == 2


def test_a_saved_configuration_reads_back(tmp_path: Path) -> None:
    run = load(tmp_path, "tapo.n_pos=3")
    (tmp_path / "saved.yaml").write_text(describe_run.as_yaml(run))
    again = cluster_run.load_cluster_run(tmp_path / "saved.yaml")
    assert (again.master, again.cfg) == (run.master, run.cfg)
    assert is_nemo_rl_config(tmp_path / "saved.yaml")


def test_local_plan_is_what_dry_run_prints() -> None:
    tiny = str(Path(__file__).parents[3] / "examples" / "configs" / "tapo-tiny-1n0g.yaml")
    full, dry = nemo_tapo("plan", "--full", "--config", tiny), nemo_tapo("run", "--dry-run", "--config", tiny)
    assert full.returncode == 0, full.stderr
    assert dry.stdout.startswith("# plan of `nemo-tapo run`\n#  output: ") and "n_pos" not in dry.stdout
    assert full.stdout.startswith(dry.stdout) and yaml.safe_load(full.stdout)["tapo"]["n_pos"] == 2


def test_a_precision_reaches_the_plan(tmp_path: Path) -> None:
    """Its memory, and its name: fp32 is not called bf16."""
    plain, full, mixed = (
        load(tmp_path, *overrides)
        for overrides in (
            [],
            ["+policy.precision=float32"],
            ["+policy.precision=bfloat16", "+policy.generation.vllm_cfg.precision=fp8"],
        )
    )
    sizes = [(r.setup.policy_bytes, r.setup.engine_bytes, r.setup.cache_bytes) for r in (plain, full, mixed)]
    assert sizes == [(2, 2, 2), (4, 4, 4), (2, 1, 2)]
    text = describe_run.describe(full, full=True)
    assert "weights (fp32)" in text and "in fp32" in text and "bf16" not in text


def test_what_a_plan_has_to_know_of_a_step(tmp_path: Path) -> None:
    """Pipelines, the prefilled prefix, dynamic sampling and validation, as the settings say."""
    setup = load(tmp_path).setup
    assert (setup.deferred, setup.barrier, setup.prefilled, setup.sampled_at_most) == (False, False, False, 1.0)
    assert (setup.validate_every, setup.packed, setup.fp8_training) == (None, True, False)
    assert load(tmp_path, "tapo.pipeline=barrier").setup.barrier
    assert load(tmp_path, "policy.generation.vllm_cfg.async_engine=false").setup.barrier  # it answers a whole batch
    assert load(tmp_path, "tapo.prefix=prefilled").setup.prefilled
    sampled = load(tmp_path, "+grpo.use_dynamic_sampling=true", "+grpo.dynamic_sampling_max_gen_batches=3").setup
    assert sampled.sampled_at_most == 3
    sets = "tapo.task={name:mathematics,mathematics:{benchmarks:{a:{path:a.jsonl},b:{path:b.jsonl}}}}"
    validated = load(tmp_path, sets, "tapo.evaluation={every:5,validation_problems:30,validation_samples:4}").setup
    assert (validated.validated, validated.validate_every) == (2 * 30 * 4, 5)
    unpacked = load(tmp_path, "policy.sequence_packing.enabled=false", "policy.logprob_batch_size=2").setup
    assert (unpacked.packed, unpacked.score_batch_tokens) == (False, 2 * 10240)
    assert load(tmp_path, "+policy.megatron_cfg.fp8_cfg.enabled=true").setup.fp8_training
