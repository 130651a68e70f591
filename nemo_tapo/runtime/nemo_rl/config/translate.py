"""Derive RunConfig and the numbers of a plan from NeMo-RL's keys and the `tapo` block; each value has one source."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, TypeVar

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from nemo_tapo.config.algorithms import list_own_sections
from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.config.sections import CheckpointConfig
from nemo_tapo.planning.cluster_setup import Assumptions, ClusterSetup, update_rows
from nemo_tapo.runtime.nemo_rl.config.validate import Master, get_at_path
from nemo_tapo.runtime.nemo_rl.nemo_calls import CALL_TIMEOUT, START_TIMEOUT

SECTIONS = (
    "task",
    *list_own_sections(),
    "evaluation",
    "coldstart",
    "filter",
    "diagnose",
    "judge",
)  # RunConfig's sections, unchanged under `tapo`
SCALARS = (
    "algorithm", "output", "parts", "pipeline", "engine_gap_bound", "trajectories_per_step", "rollouts_gib",
    "record_groups", "max_bad_rows",
)  # fmt: skip
PARTIAL_SECTIONS = {"rollout": ("logprobs",), "loss": ("updates_per_batch", "advantage_eps", "kl_rows")}
CLUSTER_ONLY = ("plan", "container", "start_timeout", "call_timeout")
Checked = TypeVar("Checked", bound=BaseModel)
# tapo.engine_gap_bound, unless it is set: neighbouring logits between 16 and 32 are 2e-6 apart in fp32, 0.125 in bf16.
GAP_BOUND_FP32, GAP_BOUND_HALF = 0.01, 0.05
DERIVED = {  # RunConfig's key -> NeMo-RL's
    "seed": "grpo.seed",
    "steps": "grpo.max_num_steps",
    "rollout.queries_per_step": "grpo.num_prompts_per_step",
    "rollout.samples_per_query": "grpo.num_generations_per_prompt",
    "rollout.temperature": "policy.generation.temperature",
    "rollout.top_p": "policy.generation.top_p",
    "rollout.max_tokens": "policy.generation.max_new_tokens",
    "rollout.dynamic_sampling": "grpo.dynamic_sampling_max_gen_batches",
    "rollout.overlong": "grpo.overlong_filtering",
    "rollout.lag": "grpo.async_grpo.enabled",
    "model.path": "policy.model_name",
    "model.max_length": "policy.max_total_sequence_length",
    "loss.clip_low": "loss_fn.ratio_clip_min",
    "loss.clip_high": "loss_fn.ratio_clip_max",
    "loss.dual_clip": "loss_fn.ratio_clip_c",
    "loss.ratio": "loss_fn.sequence_level_importance_ratios",
    "loss.surrogate": "loss_fn.use_cispo",
    "loss.token_mean": "loss_fn.token_level_loss",
    "loss.kl_coef": "loss_fn.reference_policy_kl_penalty",
    "checkpoint.every": "checkpointing.save_period",
}
PRECISION_BYTES = {"fp8": 1, "bfloat16": 2, "float16": 2, "float32": 4}  # of policy.precision and the engines'
SWITCHES: Mapping[str, Mapping[Any, Any]] = {  # NeMo-RL's key of DERIVED that is true or false -> what these are here
    "loss_fn.sequence_level_importance_ratios": {True: "sequence", False: "token"},
    "grpo.overlong_filtering": {True: "mask", False: "keep"},
    "grpo.async_grpo.enabled": {True: 1, False: 0},
    "loss_fn.use_cispo": {True: "cispo", False: "clipped"},
}


# ---- RunConfig -----------------------------------------------------------------------------------------------------


def make_run_config(master: Master, block: Mapping[str, Any]) -> RunConfig:
    """Return this package's settings from NeMo-RL's keys and the `tapo` block. Raises ValueError for invalid ones."""
    raw: dict[str, Any] = {key: block[key] for key in (*SCALARS, *SECTIONS) if key in block}
    elsewhere = {*SCALARS, *SECTIONS, *PARTIAL_SECTIONS, *CLUSTER_ONLY}
    raw["tapo"] = {key: value for key, value in block.items() if key not in elsewhere}
    raw["runtime"] = "nemo_rl"
    raw.setdefault("task", {"name": "nemo_rl"})
    raw.setdefault("output", get_at_path(master, "checkpointing.checkpoint_dir", "results/tapo"))
    for key, nemo_key in DERIVED.items():
        if (value := get_at_path(master, nemo_key)) is not None:
            _set_at_path(raw, key, SWITCHES.get(nemo_key, {}).get(value, value))
    _set_at_path(raw, "rollout.dynamic_sampling", _read_dynamic_sampling(master))
    _set_at_path(
        raw, "model.enable_thinking", get_at_path(master, "policy.tokenizer.chat_template_kwargs.enable_thinking", True)
    )
    raw.setdefault("engine_gap_bound", choose_gap_bound(master))
    _set_at_path(raw, "checkpoint.keep", get_at_path(master, "checkpointing.keep_top_k", CheckpointConfig().keep))
    _set_at_path(raw, "checkpoint.min_free_gib", 0)  # not needed: planning computes the checkpoint's size
    _set_at_path(raw, "optimizer", _read_optimizer(master))
    _set_at_path(raw, "rollout.logprobs", "always")  # NeMo-RL's engine always reports them
    _set_at_path(raw, "loss.kl_rows", 0)  # off unless set: reporting the KL keeps a second copy of the weights
    # The engine of an evaluation has the evaluation's temperature and length, and a synthesis has others.
    derived = {"max_tokens": get_at_path(master, "policy.generation.max_new_tokens"), "synthesis_queries": 0}
    raw["evaluation"] = derived | (block.get("evaluation") or {})
    for section in PARTIAL_SECTIONS:
        for key, value in (block.get(section) or {}).items():
            _set_at_path(raw, f"{section}.{key}", value)
    try:
        return validate(raw)
    except ValueError as error:
        raise ValueError(_name_nemo_keys(str(error))) from None


def _set_at_path(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, leaf = path.split(".")
    for name in sections:
        values = values.setdefault(name, {})
    values[leaf] = value


def _name_nemo_keys(sentence: str) -> str:
    """Replace keys in an error message by those that the user wrote: NeMo-RL's, or with `tapo` before them."""
    for key, nemo_key in DERIVED.items():
        sentence = sentence.replace(key, nemo_key)
    for section, keys in PARTIAL_SECTIONS.items():
        for key in keys:
            sentence = sentence.replace(f"{section}.{key}", f"tapo.{section}.{key}")
    tapo_keys = tuple(f"{name}{end}" for name in SECTIONS + SCALARS for end in ".:")
    return "\n".join(f"tapo.{line}" if line.startswith(tapo_keys) else line for line in sentence.splitlines())


