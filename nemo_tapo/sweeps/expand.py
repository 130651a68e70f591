"""From sweeps, seeds and overrides to runs: which folder, which settings, in which order."""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from pathlib import Path
from typing import Any

from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.sweeps.definition import VARIANT, Row, Sweep, read_sweep

OWN = {  # what the sweep itself decides of a run -> what to type instead
    "seed": "seeds=5 or seeds=[3,7]",
    "output": "output=FOLDER for the whole sweep; runs are in <output>/<row>/seed-<k>",
    "parts": "nothing: rows either train and evaluate, or evaluate",
}
PLAIN = re.compile(r"[A-Za-z_./][\w./+-]*")


@dataclass(frozen=True)
class Asked:
    """What was typed."""

    sweeps: tuple[str, ...]  # names or files
    config: Path  # of every run, either kind
    seeds: tuple[int, ...] = (0,)
    output: Path = Path("runs/sweep")
    base_model: str | None = None  # model.path of rows that start from the base
    overrides: tuple[str, ...] = ()  # of every run; values with commas as Hydra's multirun takes them


@dataclass(frozen=True)
class Job:
    """One run: a row with a seed."""

    row: Row
    seed: int
    folder: Path
    overrides: tuple[str, ...]  # of `nemo-tapo run --config ...`
    cfg: RunConfig  # what they come to

    @property
    def name(self) -> str:
        return f"{self.row.name}/{self.folder.name}"


@dataclass(frozen=True)
class Expanded:
    """A sweep's runs, seed by seed, so that one that is stopped has all rows of the seeds it came to."""

    sweeps: tuple[Sweep, ...]  # with a row for each combination of swept values
    jobs: tuple[Job, ...]
    notes: tuple[str, ...] = ()  # rows that are left out, with the reason


def folder_of(output: Path, row: str, seed: int) -> Path:
    return output / row / f"seed-{seed}"


def expand(asked: Asked) -> Expanded:
    """Raises ValueError for what cannot be: see `read_sweep`, `combinations`, `require_own`, and the settings' own
    validation.
    """
    variants = combinations(asked.overrides)
    sweeps: list[Sweep] = []
    chosen: dict[str, Choice] = {}
    for sweep, settings in map(read_sweep, asked.sweeps):
        require_own(sweep, settings)
        require_no_clash(sweep, settings, variants[0])
        choices = [Choice(_variant(row, v), settings[row.name], v) for v in variants for row in sweep.rows]
        sweeps.append(sweep.model_copy(update={"rows": tuple(choice.row for choice in choices)}))
        for choice in choices:
            if not choice.same(chosen.setdefault(choice.row.name, choice)):
                raise ValueError(f"two sweeps have a row {choice.row.name} with other settings: rename one of them.")
    jobs, notes = first_jobs(asked, list(chosen.values()))
    return Expanded(tuple(sweeps), tuple(at_seed(asked, j, seed) for seed in asked.seeds for j in jobs), tuple(notes))


@dataclass(frozen=True)
class Choice:
    """A row with one combination of the swept values."""

    row: Row
    own: Mapping[str, Any]  # what its ablations and settings set
    variant: Combination

    def same(self, other: Choice) -> bool:
        """Whether the two rows are the same runs; labels may differ."""
        return self._told == other._told

    @property
    def _told(self) -> tuple[object, ...]:
        return self.own, self.row.model, self.row.train, self.variant


# ---- values with commas ----------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """One choice of the swept values."""

    overrides: tuple[str, ...]  # all of them, swept or not
    swept: tuple[str, ...] = ()  # those that a comma gave

    @property
    def label(self) -> str:
        return ", ".join(self.swept)

    @property
    def suffix(self) -> str:
        """Of the folder's name; "=" and "," would mean something to Hydra. With a digest where the values have other
        characters than a name can have: runs/a and runs-a are two folders.
        """
        if not self.swept:
            return ""
        text = ",".join(self.swept)
        whole = all(re.fullmatch(r"[\w.+-]*[\w.+]", value.partition("=")[2], re.ASCII) for value in self.swept)
        digest = "" if whole else "-" + hashlib.sha256(text.encode()).hexdigest()[:6]
        return VARIANT + re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-") + digest


