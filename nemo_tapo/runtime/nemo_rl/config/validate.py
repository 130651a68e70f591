"""Check a NeMo-RL configuration for settings that are not supported and layouts that cannot run.

Each check yields one sentence a fault. NeMo-RL's own trainer would accept some of these settings and stop at others
after the models have been loaded; here all are found before anything is started.
"""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Mapping
from typing import Any

from nemo_tapo.config.algorithms import ALGORITHMS, Teacher
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.planning.cluster_setup import ClusterSetup
from nemo_tapo.planning.model_shape import ModelShape

Master = Mapping[str, Any]
OFF: tuple[Any, ...] = (None, False)
ADAPTERS = "export, refit and the plan's memory are those of a whole model, not of adapters"

# path, allowed values (None: the key may be missing), reason
ALLOWED_SETTINGS: tuple[tuple[str, tuple[Any, ...], str], ...] = (
    ("grpo.zero_variance_prompt_filtering", OFF, "grpo.use_dynamic_sampling replaces such queries instead"),
    ("grpo.batch_multiplier", (None, 1), "dynamic sampling takes a further query only where it replaces one"),
    ("grpo.reward_shaping.enabled", OFF, "the reward is the task's alone (tapo.task.rewards adds others)"),
    ("grpo.reward_scaling.enabled", OFF, "the reward is the task's alone (tapo.task.rewards adds others)"),
    ("grpo.normalize_rewards", (None, True), "advantages are divided by the group's deviation, Eq. 1"),
    ("grpo.adv_estimator.name", (None, "grpo"), "advantages are Eq. 1, 4 and 5 of the paper"),
    ("grpo.advantage_clip_low", (None,), "advantages are not clipped"),
    ("grpo.advantage_clip_high", (None,), "advantages are not clipped"),
    ("grpo.seq_logprob_error_threshold", (None,), "rows are not masked by their train/generation gap"),
    ("grpo.invalid_tool_call_advantage", (None,), "there are no tool calls"),
    ("grpo.malformed_thinking_advantage", (None,), "advantages are the rewards' alone"),
    ("grpo.penalize_invalid_tool_call", OFF, "there are no tool calls"),
    ("grpo.penalize_malformed_thinking", OFF, "advantages are the rewards' alone"),
    ("grpo.use_best_at_k", OFF, "advantages are Eq. 1, 4 and 5 of the paper"),
    ("grpo.use_combined_training", OFF, "advantages are Eq. 1, 4 and 5 of the paper"),
    ("grpo.stop_at_validation_metric", (None,), "a run makes all of its steps"),
    ("grpo.max_rollout_turns", (None, 1), "a response is one turn"),
    ("grpo.deduplicate_multimodal_data", OFF, "queries are text"),
    (
        "reward_penalties.penalize_duplicated_reasoning",
        OFF,
        "the reward is the task's alone (tapo.task.rewards adds others)",
    ),
    (
        "reward_penalties.penalize_empty_final_answer",
        OFF,
        "the reward is the task's alone (tapo.task.rewards adds others)",
    ),
    (
        "reward_penalties.penalize_unwanted_tokens",
        OFF,
        "the reward is the task's alone (tapo.task.rewards adds others)",
    ),
    (
        "reward_penalties.penalize_malformed_think_tag",
        OFF,
        "the reward is the task's alone (tapo.task.rewards adds others)",
    ),
    ("data_plane.enabled", OFF, "it rescales gradients by its own token count; here the normaliser rides in the data"),
    ("on_policy_distillation", (None,), "there is no teacher"),
    ("env.should_use_nemo_gym", OFF, "rollouts are this project's own"),
    ("data.use_multiple_dataloader", OFF, "a step's queries come from one list"),
    ("policy.sequence_packing.fuse_loss", OFF, "the OTS weight needs the logits"),
    (
        "policy.megatron_cfg.use_fused_linear_logprobs",
        OFF,
        "the OTS weight needs the logits",
    ),
    (
        "policy.megatron_cfg.use_linear_ce_fusion_loss",
        OFF,
        "the OTS weight needs the logits",
    ),
    ("policy.megatron_cfg.mtp_num_layers", (None, 0), "multi-token prediction adds a loss of its own"),
    ("policy.draft.enabled", OFF, "the draft model's loss needs data that this loop does not make"),
    ("policy.router_replay.enabled", OFF, "constructed rows have no recorded routes"),
    ("policy.generation.backend", ("vllm",), "no other engine has been connected"),
    ("policy.generation.top_p", (None, 1), "with a cut tail log-probability and entropy are of another distribution"),
    ("policy.generation.top_k", (-1, None), "with a cut tail log-probability and entropy are of another distribution"),
    ("policy.generation.stop_strings", ([], None), "one stop would end rollouts and synthesis alike"),
    (
        "policy.generation.vllm_cfg.kv_cache_dtype",
        (None, "auto"),
        "an FP8 cache needs scales measured under each step's policy, which this loop does not measure",
    ),
    (
        "policy.generation.vllm_cfg.logprobs_mode",
        (None, "processed_logprobs"),
        "importance weights and the engine's gap are of log-probabilities at the engine's temperature",
    ),
    ("policy.generation.bad_words", ([], None), "the loss measures the distribution with every word"),
    ("policy.quant_cfg", (None,), "weights that are quantised while they train have not been tried with this loop"),
    ("policy.generation.quant_cfg", (None,), "a quantised engine has not been tried with this loop"),
    ("policy.generation.real_quant", OFF, "a quantised engine has not been tried with this loop"),
    ("policy.is_vlm", OFF, "queries are text"),
    ("policy.megatron_cfg.peft.enabled", OFF, ADAPTERS),
    ("policy.dtensor_cfg.lora_cfg.enabled", OFF, ADAPTERS),
    ("checkpointing.is_peft", OFF, ADAPTERS),
    ("checkpointing.save_optimizer", (None, True), "a resumed run would begin Adam and the schedule anew"),
    ("checkpointing.ft_save_period", (None,), "checkpointing.save_period alone says how often a checkpoint is saved"),
    ("checkpointing.is_async", OFF, "nothing waits for the writer before the checkpoint gets its final name"),
    ("checkpointing.enabled", (None, True), "a stopped run goes on from its checkpoint (save_period says how often)"),
)