def choose_gap_bound(master: Master) -> float:
    """Return how far, in nats a token, two computations of one policy may be apart: by the coarser number format.

    >>> choose_gap_bound({"policy": {"precision": "float32"}}), choose_gap_bound({"policy": {"precision": "bfloat16"}})
    (0.01, 0.05)
    """
    policy = get_at_path(master, "policy.precision", "bfloat16")
    engine = get_at_path(master, "policy.generation.vllm_cfg.precision", policy)
    return GAP_BOUND_FP32 if policy == engine == "float32" else GAP_BOUND_HALF


def _read_dynamic_sampling(master: Master) -> Any:
    """Return how many times the queries of a step may be sampled; None if dynamic sampling is off."""
    if not get_at_path(master, "grpo.use_dynamic_sampling"):
        return None
    return get_at_path(master, "grpo.dynamic_sampling_max_gen_batches", 10)  # NeMo-RL's default


def _read_optimizer(master: Master) -> dict[str, Any]:
    """Return NeMo-RL's optimizer settings under this package's keys.

    NeMo-RL owns the optimizer; these are only shown, and compared when a run continues from a checkpoint.
    """
    nemo_optimizer = (
        get_at_path(master, "policy.megatron_cfg.optimizer")
        if get_at_path(master, "policy.megatron_cfg.enabled")
        else None
    )
    if nemo_optimizer is None:
        kwargs = get_at_path(master, "policy.optimizer.kwargs", {})
        adam = {key: kwargs[key] for key in ("lr", "betas", "eps", "weight_decay") if key in kwargs}
        schedule = read_torch_schedule(get_at_path(master, "policy.scheduler"), adam.get("lr"))
        return adam | {"clip_norm": get_at_path(master, "policy.max_grad_norm", 1.0)} | schedule
    schedule = get_at_path(master, "policy.megatron_cfg.scheduler", {})
    lr = nemo_optimizer["lr"]
    return {
        "lr": lr,
        "betas": (get_at_path(nemo_optimizer, "adam_beta1", 0.9), get_at_path(nemo_optimizer, "adam_beta2", 0.999)),
        "eps": get_at_path(nemo_optimizer, "adam_eps", 1e-8),
        "weight_decay": get_at_path(nemo_optimizer, "weight_decay", 0.0),
        "clip_norm": get_at_path(nemo_optimizer, "clip_grad", 1.0),
        "warmup_steps": get_at_path(schedule, "lr_warmup_iters", 0),
        "schedule": "cosine" if get_at_path(schedule, "lr_decay_style") == "cosine" else "constant",
        "min_lr_ratio": min(1.0, get_at_path(nemo_optimizer, "min_lr", 0.0) / lr),
    }


