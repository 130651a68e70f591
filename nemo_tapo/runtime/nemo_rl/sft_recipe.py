"""Supervised training on a cluster is NeMo-RL's own SFT: the cold start's data, and a configuration for its run_sft.py.

NeMo-RL's loader of config files knows neither this package's folders nor `file.yaml@section`, so what it gets is one
file with everything resolved in it.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.datasets.sft_examples import DATA, EXAMPLES, read
from nemo_tapo.runtime.nemo_rl.config.checkout import compose
from nemo_tapo.runtime.nemo_rl.config.validate import at
from nemo_tapo.utils.files import replace_text

CONFIG = "sft.yaml"
ROOM = 16  # tokens that a chat template may add after the answer; NeMo-RL masks rows that reach its limit, silently


def is_sft(master: Mapping[str, Any]) -> bool:
    """Whether a configuration is of NeMo-RL's SFT and not of a policy's training."""
    return "sft" in master and "grpo" not in master


def check_recipe(cfg: RunConfig) -> None:
    """Raises ValueError for a coldstart.sft_recipe that is none; asked before anything is sampled."""
    if cfg.coldstart.sft_recipe is not None:
        longest = cfg.coldstart.max_length or cfg.model.max_length
        completed(cfg, cfg.output, cfg.coldstart.examples_per_step, longest)


def next_step(cfg: RunConfig, output: Path) -> str:
    """Writes sft.yaml beside the data, if there is a recipe for it; returns what to run next, for the user."""
    examples = read(output / DATA)
    there = f"{len(examples)} examples are in {output / EXAMPLES}"
    if cfg.coldstart.sft_recipe is None:
        return (
            f"{there}; train on them with NeMo-RL's examples/run_sft.py (data.train.dataset_name=ResponseDataset "
            "data.train.data_path=...), or name a recipe of it, tapo.coldstart.sft_recipe=FILE, and run this again."
        )
    master = completed(cfg, output, len(examples), max(example.length for example in examples))
    file = (output / CONFIG).absolute()
    replace_text(file, yaml.safe_dump(master, sort_keys=False))
    return (
        f"{there}. Next, in NeMo-RL's folder: uv run examples/run_sft.py --config {file}\n"
        f"Its {at(master, 'sft.max_num_steps')} steps leave checkpoints in "
        f"{at(master, 'checkpointing.checkpoint_dir')}; converted to a Hugging Face directory, the last one is the "
        "policy.model_name of RL (docs/coldstart.md)."
    )


def completed(cfg: RunConfig, output: Path, examples: int, longest: int) -> dict[str, Any]:
    """The recipe with data, model, steps and schedule filled in, resolved.

    examples: how many there are; longest: tokens of the longest. Raises ValueError for a recipe that cannot train them.
    """
    c, recipe = cfg.coldstart, cfg.coldstart.sft_recipe
    assert recipe is not None
    if not recipe.is_file():
        raise ValueError(f"coldstart.sft_recipe: no config file {recipe}.")
    if examples < c.examples_per_step:
        raise ValueError(
            f"there are {examples} examples, fewer than one step's coldstart.examples_per_step = "
            f"{c.examples_per_step}: NeMo-RL leaves an incomplete batch out, and would train on none."
        )
    steps = max(1, round(c.epochs * (examples // c.examples_per_step)))
    given = {
        "policy.model_name": str(cfg.model.path),
        "policy.train_global_batch_size": c.examples_per_step,
        "data.train.data_path": str((output / EXAMPLES).absolute()),
        "checkpointing.checkpoint_dir": str((output / "sft").absolute()),
        "sft.seed": cfg.seed,
        "sft.max_num_steps": steps,
        "sft.max_num_epochs": -int(-c.epochs // 1),  # whole ones; the steps end the last
    }
    master = compose(recipe, [f"{key}={json.dumps(value)}" for key, value in given.items()])
    if not is_sft(master):
        raise ValueError(f"coldstart.sft_recipe = {recipe} is no recipe of NeMo-RL's SFT: it has no section sft.")
    if at(master, "policy.megatron_cfg.enabled"):
        master["policy"]["megatron_cfg"]["optimizer"] |= {
            "lr": c.optimizer.lr,
            "min_lr": c.optimizer.lr * c.optimizer.min_lr_ratio,
        }
        master["policy"]["megatron_cfg"]["scheduler"] |= {
            "lr_decay_style": c.optimizer.schedule,
            "lr_decay_iters": steps,
            "lr_warmup_iters": min(c.optimizer.warmup_steps, steps - 1),
        }
    else:
        master["policy"]["optimizer"]["kwargs"]["lr"] = c.optimizer.lr
        master["policy"]["scheduler"] = torch_schedulers(c.optimizer, steps)
    limit = at(master, "policy.max_total_sequence_length")
    if longest + ROOM > limit:
        raise ValueError(
            f"{recipe}: policy.max_total_sequence_length = {limit} is too little for examples of {longest} tokens and "
            f"{ROOM} that the chat template may add: NeMo-RL would leave them out without a word. Raise it, or lower "
            "coldstart.max_length."
        )
    return master


def torch_schedulers(optimizer: OptimizerConfig, steps: int) -> dict[str, Any] | list[dict[str, Any]]:
    """`policy.scheduler` of NeMo-RL's DTensor workers: the rates of `equations.schedule`, from one warm-up step on."""
    warmup, kinds = min(optimizer.warmup_steps, steps - 1), "torch.optim.lr_scheduler."
    after = {"name": kinds + "ConstantLR", "kwargs": {"factor": 1.0, "total_iters": steps}}
    if optimizer.schedule == "cosine":
        lowest = optimizer.lr * optimizer.min_lr_ratio
        after = {"name": kinds + "CosineAnnealingLR", "kwargs": {"T_max": steps - warmup, "eta_min": lowest}}
    if warmup <= 1:
        return after
    rising = {"start_factor": 1 / warmup, "end_factor": 1.0, "total_iters": warmup - 1}
    return [{"name": kinds + "LinearLR", "kwargs": rising}, after, {"milestones": [warmup - 1]}]
