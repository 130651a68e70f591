"""A NeMo-RL config file with a `tapo:` block: NeMo-RL's own configuration, this package's RunConfig, and the numbers.

    policy, grpo, loss_fn, data, env, cluster, ...   NeMo-RL's, kept as they are: its tools read them
    tapo:
      algorithm: tapo | grpo | opsd | reflective_sft
      n_pos, n_neg, m_max, lambda, ...               TapoConfig's keys
      task, opsd, evaluation, output, pipeline, ...  RunConfig's keys
      rollout: {logprobs}  loss: {updates_per_batch, advantage_eps, kl_rows}
      plan: {gpu: H100, ...}  container: ...         what `nemo-tapo plan` assumes

What both sides know stands in NeMo-RL's keys alone; translate.py carries it over.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.config.run_config import RunConfig, known_keys
from nemo_tapo.planning.cluster_setup import Assumptions, Setup
from nemo_tapo.runtime.nemo_rl.config import validate
from nemo_tapo.runtime.nemo_rl.config.checkout import HOW, compose, find_source
from nemo_tapo.runtime.nemo_rl.config.known_keys import known_keys as nemo_keys
from nemo_tapo.runtime.nemo_rl.config.known_keys import paths, unknown
from nemo_tapo.runtime.nemo_rl.config.translate import (
    DERIVED,
    OWN,
    PARTS,
    SCALARS,
    SECTIONS,
    assumptions,
    make_setup,
    run_config,
)
from nemo_tapo.runtime.nemo_rl.config.validate import Master, at
from nemo_tapo.runtime.nemo_rl.sft_recipe import is_sft

SECTIONED = ("tapo", "policy", "grpo", "loss_fn", "cluster", "checkpointing")
NO_END = 1_000_000  # NeMo-RL's default max_num_steps: "until the epochs are over"
CHECKED_ELSEWHERE = (  # below these stand names of the user's own
    "tapo.task.mathematics.benchmarks.",
    "tapo.judge.endpoint.extra_body.",
    "tapo.evaluation.endpoint.extra_body.",
    "tapo.coldstart.endpoint.extra_body.",
)
COLDSTART = "`nemo-tapo coldstart` with coldstart.sft_recipe=<this file> makes the data and completes it."
TEMPLATE_TOKENS = 512  # room for the synthesis prompt's own words


@dataclass(frozen=True)
class ClusterRun:
    """Everything that a run on NeMo-RL needs to know before it starts."""

    master: dict[str, Any]  # NeMo-RL's configuration, train_global_batch_size filled in, `tapo` still in it
    cfg: RunConfig
    setup: Setup
    assumed: Assumptions
    notes: tuple[str, ...]  # what a reader of NeMo-RL's keys could misunderstand
    source: Path | None  # of NeMo-RL's known keys; None: they were not checked


def is_nemo_rl(path: Path | None) -> bool:
    """Whether a config file is NeMo-RL's kind: it has its sections, or inherits in its way (by file names)."""
    if path is None or not path.is_file():
        return False
    try:
        raw = yaml.safe_load(path.read_text())
    except yaml.YAMLError:
        return False  # whoever loads it says what is wrong
    if not isinstance(raw, Mapping):
        return False
    defaults = raw.get("defaults", [])
    parents = [defaults] if isinstance(defaults, str) else defaults
    return "policy" in raw or "cluster" in raw or any(str(name).endswith((".yaml", ".yml")) for name in parents)


