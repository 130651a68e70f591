"""What --dry-run shows of a command's data and prompt, and the same look at the data before engines are started."""

from __future__ import annotations

from pathlib import Path

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.read import Loaded, read
from nemo_tapo.datasets.screening import drop_duplicates
from nemo_tapo.datasets.sets import TRAIN, benchmark_sets, setting, train_set

TRAINING = ("run", "train", "coldstart", "filter")  # commands that read the training set
EVALUATING = ("run", "evaluate")  # commands that read the benchmarks
CHEAP = 256 * 2**20  # bytes; a larger file is not read only to be shown


def needed(cfg: RunConfig, command: str) -> dict[str, DatasetConfig]:
    """The mathematics sets that a command reads, by name. Raises ValueError if one is not configured."""
    m = cfg.task.mathematics
    sets: dict[str, DatasetConfig] = {}
    if cfg.task.name == "mathematics" and command in TRAINING:
        sets[TRAIN] = train_set(m)
    if cfg.task.name == "mathematics" and (command in EVALUATING or (sets and m.exclude_benchmarks)):
        sets |= benchmark_sets(m)
    return sets


def check_data(cfg: RunConfig, command: str) -> None:
    """Raises ValueError for data that cannot be read: a wrong path should not cost the start of the engines."""
    for name, each in needed(cfg, command).items():
        read(each, name, setting(name))


def preview(cfg: RunConfig, command: str) -> list[str]:
    """Lines on the data and on the first prompt as the tokenizer sees it. Needs no engine; fetches nothing."""
    lines: list[str] = []
    first = ""
    for name, each in needed(cfg, command).items():
        key = setting(name)
        if not is_cheap(each):
            lines.append(f"{key}: {each.hub or each.path} at {each.revision or 'no revision'}, not read by --dry-run")
            continue
        loaded = read(each, name, key)
        lines.append(counted(key, loaded))
        lines += loaded.provenance.notes
        first = first or (loaded.examples[0].question if loaded.examples else "")
    if command in (*TRAINING, *EVALUATING) and cfg.runtime != "scripted":
        lines += prompt_lines(cfg, command, first)
    return lines


def is_cheap(cfg: DatasetConfig) -> bool:
    """Whether looking costs neither the network nor long."""
    if cfg.path is not None:
        return not cfg.path.is_file() or cfg.path.stat().st_size <= CHEAP  # a missing file is told at once
    assert cfg.hub is not None
    return Path(cfg.hub).expanduser().is_dir()


def counted(key: str, loaded: Loaded) -> str:
    """One sentence on a set."""
    found, (kept, doubles) = loaded.provenance, drop_duplicates(loaded.examples)
    licence = f", licence: {found.licence}" if found.licence else ""
    aside = len(found.set_aside) + len(doubles)
    more = f", {aside} of them broken, without an answer or doubles" if aside else ""
    return f"{key}: {found.rows} rows of {found.source}{more}{licence}; {len(kept)} gold answers are still to be parsed"


def prompt_lines(cfg: RunConfig, command: str, question: str) -> list[str]:
    """The first query's prompt: chat template applied, tokenized, decoded again with its special tokens."""
    text, name = user_text(cfg, question)
    if command == "evaluate" and cfg.evaluation.endpoint.url is not None:
        return [f"message to the endpoint, {name}:", *quoted(text)]
    try:
        from nemo_tapo.runtime.hf_tokenizer import HFTokenizer

        tokenizer = HFTokenizer(cfg.model.path, cfg.model.enable_thinking)
    except ImportError as error:
        return [f"prompt: not shown, {error}"]
    except ValueError as error:
        return [f"prompt: not shown. {error}"]
    ids = tokenizer.chat(text)
    thinking = "on" if cfg.model.enable_thinking else "off"
    return [f"prompt of {name}, {len(ids)} tokens, thinking {thinking}:", *quoted(tokenizer.show(ids))]


def user_text(cfg: RunConfig, question: str) -> tuple[str, str]:
    """(what the user says first, which query that is)."""
    if cfg.task.name == "arithmetic":
        from nemo_tapo.tasks.arithmetic import held_out

        return held_out(1)[0].question, "a held-out problem"
    template = cfg.task.mathematics.prompt
    return (template.replace("{question}", question), "the first query") if question else (template, "the template")


def quoted(text: str) -> list[str]:
    """Lines behind a bar, so that blank ones are seen."""
    return [f"| {line}" for line in text.split("\n")]
