"""Load and check a NeMo-RL config file with a `tapo:` block.

    policy, grpo, loss_fn, data, env, cluster, ...   NeMo-RL's, kept as they are: its tools read them
    tapo:
      algorithm: tapo | grpo | opsd | reflective_sft
      n_pos, n_neg, m_max, lambda, ...               TapoConfig's keys
      task, opsd, evaluation, output, pipeline, ...  RunConfig's keys
      rollout: {logprobs}  loss: {updates_per_batch, advantage_eps, kl_rows}
      plan: {gpu: H100, ...}  container: ...         what `nemo-tapo plan` assumes
      start_timeout, call_timeout                    seconds that NeMo-RL may take to answer

A value that both sides need is set by NeMo-RL's key only; translate.py copies it to RunConfig.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.config.run_config import RunConfig, list_known_keys
from nemo_tapo.planning.cluster_setup import Assumptions, ClusterSetup
from nemo_tapo.runtime.nemo_rl.config import validate
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config, find_source, get_source_hint
from nemo_tapo.runtime.nemo_rl.config.key_fates import find_unexplained
from nemo_tapo.runtime.nemo_rl.config.known_keys import find_unknown_paths, list_paths, read_known_keys
from nemo_tapo.runtime.nemo_rl.config.translate import (
    CLUSTER_ONLY,
    DERIVED,
    PARTIAL_SECTIONS,
    SCALARS,
    SECTIONS,
    list_torch_schedulers,
    make_run_config,
    make_setup,
    read_assumptions,
    read_timeouts,
)
from nemo_tapo.runtime.nemo_rl.config.validate import Master, get_at_path
from nemo_tapo.runtime.nemo_rl.sft_recipe import is_sft

MAPPING_SECTIONS = ("tapo", "policy", "grpo", "loss_fn", "cluster", "checkpointing")
UNLIMITED_STEPS = 1_000_000  # NeMo-RL's default max_num_steps: "until the epochs are over"
FREE_PREFIXES = (  # the user chooses the names below these
    "tapo.task.mathematics.benchmarks.",
    "tapo.judge.endpoint.extra_body.",
    "tapo.evaluation.endpoint.extra_body.",
    "tapo.coldstart.endpoint.extra_body.",
)
COLDSTART = "`nemo-tapo coldstart` with coldstart.sft_recipe=<this file> makes the data and completes it."
SHOWN_SCHEDULERS = {"LinearLR", "ConstantLR", "CosineAnnealingLR"}  # see translate.read_torch_schedule
TEMPLATE_TOKENS = 512  # room for the fixed text of the synthesis prompt


@dataclass(frozen=True)
class ClusterRun:
    """A checked run on NeMo-RL, before anything is started."""

    master: dict[str, Any]  # NeMo-RL's configuration, train_global_batch_size filled in, `tapo` still in it
    cfg: RunConfig
    setup: ClusterSetup
    assumed: Assumptions
    notes: tuple[str, ...]  # for a reader of NeMo-RL's keys: what is unused or has another meaning here
    source: Path | None  # the checkout that NeMo-RL's known keys come from; None: they were not checked


def is_nemo_rl_config(path: Path | None) -> bool:
    """Return True if a config file is NeMo-RL's kind: it has its sections, or inherits from files by their names."""
    if path is None or not path.is_file():
        return False
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError, RecursionError):
        return False  # loading the file will raise the error
    if not isinstance(raw, Mapping):
        return False
    defaults = raw.get("defaults", [])
    parents = defaults if isinstance(defaults, list) else [defaults]
    return "policy" in raw or "cluster" in raw or any(str(name).endswith((".yaml", ".yml")) for name in parents)


def load_cluster_run(path: Path, overrides: Sequence[str] = ()) -> ClusterRun:
    """Load the run that a NeMo-RL file and `key=value` overrides describe.

    Raises ValueError with one sentence a fault: keys that nothing reads, invalid values, settings that this loop does
    not support, layouts and lengths that cannot run.
    """
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    master = compose_config(path, overrides)
    if is_sft(master):
        raise ValueError(f"{path} is a recipe of NeMo-RL's SFT, which its own examples/run_sft.py runs: {COLDSTART}")
    _raise_faults(
        f"section {name} is not a mapping" for name in MAPPING_SECTIONS if not isinstance(master.get(name, {}), Mapping)
    )
    source = find_source()
    _raise_faults(find_unknown_keys(master, source))
    _raise_faults([*_find_missing(master), *validate.check_numbers(master)])
    block = master.get("tapo") or {}
    cfg = make_run_config(master, block)
    assumed = read_assumptions(block)
    read_timeouts(block)  # the runtime reads them again; invalid ones are told here
    setup = make_setup(master, cfg)
    _raise_faults(
        [
            *validate.check_settings(master),
            *validate.check_lag(master),
            *validate.check_division(master, setup),
            *validate.check_lengths(setup, cfg.constructs, TEMPLATE_TOKENS),
            *validate.check_container(block.get("container")),
            *validate.check_algorithm(master, cfg),
            *_find_conflicts(master, cfg, setup),
        ]
    )
    master["policy"]["train_global_batch_size"] = setup.update_rows
    return ClusterRun(master, cfg, setup, assumed, tuple(_collect_notes(master, cfg, setup, source)), source)