def load(path: Path, overrides: Sequence[str] = ()) -> ClusterRun:
    """The run that a NeMo-RL file and `key=value` overrides describe.

    Raises ValueError with one sentence a fault: keys that nothing reads, values that do not fit, settings that this
    loop does not do, divisions and lengths that cannot run.
    """
    if not path.is_file():
        raise ValueError(f"no config file {path}")
    master = compose(path, overrides)
    if is_sft(master):
        raise ValueError(f"{path} is a recipe of NeMo-RL's SFT, which its own examples/run_sft.py runs: {COLDSTART}")
    _raise(f"section {name} is not a mapping" for name in SECTIONED if not isinstance(master.get(name, {}), Mapping))
    source = find_source()
    _raise(unknown_keys(master, source))
    _raise(_missing(master))
    block = master.get("tapo") or {}
    cfg = run_config(master, block)
    assumed = assumptions(block)
    setup = make_setup(master, cfg)
    _raise(
        [
            *validate.settings(master),
            *validate.division(master, setup),
            *validate.lengths(setup, cfg.constructs, TEMPLATE_TOKENS),
            *validate.container(block.get("container")),
            *validate.algorithm(master, cfg),
            *_conflicts(master, cfg, setup),
        ]
    )
    master["policy"]["train_global_batch_size"] = setup.update_rows
    return ClusterRun(master, cfg, setup, assumed, tuple(_notes(master, cfg, setup, source)), source)


def _raise(faults: Iterable[str]) -> None:
    faults = list(faults)
    if faults:
        raise ValueError("\n".join(faults))


# ---- keys ----------------------------------------------------------------------------------------------------------


def tapo_keys() -> list[str]:
    """Every key that may stand under `tapo:`, with the prefix."""
    known = set(known_keys(RunConfig))
    keys = [key.removeprefix("tapo.") for key in known if key.startswith("tapo.")]
    keys += [key for key in known if key.split(".")[0] in SECTIONS + SCALARS]
    keys += [*PARTS, *(f"{section}.{key}" for section, parts in PARTS.items() for key in parts)]
    keys += [*OWN, *(f"plan.{key}" for key in known_keys(Assumptions))]
    return sorted(f"tapo.{key}" for key in keys)


def unknown_keys(master: Master, source: Path | None) -> Iterable[str]:
    """One sentence a key that neither NeMo-RL (if its source is there) nor this package reads."""
    ours = tapo_keys()
    for path in _leaves(master.get("tapo") or {}, "tapo."):
        if path in ours or path.startswith(CHECKED_ELSEWHERE):
            continue
        derived = DERIVED.get(path.removeprefix("tapo."))
        yield f"{path} is derived: set {derived} instead." if derived else _nearest(path, ours)
    if source is None:
        return
    keys = nemo_keys(source)
    known = [*paths(keys), *ours]
    for path in unknown({k: v for k, v in master.items() if k != "tapo"}, keys):
        if path not in validate.NAMED:
            yield _nearest(path, known)


def _leaves(values: Mapping[str, Any], prefix: str) -> Iterable[str]:
    for name, value in values.items():
        yield f"{prefix}{name}"
        if isinstance(value, Mapping):
            yield from _leaves(value, f"{prefix}{name}.")


def _nearest(path: str, known: Sequence[str]) -> str:
    """The nearest key: of the same section if one is like it, else the same name elsewhere, else any."""
    section, _, leaf = path.rpartition(".")
    siblings = [key for key in known if key.rpartition(".")[0] == section]
    near = difflib.get_close_matches(path, siblings, n=1, cutoff=0.75)
    near = near or [key for key in known if key.rpartition(".")[2] == leaf]
    near = near or difflib.get_close_matches(path, known, n=1, cutoff=0.0)
    return f"unknown key '{path}': nothing reads it; did you mean '{near[0]}'?"


