"""Write the configuration with which NeMo-RL's run_sft.py trains on the cold start's data.

On a cluster NeMo-RL's own SFT does the supervised training. Its config loader knows neither this package's folders nor
the notation `file.yaml@section`, so it gets one file in which everything is resolved.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

import nemo_tapo
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import OptimizerConfig
from nemo_tapo.datasets.sft_examples import DATA_FILE, EXAMPLES_FILE, read_examples
from nemo_tapo.runtime.nemo_rl.config.checkout import compose_config
from nemo_tapo.runtime.nemo_rl.config.validate import get_at_path
from nemo_tapo.utils.files import replace_text

SFT_CONFIG = "sft.yaml"
TEMPLATE_MARGIN = (
    16  # tokens a chat template may add after the answer; NeMo-RL silently masks rows that reach its limit
)


def is_sft(master: Mapping[str, Any]) -> bool:
    """Return True for a configuration of NeMo-RL's SFT, False for one of RL.

    >>> is_sft({"policy": {}, "sft": {}}), is_sft({"policy": {}, "grpo": {}})
    (True, False)
    """
    return "sft" in master and "grpo" not in master


def check_recipe(cfg: RunConfig) -> None:
    """Raise ValueError for a coldstart.sft_recipe that NeMo-RL cannot train; called before anything is sampled."""
    if cfg.coldstart.sft_recipe is not None:
        longest = cfg.coldstart.max_length or cfg.model.max_length
        complete_recipe(cfg, cfg.output, cfg.coldstart.examples_per_step, longest)


def prepare_next_step(cfg: RunConfig, output: Path) -> str:
    """Write sft.yaml beside the data, if a recipe is set; return a text that tells the user what to run next."""
    examples = read_examples(output / DATA_FILE)
    there = f"{len(examples)} examples are in {output / EXAMPLES_FILE}"
    if cfg.coldstart.sft_recipe is None:
        return (
            f"{there}; train on them with NeMo-RL's examples/run_sft.py (data.train.dataset_name=ResponseDataset "
            "data.train.data_path=...), or name a recipe of it, tapo.coldstart.sft_recipe=FILE, and run this again."
        )
    master = complete_recipe(cfg, output, len(examples), max(example.length for example in examples))
    file = (output / SFT_CONFIG).absolute()
    replace_text(file, yaml.safe_dump(master, sort_keys=False))
    return (
        f"{there}. Next, in NeMo-RL's folder: uv run examples/run_sft.py --config {file}\n"
        f"Its {get_at_path(master, 'sft.max_num_steps')} steps leave checkpoints in "
        f"{get_at_path(master, 'checkpointing.checkpoint_dir')}; converted to a Hugging Face directory, the last one "
        "is the policy.model_name of RL (docs/coldstart.md)."
    )


def locate_recipe(recipe: Path) -> Path:
    """Return the recipe's path: relative to the working directory, else to the folder that has this package.

    (A path that the config file itself can reach is absolute already, see `config/checkout.py`.) Raises ValueError if
    it is in neither place.
    """
    places = [Path.cwd() / recipe, Path(nemo_tapo.__file__).parents[1] / recipe]
    for place in places:
        if place.is_file():
            return place
    raise ValueError(f"coldstart.sft_recipe: no config file {' or '.join(dict.fromkeys(map(str, places)))}.")


def complete_recipe(cfg: RunConfig, output: Path, examples: int, longest: int) -> dict[str, Any]:
    """Return the resolved recipe with data, model, steps and schedule filled in.

    `examples` is their number, `longest` the tokens of the longest one. Raises ValueError for a recipe that cannot
    train on them.
    """
    c = cfg.coldstart
    assert c.sft_recipe is not None
    recipe = locate_recipe(c.sft_recipe)
    if examples < c.examples_per_step:
        raise ValueError(
            f"there are {examples} examples, fewer than one step's coldstart.examples_per_step = "
            f"{c.examples_per_step}: NeMo-RL leaves an incomplete batch out, and would train on none."
        )
    steps = max(1, round(c.epochs * (examples // c.examples_per_step)))
    values = {
        "policy.model_name": str(cfg.model.path),
        "policy.train_global_batch_size": c.examples_per_step,
        "data.train.data_path": str((output / EXAMPLES_FILE).absolute()),
        "checkpointing.checkpoint_dir": str((output / "sft").absolute()),
        "sft.seed": cfg.seed,
        "sft.max_num_steps": steps,
        "sft.max_num_epochs": -int(-c.epochs // 1),  # rounded up; max_num_steps ends the last epoch early
    }
    master = compose_config(recipe, [f"{key}={json.dumps(value)}" for key, value in values.items()])
    if not is_sft(master):
        raise ValueError(f"coldstart.sft_recipe = {recipe} is no recipe of NeMo-RL's SFT: it has no section sft.")
    if get_at_path(master, "policy.megatron_cfg.enabled"):
        master["policy"]["megatron_cfg"]["optimizer"] |= {
            "lr": c.optimizer.lr,
            "min_lr": c.optimizer.lr * c.optimizer.min_lr_ratio,
        }
        master["policy"]["megatron_cfg"]["scheduler"] |= make_megatron_scheduler(c.optimizer, steps)
    else:
        master["policy"]["optimizer"]["kwargs"]["lr"] = c.optimizer.lr
        master["policy"]["scheduler"] = make_torch_schedulers(c.optimizer, steps)
    limit = get_at_path(master, "policy.max_total_sequence_length")
    if longest + TEMPLATE_MARGIN > limit:
        raise ValueError(
            f"{recipe}: policy.max_total_sequence_length = {limit} is too little for examples of {longest} tokens and "
            f"{TEMPLATE_MARGIN} that the chat template may add: NeMo-RL would leave them out without a word. Raise it, "
            "or lower coldstart.max_length."
        )
    return master


def make_megatron_scheduler(optimizer: OptimizerConfig, steps: int) -> dict[str, Any]:
    """Return `policy.megatron_cfg.scheduler` for the learning rates of `local.lr_schedule`.

    Megatron counts the updates done, not the one at hand: with lr_warmup_init = 0 the first would have rate 0.

    >>> make_megatron_scheduler(OptimizerConfig(lr=1e-4, schedule="cosine", warmup_steps=4), steps=10)
    {'lr_decay_style': 'cosine', 'lr_decay_iters': 9, 'lr_warmup_iters': 3, 'lr_warmup_init': 2.5e-05}
    """
    warmup = max(1, min(optimizer.warmup_steps, steps - 1))
    return {
        "lr_decay_style": optimizer.schedule,
        "lr_decay_iters": max(1, steps - 1),
        "lr_warmup_iters": warmup - 1,
        "lr_warmup_init": optimizer.lr / warmup,
    }


def make_torch_schedulers(optimizer: OptimizerConfig, steps: int) -> dict[str, Any] | list[dict[str, Any]]:
    """Return `policy.scheduler` for NeMo-RL's DTensor workers: the learning rates of `equations.schedule`.

    They agree with it from one warm-up step on.

    >>> make_torch_schedulers(OptimizerConfig(schedule="constant", warmup_steps=0), steps=10)
    {'name': 'torch.optim.lr_scheduler.ConstantLR', 'kwargs': {'factor': 1.0, 'total_iters': 10}}
    """
    warmup, module = min(optimizer.warmup_steps, steps - 1), "torch.optim.lr_scheduler."
    after = {"name": module + "ConstantLR", "kwargs": {"factor": 1.0, "total_iters": steps}}
    if optimizer.schedule == "cosine":
        lowest = optimizer.lr * optimizer.min_lr_ratio
        after = {"name": module + "CosineAnnealingLR", "kwargs": {"T_max": steps - warmup, "eta_min": lowest}}
    if warmup <= 1:
        return after
    rising = {"start_factor": 1 / warmup, "end_factor": 1.0, "total_iters": warmup - 1}
    return [{"name": module + "LinearLR", "kwargs": rising}, after, {"milestones": [warmup - 1]}]