def combinations(overrides: Sequence[str]) -> list[Combination]:
    """`a=1,2 b=x` -> one with a=1 b=x and one with a=2 b=x, as Hydra's multirun does; its own parser reads them."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    parser = OverridesParser.create()
    axes: list[list[str]] = []
    swept: list[bool] = []
    for text in overrides:
        try:
            parsed = parser.parse_override(text)
            key = parsed.input_line.partition("=")[0] if parsed.input_line else parsed.key_or_group
            many = parsed.is_sweep_override()
            axes.append([f"{key}={value}" for value in parsed.sweep_string_iterator()] if many else [text])
        except HydraException as error:
            raise ValueError(f"override {text!r} is not key=value: {error}") from None
        for own, instead in OWN.items():
            if parsed.key_or_group in (own, in_their_words(own)):
                raise ValueError(f"{parsed.key_or_group} is the sweep's own: give {instead}.")
        swept.append(many)
    return [
        Combination(chosen, tuple(text.lstrip("+") for text, many in zip(chosen, swept, strict=True) if many))
        for chosen in product(*axes)
    ]


def _variant(row: Row, chosen: Combination) -> Row:
    if not chosen.swept:
        return row
    told = {"name": row.name + chosen.suffix, "label": f"{row.label}, {chosen.label}", "paper": row.paper or row.label}
    return row.model_copy(update=told)


def require_own(sweep: Sweep, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raises ValueError for a row that sets what the sweep itself decides."""
    for row in sweep.rows:
        base = {"model.path": "base_model=FOLDER, or leave `model: base` out"} if row.model == "base" else {}
        told = OWN | base
        if taken := [key for key in told if key in settings[row.name]]:
            key = taken[0]
            raise ValueError(f"row {row.name} of {sweep.name} sets {key}, which is the sweep's own: give {told[key]}.")


def require_no_clash(sweep: Sweep, settings: Mapping[str, Mapping[str, Any]], chosen: Combination) -> None:
    """Raises ValueError for an override of what the rows differ in."""
    typed = {text.lstrip("+~").partition("=")[0] for text in chosen.overrides}
    for row in sweep.rows:
        for key in ("algorithm", *settings[row.name]):
            if typed & {key, in_their_words(key)}:
                raise ValueError(f"{key} is what the rows of {sweep.name} differ in ({row.name}): leave it out.")


# ---- jobs ------------------------------------------------------------------------------------------------------------


def first_jobs(asked: Asked, choices: Sequence[Choice]) -> tuple[list[Job], list[str]]:
    """Each row's run at the first seed; and a sentence for each row that this model or runtime does not do, or that
    does not go with what was typed.

    Raises ValueError for a row whose own settings are at fault, and if with some swept values (or without any) no row
    can be done, which then is not the rows' fault.
    """
    if asked.base_model is None and (from_base := [c.row.name for c in choices if c.row.model == "base"]):
        raise ValueError(f"row {from_base[0]} starts from the base: say which, base_model=FOLDER.")
    jobs: list[Job] = []
    refused: dict[str, str] = {}
    done: set[Combination] = set()
    for choice in choices:
        try:
            jobs.append(make_job(asked, choice))
        except ValueError as error:
            require_sound(asked, choice)
            refused[choice.row.name] = str(error)
        else:
            done.add(choice.variant)
    if whole := [refused[choice.row.name] for choice in choices if choice.variant not in done]:
        raise ValueError("\n".join(dict.fromkeys(whole)))
    return jobs, [f"{name} is left out: {why}" for name, why in refused.items()]


def require_sound(asked: Asked, choice: Choice) -> None:
    """Raises ValueError for a row whose settings are at fault by themselves: a key that there is not, a bad value."""
    from nemo_tapo.config.load import load

    try:
        load(None, [written(key, value, cluster=False) for key, value in own_settings(asked, choice).items()])
    except ValueError as error:
        raise ValueError(f"row {choice.row.name}: {error}") from None


def own_settings(asked: Asked, choice: Choice) -> dict[str, Any]:
    """What the row sets of a run, place and seed left out."""
    row = choice.row
    settings = {"algorithm": "tapo", **choice.own} if row.train else dict(choice.own)
    if row.model == "base":
        settings["model.path"] = asked.base_model
    settings["parts"] = ["train", "after"] if row.train else ["before"]
    return settings