NUMBERS = (  # whole, and without a default
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
NEEDED = (*NUMBERS, "policy.model_name", "policy.generation.temperature", "policy.train_global_batch_size")


def _missing(master: Master) -> Iterable[str]:
    for key in NEEDED:
        value = at(master, key)
        if value is None:
            yield f"{key} is not set: NeMo-RL has no default for it (inherit one of its recipes, `defaults: ...`)."
        elif key in NUMBERS and not isinstance(value, int):
            yield f"{key} = {value!r} is not a whole number."
    backends = [bool(at(master, f"policy.{name}.enabled")) for name in ("megatron_cfg", "dtensor_cfg")]
    if sum(backends) != 1:
        yield "exactly one of policy.megatron_cfg.enabled and policy.dtensor_cfg.enabled must be true."


# ---- what does not go together -------------------------------------------------------------------------------------


def _conflicts(master: Master, cfg: RunConfig, setup: Setup) -> Iterable[str]:
    """Settings of both sides against each other."""
    batch = master["policy"]["train_global_batch_size"]
    if batch not in ("auto", setup.update_rows):
        yield (
            f"policy.train_global_batch_size = {batch}, but an update has {setup.update_rows} rows "
            f"({setup.originals} rollouts and at most {setup.most_constructed} constructed rows in {setup.updates} "
            f"update(s), a multiple of DP {setup.dp}; the rest is filled with masked rows): set it to auto."
        )
    if cfg.steps >= NO_END:
        yield f"grpo.max_num_steps = {cfg.steps} means 'until the epochs are over'; this loop counts steps: set it."
    if cfg.constructs and cfg.tapo.temperature != cfg.rollout.temperature:
        yield (
            f"tapo.temperature = {cfg.tapo.temperature:g}, but NeMo-RL's engine samples everything at "
            f"policy.generation.temperature = {cfg.rollout.temperature:g}: set them alike."
        )
    if cfg.loss.kl_coef > 0 and at(master, "grpo.skip_reference_policy_logprobs_calculation"):
        yield (
            "grpo.skip_reference_policy_logprobs_calculation=true and loss_fn.reference_policy_kl_penalty > 0 "
            "contradict each other."
        )
    if setup.updates > 1 and at(master, "loss_fn.force_on_policy_ratio"):
        yield "loss_fn.force_on_policy_ratio=true needs one update a batch: set tapo.loss.updates_per_batch to 1."
    if cfg.rollout.logprobs != "always" and at(master, "loss_fn.use_importance_sampling_correction"):
        yield (
            f"tapo.rollout.logprobs={cfg.rollout.logprobs}, but loss_fn.use_importance_sampling_correction needs the "
            "engine's log-probabilities at every step: leave it at always."
        )
    if setup.engine_pp > 1 and not at(master, "policy.generation.vllm_cfg.async_engine"):
        yield "an engine with pipeline_parallel_size > 1 needs policy.generation.vllm_cfg.async_engine=true."
    yield from _loss(master)


def _loss(master: Master) -> Iterable[str]:
    """What the loss itself refuses of loss_fn."""
    from nemo_tapo.runtime.nemo_rl.loss_setup import read_settings

    try:
        read_settings(at(master, "loss_fn", {}))
    except ValueError as error:
        yield str(error)


def _notes(master: Master, cfg: RunConfig, setup: Setup, source: Path | None) -> Iterable[str]:
    """What is read otherwise than in NeMo-RL's own trainer, or not at all."""
    if source is None:
        yield f"NeMo-RL's keys were not checked for misspellings: {HOW}"
    if at(master, "grpo.use_leave_one_out_baseline"):
        yield "grpo.use_leave_one_out_baseline is not used: a group's mean and deviation are over all its rows (Eq. 1)"
    if (at(master, "grpo.val_period", 0) or 0) > 0:
        yield "grpo.val_* are not used: evaluate a checkpoint with `nemo-tapo evaluate`"
    yield "grpo.max_num_epochs is not used: the run ends after grpo.max_num_steps, queries are dealt out in epochs"
    if cfg.task.name != "nemo_rl":
        yield f"data and env are not used: queries and verifier are tapo.task ({cfg.task.name})"
    if setup.updates > 1:
        yield (
            f"the learning rate's schedule counts updates, {cfg.steps} steps x {setup.updates}: lr_warmup_iters and "
            "lr_decay_iters are in updates"
        )
    if not (cfg.loss.kl_coef or cfg.loss.kl_rows or cfg.algorithm == "reflective_sft"):
        yield "the KL to the reference is not reported: tapo.loss.kl_rows=64 does, for a second copy of the weights"
    room = setup.max_model_len - setup.max_synthesis - TEMPLATE_TOKENS - (setup.max_row - setup.max_response)
    if cfg.constructs and room < 2 * setup.max_response:
        yield (
            f"a pair whose two responses are together longer than about {room} tokens is dropped and counted as "
            "prompt_too_long (policy.generation.vllm_cfg.max_model_len)"
        )