# Keys of `loss_fn` that select another loss than the paper's: (the value that changes nothing, the loss they select).
UNSUPPORTED_LOSSES: Mapping[str, tuple[Any, str]] = {
    "disable_ppo_ratio": (False, "REINFORCE without a ratio"),
    "use_kl_in_reward": (False, "a KL penalty in the reward"),
    "use_on_policy_kl_approximation": (False, "a KL reweighted from the engine's probabilities"),
    "positive_example_nll_weight": (0.0, "VAPO's likelihood of right answers"),
}

# `check_settings` reports these, also where a release has no such key.
CHECKED_PATHS = frozenset(path for path, _, _ in ALLOWED_SETTINGS)


def get_at_path(values: Any, path: str, default: Any = None) -> Any:
    """Return the value at a dotted path, or `default` where a section or key is missing or null.

    >>> get_at_path({"grpo": {"seed": 1}}, "grpo.seed")
    1
    >>> get_at_path({"grpo": None}, "grpo.seed", default=0)
    0
    """
    for name in path.split("."):
        if not isinstance(values, Mapping) or values.get(name) is None:
            return default
        values = values[name]
    return values


def check_settings(master: Master) -> Iterable[str]:
    """Yield one sentence for each setting that this loop does not support.

    >>> faults = list(check_settings({"policy": {"generation": {"backend": "sglang"}}}))
    >>> [fault.partition(":")[0] for fault in faults]
    ['policy.generation.backend = "sglang" is not supported']
    """
    for path, allowed, why in ALLOWED_SETTINGS:
        value = get_at_path(master, path)
        if not _is_one_of(value, allowed):
            given = json.dumps(value, default=str)
            yield f"{path} = {given} is not supported: {why}. Set it to {json.dumps(allowed[-1])}."
    metric = get_at_path(master, "checkpointing.metric_name", "")
    every, period = get_at_path(master, "tapo.evaluation.every"), get_at_path(master, "checkpointing.save_period")
    if metric.startswith("val:") and not (isinstance(every, int) and every > 0 and period and period % every == 0):
        yield (
            f"checkpointing.metric_name = {metric!r}, but no validation comes with every checkpoint: set "
            f"tapo.evaluation.every to a divisor of checkpointing.save_period = {period}, or metric_name to null (the "
            "newest are kept) or to a train: metric."
        )
    yield from _check_backend(master)