def make_job(asked: Asked, choice: Choice) -> Job:
    """The row's run at the first seed. Raises ValueError if it cannot be."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl
    from nemo_tapo.runtime.registry import load_either

    cluster, row, seed = is_nemo_rl(asked.config), choice.row, asked.seeds[0]
    folder = folder_of(asked.output, row.name, seed)
    told = (written(key, value, cluster) for key, value in own_settings(asked, choice).items())
    overrides = (*choice.variant.overrides, *told, *place(folder, seed, cluster))
    cfg = load_either(asked.config, overrides)
    if cfg.model.enable_thinking and "model.enable_thinking" in choice.own and not can_think(cfg.model.path):
        raise ValueError(f"the chat template of {cfg.model.path} knows no thinking.")
    return Job(row, seed, folder, overrides, cfg)


def at_seed(asked: Asked, job: Job, seed: int) -> Job:
    """The same run with another seed, in that seed's folder."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl

    cluster = is_nemo_rl(asked.config)
    folder = folder_of(asked.output, job.row.name, seed)
    shared = job.overrides[: -len(place(job.folder, job.seed, cluster))]
    cfg = job.cfg.model_copy(update={"seed": seed, "output": folder})
    return Job(job.row, seed, folder, (*shared, *place(folder, seed, cluster)), cfg)


def place(folder: Path, seed: int, cluster: bool) -> tuple[str, ...]:
    """The overrides in which a row's runs differ. NeMo-RL's own folders go into the run's."""
    ours = written("seed", seed, cluster), written("output", str(folder), cluster)
    if not cluster:
        return ours
    theirs = {"checkpointing.checkpoint_dir": "checkpoints", "logger.log_dir": "logs"}
    return (*ours, *(f"{key}={_text(str(folder / name))}" for key, name in theirs.items()))


def can_think(model: Path) -> bool:
    """Whether the chat template of a model on this disk asks for `enable_thinking`; of another, it is assumed."""
    texts = [model / "chat_template.jinja", model / "tokenizer_config.json"]
    found = [path.read_text() for path in texts if path.is_file()]
    return not model.is_dir() or any("enable_thinking" in text for text in found)


def written(key: str, value: Any, cluster: bool) -> str:
    """An override in Hydra's grammar; with a NeMo-RL file, under the key by which that knows the setting.

    Raises ValueError for what NeMo-RL's side has not.
    """
    theirs = in_their_words(key) if cluster else key
    if theirs is None:
        raise ValueError(f"{key} cannot be set in a NeMo-RL config: a row with it needs the local runtime.")
    return f"{theirs}={_text(value)}"


def in_their_words(key: str) -> str | None:
    """`seed` -> `grpo.seed`, `algorithm` -> `tapo.algorithm`; None for what a NeMo-RL file cannot say."""
    from nemo_tapo.runtime.nemo_rl.config.translate import DERIVED, PARTS, SCALARS, SECTIONS

    if key in DERIVED:
        return DERIVED[key]
    if key == "model.enable_thinking":
        return "policy.tokenizer.chat_template_kwargs.enable_thinking"
    section, _, rest = key.partition(".")
    if section == "tapo":
        return key
    return f"tapo.{key}" if section in (*SCALARS, *SECTIONS) or rest in PARTS.get(section, ()) else None


def _text(value: Any) -> str:
    """A value in Hydra's grammar."""
    if isinstance(value, str):
        return value if PLAIN.fullmatch(value) and value not in ("null", "true", "false") else json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_text, value))}]"
    return json.dumps(value)


def seeds_of(text: str) -> tuple[int, ...]:
    """`5` -> 0 .. 4; `[3,7]` -> these."""
    import yaml

    try:
        value = yaml.safe_load(text)
    except yaml.YAMLError:
        value = None
    several = isinstance(value, list) and value and all(type(v) is int and v >= 0 for v in value)
    if several and len(set(value)) == len(value):
        return tuple(value)
    if type(value) is int and value > 0:
        return tuple(range(value))
    raise ValueError(f"seeds={text}: give how many, seeds=5, or which, seeds=[3,7].")
