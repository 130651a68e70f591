"""Show a command's data and first prompt for --dry-run, and check the data before engines are started."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import DatasetConfig, TaskConfig
from nemo_tapo.datasets.read import LoadedDataset, read_dataset
from nemo_tapo.datasets.screening import drop_duplicates
from nemo_tapo.datasets.sets import TRAIN, get_benchmark_sets, get_config_key, get_train_set
from nemo_tapo.types import Query

TRAINING_COMMANDS = ("run", "train", "coldstart", "filter", "diagnose")  # commands that read the training set
EVALUATION_COMMANDS = ("run", "evaluate")  # commands that read the benchmarks
DRAWN_TASKS = ("custom", "countdown", "reasoning_gym")  # their queries are asked of the task itself
MAX_PREVIEW_BYTES = 256 * 2**20  # --dry-run does not read a larger file


def list_needed_sets(cfg: RunConfig, command: str) -> dict[str, DatasetConfig]:
    """Return the mathematics sets that a command reads, by name. Raises ValueError if one is not configured."""
    m = cfg.task.mathematics
    sets: dict[str, DatasetConfig] = {}
    if cfg.task.name == "mathematics" and command in TRAINING_COMMANDS:
        sets[TRAIN] = get_train_set(m)
    measured = command in EVALUATION_COMMANDS or (command == "train" and cfg.evaluation.every is not None)
    if cfg.task.name == "mathematics" and (measured or (sets and m.exclude_benchmarks)):
        sets |= get_benchmark_sets(m)
    return sets


def check_data(cfg: RunConfig, command: str) -> None:
    """Raise ValueError if data cannot be read, so that a wrong path fails before the engines are started."""
    for name, each in list_needed_sets(cfg, command).items():
        read_dataset(each, name, get_config_key(name))
    if reads_through_task(cfg.task) and command in (*TRAINING_COMMANDS, *EVALUATION_COMMANDS):
        read_custom_sets(cfg, command, ask_judges=True)


def reads_through_task(task: TaskConfig) -> bool:
    """Return True if making the task is what shows whether it can be used."""
    return task.grades_in_processes or task.name == "countdown"


def name_source(task: TaskConfig) -> str:
    """Return what the queries of a task in DRAWN_TASKS come from."""
    return "countdown" if task.name == "countdown" else task.target or task.reasoning_gym.dataset


def read_custom_sets(cfg: RunConfig, command: str, ask_judges: bool = False) -> dict[str, Sequence[Query]]:
    """Load the user's functions and classes, and return the sets that a command reads through the task, by name.

    Raises ValueError if one of them cannot be used, EndpointError if the server of a judge does not answer.
    """
    from nemo_tapo.tasks.registry import make_task
    from nemo_tapo.tasks.rewarded_task import RewardedTask

    if cfg.task.name == "nemo_rl":
        cfg = cfg.model_copy(update={"task": cfg.task.model_copy(update={"name": "arithmetic"})})  # for its rewards
    task = make_task(cfg.task, cfg.seed)
    try:
        if ask_judges and isinstance(task, RewardedTask):
            asyncio.run(task.check_judges())
        if cfg.task.name not in DRAWN_TASKS:
            if cfg.task.name == "mathematics" and ask_judges and any(r.code for r in cfg.task.rewards.values()):
                for name in list_needed_sets(cfg, command):
                    _ = task.train_queries() if name == TRAIN else task.benchmarks()  # are there tests?
            return {}
        sets = {TRAIN: task.train_queries()} if command in TRAINING_COMMANDS else {}
        if command in EVALUATION_COMMANDS and (command != "run" or {"before", "after"} & set(cfg.parts)):
            benchmarks = task.benchmarks()
            if not benchmarks:
                raise ValueError(f"task.target = {cfg.task.target}: benchmarks() names no set to evaluate on.")
            sets |= benchmarks
        return sets
    finally:
        task.close()


def preview_data(cfg: RunConfig, command: str) -> list[str]:
    """Return lines on the data and on the first prompt as the tokenizer sees it. Needs no engine and no network."""
    lines: list[str] = []
    first = ""
    for name, each in list_needed_sets(cfg, command).items():
        key = get_config_key(name)
        if not is_cheap_to_read(each):
            lines.append(f"{key}: {each.hub or each.path} at {each.revision or 'no revision'}, not read by --dry-run")
            continue
        loaded = read_dataset(each, name, key)
        lines.append(describe_counts(key, loaded))
        lines += loaded.provenance.notes
        first = first or (loaded.rows[0].question if loaded.rows else "")
    custom = read_custom_sets(cfg, command) if reads_through_task(cfg.task) else {}
    for name, queries in custom.items():
        lines.append(f"{name}: {len(queries)} queries of {name_source(cfg.task)}")
    first = first or next((queries[0].user_text for queries in custom.values()), "")
    lines += [describe_reward(name, cfg.task) for name in cfg.task.all_rewards]
    if command in (*TRAINING_COMMANDS, *EVALUATION_COMMANDS) and cfg.runtime != "scripted":
        lines += describe_prompt(cfg, command, first)
    return lines


def describe_reward(name: str, task: TaskConfig) -> str:
    """Return one line on a reward: what gives it, its share, and what happens to one that takes too long.

    >>> describe_reward("reward", TaskConfig(reward="rewards.py:score"))
    'reward: rewards.py:score, at most 5 s'
    """
    rewards = task.all_rewards
    share = rewards[name].weight / sum(each.weight for each in rewards.values())
    weight = f", {share:.0%} of the reward" if len(rewards) > 1 else ""
    judge = rewards[name].judge
    if judge is not None:
        return f"reward {name}: the judge at {judge.endpoint.url}{weight}: {judge.rubric}"
    code = rewards[name].code
    if code is not None:
        where = "in bubblewrap" if code.isolation == "bubblewrap" else "WITHOUT isolation, with limits alone"
        return f"reward {name}: programs run {where}{weight}, {code.seconds} s of processor time a case"
    if rewards[name].target is None:
        return f"reward {name}: the task's own verdict{weight}"
    label = "reward" if task.reward is not None else f"reward {name}"
    return f"{label}: {rewards[name].target}{weight}, at most {task.grading.deadline:g} s"


def is_cheap_to_read(cfg: DatasetConfig) -> bool:
    """Return True if the set can be read quickly and without the network."""
    if cfg.path is not None:
        # reading a missing file fails at once
        return not cfg.path.is_file() or cfg.path.stat().st_size <= MAX_PREVIEW_BYTES
    assert cfg.hub is not None
    return Path(cfg.hub).expanduser().is_dir()


def describe_counts(key: str, loaded: LoadedDataset) -> str:
    """Return one sentence on the rows, source and licence of a set."""
    provenance, (kept, doubles) = loaded.provenance, drop_duplicates(loaded.rows)
    licence = f", licence: {provenance.licence}" if provenance.licence else ""
    unusable = len(provenance.set_aside) + len(doubles)
    more = f", {unusable} of them broken, without an answer or doubles" if unusable else ""
    return (
        f"{key}: {provenance.rows} rows of {provenance.source}{more}{licence}; "
        f"{len(kept)} gold answers are still to be parsed"
    )


def describe_prompt(cfg: RunConfig, command: str, question: str) -> list[str]:
    """Return the first query's prompt: chat template applied, tokenized, decoded again with its special tokens."""
    text, name = get_first_message(cfg, question)
    if command == "evaluate" and cfg.evaluation.endpoint.url is not None:
        return [f"message to the endpoint, {name}:", *quote_lines(text)]
    try:
        from nemo_tapo.runtime.hf_tokenizer import HFTokenizer

        tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
    except ImportError as error:
        return [f"prompt: not shown, {error}"]
    except ValueError as error:
        return [f"prompt: not shown. {error}"]
    ids = tokenizer.chat(text)
    thinking = "on" if cfg.model.enable_thinking else "off"
    return [
        f"prompt of {name}, {len(ids)} tokens, thinking {thinking}:",
        *quote_lines(tokenizer.decode_with_special_tokens(ids)),
    ]


def get_first_message(cfg: RunConfig, question: str) -> tuple[str, str]:
    """Return the text of the first user message and the name of the query it belongs to."""
    if cfg.task.name == "arithmetic":
        from nemo_tapo.tasks.arithmetic import get_held_out_problems

        return get_held_out_problems(1)[0].question, "a held-out problem"
    if cfg.task.name in DRAWN_TASKS:
        return question, "the first query"
    template = cfg.task.mathematics.prompt
    return (template.replace("{question}", question), "the first query") if question else (template, "the template")


def quote_lines(text: str) -> list[str]:
    r"""Return the lines of `text`, each after a bar so that blank lines are visible.

    >>> quote_lines("Solve:\n47+38=?")
    ['| Solve:', '| 47+38=?']
    """
    return [f"| {line}" for line in text.split("\n")]