def list_torch_schedulers(scheduler: Any) -> dict[str, Mapping[str, Any]]:
    """Return the settings of each class that `policy.scheduler` of the DTensor workers names, by the class's name.

    >>> list_torch_schedulers({"name": "torch.optim.lr_scheduler.LinearLR", "kwargs": {"total_iters": 9}})
    {'LinearLR': {'total_iters': 9}}
    """
    parts = scheduler if isinstance(scheduler, list) else [scheduler or {}]
    return {str(p["name"]).rpartition(".")[2]: p.get("kwargs") or {} for p in parts if "name" in p}


def read_torch_schedule(scheduler: Any, lr: float | None) -> dict[str, Any]:
    """Return `policy.scheduler` of the DTensor workers under this package's keys.

    A LinearLR over n updates reaches the rate in update n + 1.

    >>> warmup = {"name": "LinearLR", "kwargs": {"start_factor": 0.1, "total_iters": 9}}
    >>> cosine = {"name": "CosineAnnealingLR", "kwargs": {"T_max": 90, "eta_min": 1e-7}}
    >>> read_torch_schedule([warmup, cosine, {"milestones": [9]}], lr=1e-6)
    {'warmup_steps': 10, 'schedule': 'cosine', 'min_lr_ratio': 0.1}
    >>> read_torch_schedule(None, lr=1e-6)
    {'warmup_steps': 0, 'schedule': 'constant'}
    """
    named = list_torch_schedulers(scheduler)
    warmup, cosine = named.get("LinearLR"), named.get("CosineAnnealingLR")
    read: dict[str, Any] = {"warmup_steps": 0 if warmup is None else int(warmup.get("total_iters", 5)) + 1}
    if cosine is None:
        return read | {"schedule": "constant"}
    return read | {"schedule": "cosine", "min_lr_ratio": round(cosine.get("eta_min", 0.0) / lr, 12) if lr else 0.0}


