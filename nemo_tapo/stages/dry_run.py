"""Text of --dry-run: the plan of what the command would do, and on request the resolved configuration."""

from __future__ import annotations

import json
from pathlib import Path

from nemo_tapo.config.run_config import RunConfig, to_yaml
from nemo_tapo.runtime.local_stack import find_local_fault
from nemo_tapo.runtime.registry import SAMPLING_COMMANDS


def describe_command(cfg: RunConfig, command: str, full: bool = False) -> str:
    """Return the plan as comment lines; with `full` also the resolved config after it."""
    plan = [f"# plan of `nemo-tapo {command}`", *(f"#  {line}" for line in plan_command(cfg, command))]
    return "\n".join([*plan, to_yaml(cfg)] if full else plan)


def plan_command(cfg: RunConfig, command: str) -> list[str]:
    """Return the plan of a command, one sentence per line."""
    from nemo_tapo.stages.branch import find_branch
    from nemo_tapo.stages.data_preview import preview_data

    r, t, local = cfg.rollout, cfg.tapo, cfg.local
    rollouts = r.queries_per_step * r.samples_per_query
    max_constructed = r.queries_per_step * min(t.m_max, r.samples_per_query - t.n_pos) if cfg.constructs else 0
    branch = find_branch(cfg, command)
    lines = [f"output: {cfg.output} ({'goes on with what is there' if cfg.output.is_dir() else 'new'})"]
    lines += [branch.sentence] if branch else []
    served = cfg.evaluation.endpoint.url if command == "evaluate" else None
    ranks = f"TP {local.tp} x PP {local.pp} x DP {local.dp} actor ranks, "
    ranks = ranks if command not in SAMPLING_COMMANDS else ""
    lines.append(f"endpoint: {served}" if served else f"runtime: {cfg.runtime}; {ranks}one engine")
    fault = find_local_fault() if cfg.runtime == "local" and not served else None
    lines += [f"cannot start here: {fault}"] if fault else []
    if command in ("run", "train", "coldstart", *SAMPLING_COMMANDS) and not served:
        architecture = find_architecture(cfg) if command in ("run", "train", "coldstart") else ""
        lines.append(f"model: {cfg.model.path}: {architecture}{describe_model_size(cfg.model.path)}")
    if command == "coldstart" or (command == "run" and "coldstart" in cfg.parts):
        c = cfg.coldstart
        lines.append(
            f"cold start: {c.queries or 'all'} queries x {c.samples_per_query} samples, corrected by {c.writer}; at "
            f"most {c.sft_examples} SFT and {c.ift_examples} IFT examples, {c.epochs:g} epochs of "
            f"{c.examples_per_step} a step, lr {c.optimizer.lr:g}"
        )
    if command in ("run", "train"):
        lines.append(
            f"{cfg.algorithm}: {cfg.steps} steps of {r.queries_per_step} queries x {r.samples_per_query} rollouts = "
            f"{rollouts} rows, and at most {max_constructed} constructed rows; "
            f"{cfg.loss.updates_per_batch} update(s) a step"
        )
        if r.lag:
            lines.append("one step off: a step is sampled while the policy trains on the step before (rollout.lag)")
        if cfg.teacher is not None:
            lines.append(f"teacher: {cfg.teacher.description}")
        lines.append(
            f"tokens a step: at most {rollouts * r.max_tokens:,} sampled and "
            f"{max_constructed * t.max_tokens:,} synthesised; "
            f"lr {cfg.optimizer.lr:g}, checkpoint every {cfg.checkpoint.every} steps, {cfg.checkpoint.keep} kept"
        )
    if command in ("run", "train") and cfg.evaluation.every is not None:
        e = cfg.evaluation
        lines.append(
            f"validation: every {e.every} steps, {e.validation_samples} sample(s) of the first {e.validation_problems} "
            f"problems of each held-out set{', the best checkpoint kept' if cfg.checkpoint.keep_best else ''}"
        )
    if command == "evaluate" or (command == "run" and {"before", "after"} & set(cfg.parts)):
        e = cfg.evaluation
        sampling = f"T {e.temperature}, top-p {e.top_p}, at most {e.max_tokens:,} tokens"
        lines.append(f"evaluation: {e.samples} samples a problem x {e.runs} runs, {sampling}")
    if command == "pretrain":
        p = cfg.pretrain
        lines.append(f"base: {p.layers} layers x {p.hidden_size}, {p.steps} steps of {p.examples_per_step} examples")
    if command == "diagnose":
        lines.append(
            f"diagnosis: {cfg.diagnose.queries} training queries x {r.samples_per_query} rollouts, a construction of "
            "each pair, and what follows the first error of each wrong rollout"
        )
    if command == "filter":
        f = cfg.filter
        lines.append(
            f"filter: {f.samples} samples a query, T {f.temperature}, top-p {f.top_p}; "
            f"kept with accuracy in [{f.min_accuracy:g}, {f.max_accuracy:g}]"
        )
    return lines + preview_data(cfg, command)


def find_architecture(cfg: RunConfig) -> str:
    """Return the architecture that the local runtime would train, with a comma; "" on other runtimes or without a file.

    Raises ValueError if the runtime does not have it, or if TP and PP do not divide its sizes.
    """
    if cfg.runtime != "local" or not (cfg.model.path / "config.json").is_file():
        return ""
    from nemo_tapo.runtime.local.hf_checkpoint import read_model_info
    from nemo_tapo.runtime.local.weights import check_layout

    info = read_model_info(cfg.model.path)
    check_layout(info.shape, cfg.local.tp, cfg.local.pp)
    return f"{info.architecture}, "


def describe_model_size(path: Path) -> str:
    """Return the number of parameters of a Hugging Face directory as text, from its safetensors headers alone."""
    files = sorted(path.glob("*.safetensors"))
    if not files:
        return "not there yet" if not path.is_dir() else "no *.safetensors in it"
    parameters = 0
    for file in files:
        with file.open("rb") as handle:
            header = json.loads(handle.read(int.from_bytes(handle.read(8), "little")))
        for name, entry in header.items():
            if name != "__metadata__":
                size = 1
                for dimension in entry["shape"]:
                    size *= dimension
                parameters += size
    return f"{parameters:,} parameters, {parameters * 4 * 3 / 2**20:,.1f} MiB a checkpoint (fp32, AdamW)"
