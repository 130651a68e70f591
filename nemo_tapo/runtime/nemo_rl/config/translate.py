"""RunConfig and the numbers of a plan, from NeMo-RL's keys and the `tapo` block; each value is carried over once."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from pydantic import ValidationError

from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.config.sections import CheckpointConfig
from nemo_tapo.planning.cluster_setup import Assumptions, Setup, update_rows
from nemo_tapo.runtime.nemo_rl.config.validate import Master, at

SECTIONS = ("task", "opsd", "evaluation", "coldstart", "filter", "judge")  # of RunConfig, under `tapo` as they are
SCALARS = ("algorithm", "output", "parts", "pipeline", "engine_gap_bound", "trajectories_per_step", "max_bad_rows")
PARTS = {"rollout": ("logprobs",), "loss": ("updates_per_batch", "advantage_eps", "kl_rows")}
OWN = ("plan", "container")
DERIVED = {  # RunConfig's key -> NeMo-RL's
    "seed": "grpo.seed",
    "steps": "grpo.max_num_steps",
    "rollout.queries_per_step": "grpo.num_prompts_per_step",
    "rollout.samples_per_query": "grpo.num_generations_per_prompt",
    "rollout.temperature": "policy.generation.temperature",
    "rollout.top_p": "policy.generation.top_p",
    "rollout.max_tokens": "policy.generation.max_new_tokens",
    "model.path": "policy.model_name",
    "model.max_length": "policy.max_total_sequence_length",
    "loss.clip_low": "loss_fn.ratio_clip_min",
    "loss.clip_high": "loss_fn.ratio_clip_max",
    "loss.token_mean": "loss_fn.token_level_loss",
    "loss.kl_coef": "loss_fn.reference_policy_kl_penalty",
    "checkpoint.every": "checkpointing.save_period",
}


# ---- RunConfig -----------------------------------------------------------------------------------------------------


def run_config(master: Master, block: Mapping[str, Any]) -> RunConfig:
    """This package's settings, from NeMo-RL's keys and the `tapo` block."""
    raw: dict[str, Any] = {key: block[key] for key in (*SCALARS, *SECTIONS) if key in block}
    taken = {*SCALARS, *SECTIONS, *PARTS, *OWN}
    raw["tapo"] = {key: value for key, value in block.items() if key not in taken}
    raw["runtime"] = "nemo_rl"
    raw.setdefault("task", {"name": "nemo_rl"})
    raw.setdefault("output", at(master, "checkpointing.checkpoint_dir", "results/tapo"))
    for key, theirs in DERIVED.items():
        if (value := at(master, theirs)) is not None:
            _put(raw, key, value)
    _put(raw, "model.enable_thinking", at(master, "policy.tokenizer.chat_template_kwargs.enable_thinking", True))
    _put(raw, "checkpoint.keep", at(master, "checkpointing.keep_top_k", CheckpointConfig().keep))
    _put(raw, "checkpoint.min_free_gib", 0)  # the checkpoint's size is known: see planning
    _put(raw, "optimizer", _optimizer(master))
    _put(raw, "rollout.logprobs", "always")  # NeMo-RL's engine reports them in any case
    _put(raw, "loss.kl_rows", 0)  # reporting the KL keeps a second copy of the weights: only where it is asked for
    raw["evaluation"] = {"max_tokens": at(master, "policy.generation.max_new_tokens")} | (block.get("evaluation") or {})
    for section in PARTS:
        for key, value in (block.get(section) or {}).items():
            _put(raw, f"{section}.{key}", value)
    try:
        return validate(raw)
    except ValueError as error:
        raise ValueError(_in_their_words(str(error))) from None


def _put(values: dict[str, Any], path: str, value: Any) -> None:
    *sections, leaf = path.split(".")
    for name in sections:
        values = values.setdefault(name, {})
    values[leaf] = value


def _in_their_words(sentence: str) -> str:
    """A fault of a derived key is told under the key that the user wrote."""
    for key, theirs in DERIVED.items():
        sentence = sentence.replace(key, theirs)
    ours = tuple(f"{name}{end}" for name in SECTIONS + SCALARS for end in ".:")
    return "\n".join(f"tapo.{line}" if line.startswith(ours) else line for line in sentence.splitlines())


def _optimizer(master: Master) -> dict[str, Any]:
    """NeMo-RL owns the optimizer; what it is told is shown, and decides whether a checkpoint belongs to the run."""
    theirs = at(master, "policy.megatron_cfg.optimizer") if at(master, "policy.megatron_cfg.enabled") else None
    if theirs is None:
        kwargs = at(master, "policy.optimizer.kwargs", {})
        shown = {key: kwargs[key] for key in ("lr", "betas", "eps", "weight_decay") if key in kwargs}
        return shown | {"clip_norm": at(master, "policy.max_grad_norm", 1.0), "warmup_steps": 0, "schedule": "constant"}
    schedule = at(master, "policy.megatron_cfg.scheduler", {})
    lr = theirs["lr"]
    return {
        "lr": lr,
        "betas": (at(theirs, "adam_beta1", 0.9), at(theirs, "adam_beta2", 0.999)),
        "eps": at(theirs, "adam_eps", 1e-8),
        "weight_decay": at(theirs, "weight_decay", 0.0),
        "clip_norm": at(theirs, "clip_grad", 1.0),
        "warmup_steps": at(schedule, "lr_warmup_iters", 0),
        "schedule": "cosine" if at(schedule, "lr_decay_style") == "cosine" else "constant",
        "min_lr_ratio": min(1.0, at(theirs, "min_lr", 0.0) / lr),
    }


def assumptions(block: Mapping[str, Any]) -> Assumptions:
    try:
        return Assumptions.model_validate(block.get("plan") or {})
    except ValidationError as error:
        lines = [f"tapo.plan.{'.'.join(map(str, e['loc']))}: {e['msg']} (got {e['input']!r})" for e in error.errors()]
        raise ValueError("\n".join(lines)) from None


def keeps_reference(cfg: RunConfig) -> bool:
    """Whether a frozen copy of the initial policy is needed: its KL is penalised or reported, or it teaches."""
    if cfg.algorithm == "reflective_sft":  # likelihood of constructions: no rollout's KL is looked at
        return False
    return cfg.loss.kl_coef > 0 or cfg.loss.kl_rows > 0 or cfg.algorithm == "opsd"


# ---- numbers -------------------------------------------------------------------------------------------------------


def make_setup(master: Master, cfg: RunConfig) -> Setup:
    """Ranks, rows and lengths, from NeMo-RL's keys."""
    policy, generation = master["policy"], master["policy"]["generation"]
    megatron = bool(at(policy, "megatron_cfg.enabled"))
    ranks = policy["megatron_cfg"] if megatron else policy["dtensor_cfg"]
    tp = at(ranks, "tensor_model_parallel_size" if megatron else "tensor_parallel_size", 1)
    pp = at(ranks, "pipeline_model_parallel_size", 1) if megatron else 1
    cp = at(ranks, "context_parallel_size", 1)
    train_gpus, engine_gpus = _gpus(master)
    packed = bool(at(policy, "sequence_packing.enabled") or at(policy, "dynamic_batching.enabled"))
    micro = at(policy, "train_micro_batch_size", 1)
    dp = max(1, train_gpus // (tp * pp * cp))
    P, K, updates = cfg.rollout.queries_per_step, cfg.rollout.samples_per_query, cfg.loss.updates_per_batch
    offloaded = at(ranks, "optimizer.optimizer_offload_fraction", 0.0)
    if not at(ranks, "optimizer.optimizer_cpu_offload"):
        offloaded = 0.0
    most = min(cfg.tapo.m_max, K - cfg.tapo.n_pos) if cfg.constructs else 0
    return Setup(
        nodes=master["cluster"]["num_nodes"],
        gpus_per_node=master["cluster"]["gpus_per_node"],
        train_gpus=train_gpus,
        engine_gpus=engine_gpus,
        megatron=megatron,
        tp=tp,
        pp=pp,
        cp=cp,
        ep=at(ranks, "expert_model_parallel_size", 1),
        etp=at(ranks, "expert_tensor_parallel_size", 1),
        sequence_parallel=bool(at(ranks, "sequence_parallel")),
        recompute=_recompute(ranks),
        micro_batch_tokens=_micro_batch_tokens(policy, micro),
        logit_chunk=at(policy, "logprob_chunk_size", 1024),
        fp32_logits=megatron and not at(ranks, "defer_fp32_logits"),
        fp32_gradients=bool(at(ranks, "distributed_data_parallel_config.grad_reduce_in_fp32")),
        distributed_optimizer=bool(at(ranks, "optimizer.use_distributed_optimizer")),
        precision_aware=bool(at(ranks, "optimizer.use_precision_aware_optimizer")),
        offloaded_optimizer=offloaded,
        colocated=bool(at(generation, "colocated.enabled")),
        engine_tp=at(generation, "vllm_cfg.tensor_parallel_size", 1),
        engine_pp=at(generation, "vllm_cfg.pipeline_parallel_size", 1),
        engine_memory=at(generation, "vllm_cfg.gpu_memory_utilization", 0.9),
        reference=keeps_reference(cfg),
        queries=P,
        samples=K,
        most_constructed=P * most,
        update_rows=update_rows(P, K, most, updates, dp * (1 if packed else micro)),
        updates=updates,
        max_response=cfg.rollout.max_tokens,
        max_synthesis=cfg.tapo.max_tokens,
        max_row=cfg.model.max_length,
        max_model_len=generation["vllm_cfg"]["max_model_len"],
        steps=cfg.steps,
        save_every=cfg.checkpoint.every,
        kept=at(master, "checkpointing.keep_top_k"),
        saves_optimizer=bool(at(master, "checkpointing.save_optimizer", True)),
    )


def _gpus(master: Master) -> tuple[int, int]:
    """GPUs of the policy and of the engines; 0 or less where they do not fit."""
    nodes, each = master["cluster"]["num_nodes"], master["cluster"]["gpus_per_node"]
    colocated = at(master, "policy.generation.colocated", {})
    if at(colocated, "enabled"):
        return nodes * each, nodes * each
    given = at(colocated, "resources.gpus_per_node", 0)
    if nodes == 1:
        return each - given, given
    own = at(colocated, "resources.num_nodes", 0)
    return (nodes - own) * each, own * given


def _recompute(ranks: Mapping[str, Any]) -> frozenset[str]:
    if not at(ranks, "activation_checkpointing"):
        return frozenset()
    if at(ranks, "recompute_granularity", "full") == "full":
        return frozenset({"full"})
    return frozenset(at(ranks, "recompute_modules", ["core_attn"]))


def _micro_batch_tokens(policy: Mapping[str, Any], micro: int) -> int:
    for kind in ("sequence_packing", "dynamic_batching"):
        if at(policy, f"{kind}.enabled"):
            return max(int(policy[kind]["train_mb_tokens"]), int(policy["max_total_sequence_length"]))
    return int(micro) * int(policy["max_total_sequence_length"])