def _is_one_of(value: Any, allowed: tuple[Any, ...]) -> bool:
    """Return True if a value is among the allowed ones, true and 1 told apart."""
    return any(value == each and isinstance(value, bool) == isinstance(each, bool) for each in allowed)


def _check_backend(master: Master) -> Iterable[str]:
    """Yield what the chosen kind of policy worker cannot do, or does otherwise than a reader expects."""
    dtensor, save_format = get_at_path(master, "policy.dtensor_cfg", {}), "checkpointing.model_save_format"
    if dtensor.get("enabled") and not dtensor.get("_v2") and get_at_path(master, save_format) is not None:
        yield (
            f"{save_format} = {get_at_path(master, save_format)!r} is for policy.dtensor_cfg._v2=true: the workers "
            "of _v2=false raise an error at the first checkpoint. Set it to null."
        )
    if dtensor.get("enabled") and master["policy"].get("optimizer", {}) is None:
        yield "policy.optimizer = null: DTensor's workers need its name (torch.optim.AdamW) and kwargs (lr, ...)."
    if dtensor.get("enabled") and master["policy"].get("scheduler", {}) is None:
        yield (
            "policy.scheduler = null: DTensor's workers fail on it. Remove the key (~policy.scheduler) for a constant "
            "learning rate."
        )
    schedule = get_at_path(master, "policy.megatron_cfg.scheduler", {})
    iterations = schedule.get("lr_warmup_iters") or 0
    if get_at_path(master, "policy.megatron_cfg.enabled") and iterations and schedule.get("lr_warmup_init") == 0:
        yield (
            "policy.megatron_cfg.scheduler.lr_warmup_init = 0 gives the first update a learning rate of 0, so that its "
            f"step changes nothing: set it to the optimizer's lr / {iterations + 1}."
        )


LAG = "grpo.async_grpo.enabled"
LAG_SETTINGS: tuple[tuple[str, tuple[Any, ...], str], ...] = (  # as ALLOWED_SETTINGS, where LAG is true
    ("grpo.async_grpo.max_trajectory_age_steps", (None, 1), "rollouts are one step old, never more"),
    ("grpo.async_grpo.in_flight_weight_updates", OFF, "a response is sampled by one set of weights from end to end"),
    ("grpo.async_grpo.max_generation_failures", (None, 0), "every rollout of a step is trained on, so none may fail"),
    ("policy.generation.colocated.enabled", (False,), "engines sample while the policy trains, on GPUs of their own"),
    ("policy.generation.vllm_cfg.async_engine", (True,), "NeMo-RL trains this way with the async engine alone"),
    ("loss_fn.use_importance_sampling_correction", (True,), "it corrects for the update between sampling and training"),
)


def check_lag(master: Master) -> Iterable[str]:
    """Yield what does not go with rollouts that are sampled beside the update of the step before.

    >>> list(check_lag({"grpo": {"async_grpo": {"enabled": False, "in_flight_weight_updates": True}}}))
    []
    """
    for path, allowed, why in LAG_SETTINGS if get_at_path(master, LAG) else ():
        if not _is_one_of(value := get_at_path(master, path), allowed):
            yield (
                f"{LAG} = true with {path} = {json.dumps(value, default=str)} is not supported: {why}. Set it to "
                f"{json.dumps(allowed[-1])}."
            )


def check_algorithm(master: Master, cfg: RunConfig) -> Iterable[str]:
    """Yield what an algorithm needs and NeMo-RL's workers lack: they give the loss one policy's log-probabilities."""
    if cfg.tapo.ift_weight > 0 and cfg.constructs:
        yield (
            f"tapo.ift_weight = {cfg.tapo.ift_weight:g} is not supported: its rows come on top of the rows of an "
            "update, whose number NeMo-RL fixes when it starts. Set it to 0, or use the local runtime."
        )
    if cfg.prefilled:
        yield from _check_stop_strings(master)
    if cfg.teacher is not None:
        yield from _check_teacher(cfg.teacher)
    loss = ALGORITHMS[cfg.algorithm].loss_without_ratio
    if loss and get_at_path(master, "loss_fn.use_importance_sampling_correction"):
        yield f"loss_fn.use_importance_sampling_correction: {loss} has no importance ratio; set it to false."