def _raise_faults(faults: Iterable[str]) -> None:
    faults = list(faults)
    if faults:
        raise ValueError("\n".join(faults))


# ---- keys ----------------------------------------------------------------------------------------------------------


def list_tapo_keys() -> list[str]:
    """Return every key that may be set under `tapo:`, with the prefix, sorted.

    >>> "tapo.n_pos" in list_tapo_keys(), "tapo.seed" in list_tapo_keys()
    (True, False)
    """
    known = set(list_known_keys(RunConfig))
    keys = [key.removeprefix("tapo.") for key in known if key.startswith("tapo.")]
    keys += [key for key in known if key.split(".")[0] in SECTIONS + SCALARS]
    keys += [*PARTIAL_SECTIONS, *(f"{section}.{key}" for section, parts in PARTIAL_SECTIONS.items() for key in parts)]
    keys += [*CLUSTER_ONLY, *(f"plan.{key}" for key in list_known_keys(Assumptions))]
    return sorted(f"tapo.{key}" for key in keys)


def find_unknown_keys(master: Master, source: Path | None) -> Iterable[str]:
    """Yield one sentence for each key that neither this package reads nor NeMo-RL, if its source is available."""
    ours = list_tapo_keys()
    for path in _list_paths(master.get("tapo") or {}, "tapo."):
        if path in ours or path.startswith(FREE_PREFIXES):
            continue
        derived = DERIVED.get(path.removeprefix("tapo."))
        yield f"{path} is derived: set {derived} instead." if derived else _suggest_key(path, ours)
    if source is None:
        return
    keys = read_known_keys(source)
    known = [*list_paths(keys), *ours]
    for path in find_unknown_paths({k: v for k, v in master.items() if k != "tapo"}, keys):
        if path not in validate.CHECKED_PATHS:
            yield _suggest_key(path, known)