class Timeouts(BaseModel):
    """How long NeMo-RL may take to answer; keys of the `tapo` block.

    >>> Timeouts(call_timeout=600).call_timeout
    600.0
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    start_timeout: float = Field(START_TIMEOUT, gt=0, description="seconds until engines and workers have started")
    call_timeout: float = Field(CALL_TIMEOUT, gt=0, description="seconds of any later call before it counts as hung")


def read_timeouts(block: Mapping[str, Any]) -> Timeouts:
    """Read the deadlines of the `tapo` block. Raises ValueError with one line for each invalid key."""
    return _check_block(Timeouts, {key: block[key] for key in Timeouts.model_fields if key in block}, "tapo")


def _check_block(kind: type[Checked], values: Mapping[str, Any], prefix: str) -> Checked:
    """Return `values` as a `kind`. Raises ValueError with one line for each invalid key below `prefix`."""
    try:
        return kind.model_validate(values)
    except ValidationError as error:
        lines = [f"{prefix}.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise ValueError("\n".join(lines)) from None


def read_assumptions(block: Mapping[str, Any]) -> Assumptions:
    """Read `plan` of the `tapo` block. Raises ValueError with one line for each invalid key.

    >>> read_assumptions({"plan": {"gpu": "H200"}}).gpu
    'H200'
    """
    return _check_block(Assumptions, block.get("plan") or {}, "tapo.plan")


def keeps_reference(cfg: RunConfig) -> bool:
    """Return True if a frozen copy of the initial policy is needed: for a KL penalty or report, or as the teacher."""
    measures_kl = cfg.trains_rollouts and (cfg.loss.kl_coef > 0 or cfg.loss.kl_rows > 0)
    return measures_kl or cfg.teacher is not None


# ---- numbers -------------------------------------------------------------------------------------------------------


def make_setup(master: Master, cfg: RunConfig) -> ClusterSetup:
    """Return the run's ranks, rows and lengths from NeMo-RL's keys."""
    policy = master["policy"]
    megatron = bool(get_at_path(policy, "megatron_cfg.enabled"))
    ranks = policy["megatron_cfg"] if megatron else policy["dtensor_cfg"]
    tp = get_at_path(ranks, "tensor_model_parallel_size" if megatron else "tensor_parallel_size", 1)
    pp = get_at_path(ranks, "pipeline_model_parallel_size", 1) if megatron else 1
    cp = get_at_path(ranks, "context_parallel_size", 1)
    train_gpus, engine_gpus = _count_gpus(master)
    packed = bool(get_at_path(policy, "sequence_packing.enabled") or get_at_path(policy, "dynamic_batching.enabled"))
    micro = get_at_path(policy, "train_micro_batch_size", 1)
    dp = max(1, train_gpus // (tp * pp * cp))
    P, K, updates = cfg.rollout.queries_per_step, cfg.rollout.samples_per_query, cfg.loss.updates_per_batch
    most = min(cfg.tapo.m_max, K - cfg.tapo.n_pos) if cfg.constructs else 0
    return ClusterSetup(
        nodes=master["cluster"]["num_nodes"],
        gpus_per_node=master["cluster"]["gpus_per_node"],
        train_gpus=train_gpus,
        engine_gpus=engine_gpus,
        megatron=megatron,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=get_at_path(ranks, "expert_model_parallel_size", 1),
        etp=get_at_path(ranks, "expert_tensor_parallel_size", 1),
        sequence_parallel=bool(get_at_path(ranks, "sequence_parallel")),
        recompute=_read_recompute(ranks),
        micro_batch_tokens=_count_micro_batch_tokens(policy, micro),
        logit_chunk=get_at_path(policy, "logprob_chunk_size", 1024),
        fp32_logits=megatron and not get_at_path(ranks, "defer_fp32_logits"),
        fp32_gradients=bool(get_at_path(ranks, "distributed_data_parallel_config.grad_reduce_in_fp32")),
        distributed_optimizer=bool(get_at_path(ranks, "optimizer.use_distributed_optimizer")),
        precision_aware=bool(get_at_path(ranks, "optimizer.use_precision_aware_optimizer")),
        offloaded_optimizer=_read_offloaded_share(ranks),
        reference=keeps_reference(cfg),
        queries=P,
        samples=K,
        most_constructed=P * most,
        deferred=cfg.deferred,
        lag=cfg.rollout.lag,
        scores_old=bool(cfg.rollout.lag),
        update_rows=update_rows(P, K, most, updates, dp * (1 if packed else micro)),
        updates=updates,
        max_response=cfg.rollout.max_tokens,
        max_synthesis=cfg.tapo.max_tokens,
        max_row=cfg.model.max_length,
        steps=cfg.steps,
        save_every=cfg.checkpoint.every,
        kept=get_at_path(master, "checkpointing.keep_top_k"),
        saves_optimizer=bool(get_at_path(master, "checkpointing.save_optimizer", True)),
        uneven_stages=any(get_at_path(ranks, f"num_layers_in_{end}_pipeline_stage") for end in ("first", "last")),
        score_batch_tokens=_count_score_tokens(policy),
        packed=packed,
        **_read_engines(policy["generation"]),
        **_read_number_formats(policy, ranks),
        **_read_sampling(master, cfg),
    )


def _read_offloaded_share(ranks: Mapping[str, Any]) -> float:
    """Return the share of the optimizer that stays on the host."""
    offloads = get_at_path(ranks, "optimizer.optimizer_cpu_offload")
    return float(get_at_path(ranks, "optimizer.optimizer_offload_fraction", 0.0)) if offloads else 0.0


def _read_engines(generation: Mapping[str, Any]) -> dict[str, Any]:
    """Return the layout of the engines, as `ClusterSetup` has it."""
    return {
        "colocated": bool(get_at_path(generation, "colocated.enabled")),
        "engine_tp": get_at_path(generation, "vllm_cfg.tensor_parallel_size", 1),
        "engine_pp": get_at_path(generation, "vllm_cfg.pipeline_parallel_size", 1),
        "engine_memory": get_at_path(generation, "vllm_cfg.gpu_memory_utilization", 0.9),
        "max_model_len": generation["vllm_cfg"]["max_model_len"],
    }


def _read_number_formats(policy: Mapping[str, Any], ranks: Mapping[str, Any]) -> dict[str, Any]:
    """Return the number formats of policy and engines, as `ClusterSetup` has them."""
    precision = get_at_path(policy, "precision", "bfloat16")
    engine = get_at_path(policy, "generation.vllm_cfg.precision", precision)
    return {
        "policy_bytes": PRECISION_BYTES.get(precision, 2),
        "engine_bytes": PRECISION_BYTES.get(engine, 2),
        "cache_bytes": 4 if engine == "float32" else 2,
        "fp8_training": bool(get_at_path(ranks, "fp8_cfg.enabled")),
    }


def _read_sampling(master: Master, cfg: RunConfig) -> dict[str, Any]:
    """Return what the engines are asked for besides a step's rollouts, and when, as `ClusterSetup` has it."""
    answers_in_batches = not get_at_path(master, "policy.generation.vllm_cfg.async_engine")
    return {
        "barrier": cfg.pipeline == "barrier" or answers_in_batches,
        "prefilled": cfg.prefilled,
        "sampled_at_most": cfg.rollout.dynamic_sampling or 1.0,
        "validated": _count_validated(cfg),
        "validate_every": cfg.evaluation.every,
    }