def _check_stop_strings(master: Master) -> Iterable[str]:
    """Yield what keeps an engine from ending a single request at a text, as tapo.prefix: prefilled does."""
    engine = "policy.generation.vllm_cfg"
    if not get_at_path(master, f"{engine}.async_engine"):
        yield (
            "tapo.prefix = prefilled ends requests at a text, and NeMo-RL's sync engine merges the stop strings of all "
            f"requests in a call. Set {engine}.async_engine to true, or tapo.prefix to copied."
        )
    if get_at_path(master, f"{engine}.skip_tokenizer_init"):
        yield f"tapo.prefix = prefilled needs the engine's tokenizer: set {engine}.skip_tokenizer_init to false."


def _check_teacher(teacher: Teacher) -> Iterable[str]:
    """Yield what NeMo-RL's workers, which keep one frozen copy of the policy, cannot do for a teacher."""
    if teacher.divergence != "sampled":
        yield (
            f"tapo.{teacher.section}.divergence = {teacher.divergence} is not supported: it needs the teacher's logits "
            "over the whole vocabulary beside the student's. Set it to sampled, or use the local runtime."
        )
    if teacher.weights != "frozen" or teacher.path is not None:
        yield (
            "a teacher other than the model that the run starts from is not supported: NeMo-RL keeps that one frozen "
            f"copy. Set tapo.{teacher.section}.teacher to frozen and leave tapo.{teacher.path_key} out."
        )


COUNTS = (  # whole numbers from 1 on, where they are given
    "cluster.num_nodes",
    "cluster.gpus_per_node",
    "policy.train_micro_batch_size",
    "policy.logprob_batch_size",
    "policy.logprob_chunk_size",
    "policy.make_sequence_length_divisible_by",
    "policy.max_total_sequence_length",
    "policy.sequence_packing.train_mb_tokens",
    "policy.sequence_packing.logprob_mb_tokens",
    "policy.dynamic_batching.train_mb_tokens",
    "policy.dynamic_batching.logprob_mb_tokens",
    *(
        f"policy.{section}.{name}_parallel_size"
        for section in ("megatron_cfg", "generation.vllm_cfg")
        for name in ("tensor_model", "pipeline_model", "context", "expert_model", "expert_tensor", "tensor", "pipeline")
    ),
    "policy.dtensor_cfg.tensor_parallel_size",
    "policy.dtensor_cfg.context_parallel_size",
)
PRECISIONS = ("float32", "bfloat16", "float16")  # that NeMo-RL's policy workers know


def check_numbers(master: Master) -> Iterable[str]:
    """Yield one sentence for each number that the layout is computed from and that is not one, or is below 1.

    >>> list(check_numbers({"cluster": {"gpus_per_node": 0}}))
    ['cluster.gpus_per_node = 0 is not a whole number from 1 on.']
    """
    for path in COUNTS:
        value = get_at_path(master, path, 1)
        if isinstance(value, float) and value.is_integer():  # of ${div:...}
            continue
        if not isinstance(value, int) or isinstance(value, bool) or value < 1:
            yield f"{path} = {value!r} is not a whole number from 1 on."
    share = get_at_path(master, "policy.generation.vllm_cfg.gpu_memory_utilization", 0.9)
    if not isinstance(share, int | float) or not 0 < share <= 1:
        yield f"policy.generation.vllm_cfg.gpu_memory_utilization = {share!r} is no share of a GPU's memory (0 to 1)."
    precision = get_at_path(master, "policy.precision", "bfloat16")
    if precision not in PRECISIONS:
        yield f"policy.precision = {precision!r} is not one of {', '.join(PRECISIONS)}."