def _list_paths(values: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _list_paths(value, f"{prefix}{name}.")


def _suggest_key(path: str, known: Sequence[str]) -> str:
    """Return a message that suggests the nearest known key.

    That is a similar key of the same section, else one with the same name elsewhere, else the most similar of all.
    """
    section, _, leaf = path.rpartition(".")
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(path, siblings, n=1, cutoff=0.75)
    near = near or [key for key in known if key.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return f"unknown key '{path}': nothing reads it; did you mean '{near[0]}'?"


REQUIRED_NUMBERS = (  # whole numbers without a default
    "grpo.num_prompts_per_step",
    "grpo.num_generations_per_prompt",
    "grpo.max_num_steps",
    "grpo.seed",
    "cluster.num_nodes",
    "cluster.gpus_per_node",
    "checkpointing.save_period",
    "policy.max_total_sequence_length",
    "policy.generation.max_new_tokens",
    "policy.generation.vllm_cfg.max_model_len",
)
REQUIRED_KEYS = (
    *REQUIRED_NUMBERS,
    "policy.model_name",
    "policy.generation.temperature",
    "policy.train_global_batch_size",
)


def _find_missing(master: Master) -> Iterable[str]:
    for key in REQUIRED_KEYS:
        value = get_at_path(master, key)
        if value is None:
            yield f"{key} is not set: NeMo-RL has no default for it (inherit one of its recipes, `defaults: ...`)."
        elif key in REQUIRED_NUMBERS and not isinstance(value, int):
            yield f"{key} = {value!r} is not a whole number."
    backends = [bool(get_at_path(master, f"policy.{name}.enabled")) for name in ("megatron_cfg", "dtensor_cfg")]
    if sum(backends) != 1:
        yield "exactly one of policy.megatron_cfg.enabled and policy.dtensor_cfg.enabled must be true."


# ---- what does not go together -------------------------------------------------------------------------------------


def _find_conflicts(master: Master, cfg: RunConfig, setup: ClusterSetup) -> Iterable[str]:
    """Yield one sentence for each pair of settings that contradict each other."""
    batch = master["policy"]["train_global_batch_size"]
    if batch not in ("auto", setup.update_rows):
        yield (
            f"policy.train_global_batch_size = {batch}, but an update has {setup.update_rows} rows "
            f"({setup.originals} rollouts and at most {setup.most_constructed} constructed rows in {setup.updates} "
            f"update(s), a multiple of DP {setup.dp}; the rest is filled with masked rows): set it to auto."
        )
    if cfg.steps >= UNLIMITED_STEPS:
        yield f"grpo.max_num_steps = {cfg.steps} means 'until the epochs are over'; this loop counts steps: set it."
    if cfg.constructs and cfg.tapo.temperature != cfg.rollout.temperature:
        yield (
            f"tapo.temperature = {cfg.tapo.temperature:g}, but NeMo-RL's engine samples everything at "
            f"policy.generation.temperature = {cfg.rollout.temperature:g}: set them alike."
        )
    if cfg.loss.kl_coef > 0 and get_at_path(master, "grpo.skip_reference_policy_logprobs_calculation"):
        yield (
            "grpo.skip_reference_policy_logprobs_calculation=true and loss_fn.reference_policy_kl_penalty > 0 "
            "contradict each other."
        )
    if setup.updates > 1 and get_at_path(master, "loss_fn.force_on_policy_ratio"):
        yield "loss_fn.force_on_policy_ratio=true needs one update a batch: set tapo.loss.updates_per_batch to 1."
    if cfg.loss.surrogate == "cispo" and get_at_path(master, "loss_fn.force_on_policy_ratio"):
        yield "loss_fn.use_cispo and loss_fn.force_on_policy_ratio contradict each other: CISPO weighs by the ratio."
    if cfg.rollout.logprobs != "always" and get_at_path(master, "loss_fn.use_importance_sampling_correction"):
        yield (
            f"tapo.rollout.logprobs={cfg.rollout.logprobs}, but loss_fn.use_importance_sampling_correction needs the "
            "engine's log-probabilities at every step: leave it at always."
        )
    if setup.engine_pp > 1 and not get_at_path(master, "policy.generation.vllm_cfg.async_engine"):
        yield "an engine with pipeline_parallel_size > 1 needs policy.generation.vllm_cfg.async_engine=true."
    yield from _find_loss_faults(master)


def _find_loss_faults(master: Master) -> Iterable[str]:
    """Yield what the loss does not support of `loss_fn`."""
    from nemo_tapo.runtime.nemo_rl.loss_setup import read_loss_settings

    try:
        read_loss_settings(get_at_path(master, "loss_fn", {}))
    except ValueError as error:
        yield str(error)


def _collect_notes(master: Master, cfg: RunConfig, setup: ClusterSetup, source: Path | None) -> Iterable[str]:
    """Yield one note for each setting that means something else than in NeMo-RL's own trainer, or is not used."""
    if source is None:
        yield f"NeMo-RL's keys were not checked for misspellings: {get_source_hint()}"
    if unexplained := find_unexplained(master):
        yield f"{', '.join(unexplained)}: this loop does not know what reads them; docs/cluster.md lists what it knows"
    if get_at_path(master, "grpo.use_leave_one_out_baseline"):
        yield "grpo.use_leave_one_out_baseline is not used: a group's mean and deviation are over all its rows (Eq. 1)"
    if (get_at_path(master, "grpo.val_period", 0) or 0) > 0:
        yield "grpo.val_* are not used: tapo.evaluation.every validates between steps"
    if cfg.rollout.dynamic_sampling is not None:
        yield (
            f"dynamic sampling samples up to {cfg.rollout.dynamic_sampling:g} times as many queries as a step has; the "
            "plan's time is for tapo.plan.uniform_share of equal rewards"
        )
    for key in ("async_save", "ckpt_assume_constant_structure"):
        if get_at_path(master, f"policy.megatron_cfg.checkpoint.{key}"):
            yield f"policy.megatron_cfg.checkpoint.{key} is set to false: a checkpoint is complete when it is named"
    unread = list_torch_schedulers(get_at_path(master, "policy.scheduler")).keys() - SHOWN_SCHEDULERS
    if not setup.megatron and unread:
        yield f"policy.scheduler has {', '.join(sorted(unread))}, which the settings above do not show"
    yield "grpo.seed decides queries and pairs; NeMo-RL's engines take no seed from it, but their place in the cluster"
    yield "grpo.max_num_epochs is not used: the run ends after grpo.max_num_steps, queries are dealt out in epochs"
    if cfg.task.name != "nemo_rl":
        yield f"data and env are not used: queries and verifier are tapo.task ({cfg.task.name})"
    if setup.updates > 1:
        yield (
            f"the learning rate's schedule counts updates, {cfg.steps} steps x {setup.updates}: lr_warmup_iters and "
            "lr_decay_iters are in updates"
        )
    if not (cfg.loss.kl_coef or cfg.loss.kl_rows or not cfg.trains_rollouts):
        yield "the KL to the reference is not reported: tapo.loss.kl_rows=64 does, for a second copy of the weights"
    room = setup.max_model_len - setup.max_synthesis - TEMPLATE_TOKENS - (setup.max_row - setup.max_response)
    if cfg.constructs and room < 2 * setup.max_response:
        yield (
            f"a pair whose two responses are together longer than about {room} tokens is dropped and counted as "
            "prompt_too_long (policy.generation.vllm_cfg.max_model_len)"
        )