def _count_validated(cfg: RunConfig) -> int:
    """Return the responses of a validation between steps, at most: a held-out set may have fewer problems."""
    sets = max(1, len(cfg.task.mathematics.benchmarks)) if cfg.task.name == "mathematics" else 1
    return sets * cfg.evaluation.validation_problems * cfg.evaluation.validation_samples


def _count_gpus(master: Master) -> tuple[int, int]:
    """Return the GPUs of the policy and of the engines; 0 or less where they do not fit.

    >>> cluster = {"num_nodes": 1, "gpus_per_node": 8}
    >>> _count_gpus({"cluster": cluster, "policy": {"generation": {"colocated": {"enabled": True}}}})
    (8, 8)
    """
    nodes, gpus_per_node = master["cluster"]["num_nodes"], master["cluster"]["gpus_per_node"]
    colocated = get_at_path(master, "policy.generation.colocated", {})
    if get_at_path(colocated, "enabled"):
        return nodes * gpus_per_node, nodes * gpus_per_node
    engine_gpus = get_at_path(colocated, "resources.gpus_per_node", 0)  # of one node
    if nodes == 1:
        return gpus_per_node - engine_gpus, engine_gpus
    engine_nodes = get_at_path(colocated, "resources.num_nodes", 0)
    return (nodes - engine_nodes) * gpus_per_node, engine_nodes * engine_gpus


def _read_recompute(ranks: Mapping[str, Any]) -> frozenset[str]:
    if not get_at_path(ranks, "activation_checkpointing"):
        return frozenset()
    if get_at_path(ranks, "recompute_granularity", "full") == "full":
        return frozenset({"full"})
    return frozenset(get_at_path(ranks, "recompute_modules", ["core_attn"]))


def _count_score_tokens(policy: Mapping[str, Any]) -> int:
    """Return the tokens of a micro-batch whose log-probabilities are computed."""
    longest = int(policy["max_total_sequence_length"])
    for kind in ("sequence_packing", "dynamic_batching"):
        if get_at_path(policy, f"{kind}.enabled"):
            return max(int(get_at_path(policy, f"{kind}.logprob_mb_tokens", 0)), longest)
    return int(get_at_path(policy, "logprob_batch_size", 1)) * longest


def _count_micro_batch_tokens(policy: Mapping[str, Any], micro: int) -> int:
    for kind in ("sequence_packing", "dynamic_batching"):
        if get_at_path(policy, f"{kind}.enabled"):
            return max(int(policy[kind]["train_mb_tokens"]), int(policy["max_total_sequence_length"]))
    return int(micro) * int(policy["max_total_sequence_length"])