def check_division(master: Master, setup: ClusterSetup) -> Iterable[str]:
    """Yield one sentence for each layout of ranks, engines and nodes that does not fit the cluster."""
    world, model = setup.train_gpus, setup.tp * setup.pp * setup.cp
    there = f"{setup.nodes} x {setup.gpus_per_node} GPUs"
    if world < 1 or setup.engine_gpus < 1:
        yield (
            f"engines and policy do not both fit {there}: with colocated.enabled=false set "
            "policy.generation.colocated.resources (gpus_per_node on one node; num_nodes, and the cluster's "
            "gpus_per_node, on several) so that both have GPUs."
        )
        return
    if world % model:
        yield (
            f"TP {setup.tp} x PP {setup.pp} x CP {setup.cp} = {model} ranks do not divide the policy's {world} GPUs "
            f"({there}): change cluster.num_nodes, cluster.gpus_per_node or the division."
        )
    engine = setup.engine_tp * setup.engine_pp
    if setup.engine_gpus % engine:
        yield f"an engine of TP {setup.engine_tp} x PP {setup.engine_pp} does not divide {setup.engine_gpus} GPUs."
    a_node, several = setup.gpus_per_node, max(engine, setup.gpus_per_node) % min(engine, setup.gpus_per_node)
    if setup.engine_gpus >= engine and several and setup.engine_gpus > a_node:
        yield (
            f"an engine of TP {setup.engine_tp} x PP {setup.engine_pp} = {engine} GPUs neither divides a node's "
            f"{a_node} GPUs nor is a multiple of them."
        )
    if not setup.colocated and setup.nodes > 1 and setup.engine_gpus % setup.gpus_per_node:
        yield (
            "policy.generation.colocated.resources.gpus_per_node must be cluster.gpus_per_node = "
            f"{setup.gpus_per_node} when engines have nodes of their own."
        )
    if setup.megatron and world % (setup.pp * setup.ep * setup.etp):
        yield (
            f"expert parallel {setup.ep} x expert tensor parallel {setup.etp} x PP {setup.pp} does not divide the "
            f"policy's {world} GPUs."
        )
    if setup.sequence_parallel and setup.tp == 1:
        yield "sequence_parallel needs tensor parallelism: set it to false, or TP above 1."
    yield from _check_batching(master, setup)


def _check_batching(master: Master, setup: ClusterSetup) -> Iterable[str]:
    packing, dynamic = (
        bool(get_at_path(master, f"policy.{kind}.enabled")) for kind in ("sequence_packing", "dynamic_batching")
    )
    if packing and dynamic:
        yield "policy.sequence_packing and policy.dynamic_batching exclude each other: disable one."
    if dynamic and setup.pp > 1:
        yield "policy.dynamic_batching does not work with pipeline parallelism: use policy.sequence_packing."
    if setup.cp > 1 and not setup.megatron:
        yield "the loss does not support context parallelism with DTensor: use Megatron, or context_parallel_size=1."
    elif setup.cp > 1 and not packing:
        yield "context parallelism needs policy.sequence_packing.enabled=true."
    multiple = get_at_path(master, "policy.make_sequence_length_divisible_by", 1)
    needed = (2 * setup.cp if setup.cp > 1 else 1) * (setup.tp if setup.sequence_parallel else 1)
    if multiple % needed:
        yield (
            f"policy.make_sequence_length_divisible_by = {multiple} must be a multiple of {needed}: a sequence is cut "
            f"into 2 CP pieces (CP {setup.cp}), and with sequence_parallel each of them into TP (TP {setup.tp})."
        )
    longest = get_at_path(master, "policy.max_total_sequence_length", 1)
    for kind in ("train", "logprob") if packing else ():
        room = get_at_path(master, f"policy.sequence_packing.{kind}_mb_tokens")
        padded = -(-longest // multiple) * multiple
        if room is not None and room < padded:
            yield (
                f"policy.sequence_packing.{kind}_mb_tokens = {room} has no room for the longest row, "
                f"policy.max_total_sequence_length = {longest}"
                + (f", filled up to {padded} (make_sequence_length_divisible_by)." if padded > longest else ".")
            )
    micro, scoring = (
        get_at_path(master, "policy.train_micro_batch_size", 1),
        get_at_path(master, "policy.logprob_batch_size"),
    )
    if setup.tp >= 4 and scoring not in (None, micro) and not os.environ.get("NRL_IGNORE_TP_ACCURACY_CHECK"):
        yield (
            f"policy.logprob_batch_size = {scoring} must equal policy.train_micro_batch_size = {micro} at TP >= 4: "
            "NeMo-RL's kernels give other log-probabilities for another batch size."
        )
    if setup.megatron and get_at_path(master, "policy.logprob_chunk_size") and setup.fp32_logits:
        yield "policy.logprob_chunk_size needs policy.megatron_cfg.defer_fp32_logits=true."


def check_lengths(setup: ClusterSetup, synthesises: bool, template_tokens: int) -> Iterable[str]:
    """Yield one sentence for each length limit that leaves no room for a prompt or a response.

    `synthesises`: the algorithm makes constructions. `template_tokens`: room for the synthesis prompt's fixed text.
    """
    question = setup.max_row - setup.max_response
    if question < 1:
        yield (
            f"a response may have {setup.max_response} tokens and query and response together "
            f"policy.max_total_sequence_length = {setup.max_row}: no room is left for a query. Lower "
            "policy.generation.max_new_tokens or raise policy.max_total_sequence_length."
        )
    if setup.max_row > setup.max_model_len:
        yield (
            f"policy.generation.vllm_cfg.max_model_len = {setup.max_model_len} is less than "
            f"policy.max_total_sequence_length = {setup.max_row}."
        )
    room = setup.max_model_len - setup.max_synthesis - template_tokens - max(question, 0)
    if synthesises and room < setup.max_response:  # two responses of half the longest length
        yield (
            f"policy.generation.vllm_cfg.max_model_len = {setup.max_model_len} is too small for the synthesis: its "
            f"prompt holds the question and two responses, and tapo.max_tokens = {setup.max_synthesis} are kept for "
            f"the answer, which leaves {room} tokens for two responses of up to {setup.max_response} each. Raise it to "
            f"{setup.max_model_len - room + 2 * setup.max_response} for all to fit."
        )


def check_model(shape: ModelShape, setup: ClusterSetup) -> Iterable[str]:
    """Yield one sentence for each setting that this model's shape does not allow."""
    if shape.layers % setup.pp and not setup.uneven_stages:
        yield f"PP {setup.pp} does not divide the model's {shape.layers} layers."
    for name, tp in (("TP", setup.tp), ("the engine's TP", setup.engine_tp)):
        if shape.heads % tp:
            yield f"{name} {tp} does not divide the model's {shape.heads} attention heads."
        if not shape.experts and shape.ffn % tp:
            yield f"{name} {tp} does not divide the model's feed-forward size, {shape.ffn}."
    if shape.experts and shape.ffn % setup.etp:
        yield f"expert tensor parallel {setup.etp} does not divide an expert's feed-forward size, {shape.ffn}."
    if max(shape.kv_heads, setup.engine_tp) % min(shape.kv_heads, setup.engine_tp):
        yield f"of the engine's TP {setup.engine_tp} and {shape.kv_heads} key-value heads, neither divides the other."
    if shape.kv_heads % setup.tp and not shape.latent:
        yield f"TP {setup.tp} does not divide the model's {shape.kv_heads} key-value heads."
    if setup.ep > 1 and shape.experts % setup.ep:
        yield f"expert parallel {setup.ep} does not divide the model's {shape.experts} experts."
    if setup.ep > 1 and not shape.experts:
        yield f"expert_model_parallel_size = {setup.ep} for a model without experts: set it to 1."
    if setup.max_model_len > shape.max_positions:
        yield (
            f"policy.generation.vllm_cfg.max_model_len = {setup.max_model_len} is more than the model's "
            f"{shape.max_positions} positions."
        )


SUPPORTED_TAGS = ("v0.7.0",)  # of nvcr.io/nvidia/nemo-rl, with which this package was checked


def check_container(image: str | None) -> Iterable[str]:
    """Yield a sentence for a released NVIDIA container that is not supported; other images are not checked.

    >>> list(check_container("registry.example.com/my-nemo-rl:1"))
    []
    """
    name, _, tag = (image or "").removeprefix("docker://").partition(":")
    if name.replace("#", "/") == "nvcr.io/nvidia/nemo-rl" and tag not in SUPPORTED_TAGS:
        yield (
            f"container {image} is not supported: its NeMo-RL is older than v0.7.0 or unknown. Use "
            f"nvcr.io/nvidia/nemo-rl:{SUPPORTED_TAGS[-1]}, or an image of your own with a later NeMo-RL."
        )
