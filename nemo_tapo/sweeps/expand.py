"""Turn sweeps, seeds and overrides into runs: their folders, settings and order."""

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
from nemo_tapo.sweeps.definition import VARIANT_SEPARATOR, Sweep, SweepRow, read_sweep

SWEEP_KEYS = {  # settings that the sweep itself decides -> what to type instead
    "seed": "seeds=5 or seeds=[3,7]",
    "output": "output=FOLDER for the whole sweep; runs are in <output>/<row>/seed-<k>",
    "parts": "nothing: rows either train and evaluate, or evaluate",
}
UNQUOTED = re.compile(r"[A-Za-z_./][\w./+-]*")


@dataclass(frozen=True)
class SweepRequest:
    """The user's request, as typed on the command line.

    >>> SweepRequest(sweeps=("table4",), config=Path("tiny.yaml"), overrides=("steps=20,40",)).seeds
    (0,)
    """

    sweeps: tuple[str, ...]  # names or files
    config: Path  # file of every run, for the local runtime or for NeMo-RL
    seeds: tuple[int, ...] = (0,)
    output: Path = Path("runs/sweep")
    base_model: str | None = None  # model.path of rows that start from the base
    overrides: tuple[str, ...] = ()  # of every run; values with commas are swept, as in Hydra's multirun


@dataclass(frozen=True)
class SweepJob:
    """One run: a row with a seed."""

    row: SweepRow
    seed: int
    folder: Path
    overrides: tuple[str, ...]  # arguments of `nemo-tapo run --config ...`
    cfg: RunConfig  # the config that results

    @property
    def name(self) -> str:
        """Row and seed, as in "tapo/seed-0"."""
        return f"{self.row.name}/{self.folder.name}"


@dataclass(frozen=True)
class SweepPlan:
    """The runs of a sweep, seed by seed.

    In this order, a sweep that is stopped has all rows of every seed that it finished.
    """

    sweeps: tuple[Sweep, ...]  # with one row per combination of swept values
    jobs: tuple[SweepJob, ...]
    notes: tuple[str, ...] = ()  # one sentence per row that is left out, with the reason


def get_run_folder(output: Path, row: str, seed: int) -> Path:
    """Return the folder of one run.

    >>> get_run_folder(Path("runs/sweep"), "tapo", 3).as_posix()
    'runs/sweep/tapo/seed-3'
    """
    return output / row / f"seed-{seed}"


def expand_sweeps(request: SweepRequest) -> SweepPlan:
    """Return the plan of all runs that the request asks for.

    Raises ValueError for a request that cannot be met: see `read_sweep`, `list_combinations`, `require_no_sweep_keys`,
    `require_no_clash`, `make_first_jobs`, and the validation of the settings. Also raises it if two sweeps have a row
    of the same name with different settings.
    """
    combinations = list_combinations(request.overrides)
    sweeps: list[Sweep] = []
    chosen: dict[str, RowVariant] = {}
    for sweep, settings in map(read_sweep, request.sweeps):
        require_no_sweep_keys(sweep, settings)
        require_no_clash(sweep, settings, combinations[0])
        variants = [
            RowVariant(_make_variant_row(row, v), settings[row.name], v) for v in combinations for row in sweep.rows
        ]
        sweeps.append(sweep.model_copy(update={"rows": tuple(variant.row for variant in variants)}))
        for variant in variants:
            if not variant.is_same_run(chosen.setdefault(variant.row.name, variant)):
                raise ValueError(f"two sweeps have a row {variant.row.name} with other settings: rename one of them.")
    jobs, notes = make_first_jobs(request, list(chosen.values()))
    return SweepPlan(
        tuple(sweeps), tuple(copy_job_to_seed(request, j, seed) for seed in request.seeds for j in jobs), tuple(notes)
    )


@dataclass(frozen=True)
class RowVariant:
    """A row with one combination of the swept values."""

    row: SweepRow
    settings: Mapping[str, Any]  # set by the row's ablations and own settings
    combination: Combination

    def is_same_run(self, other: RowVariant) -> bool:
        """Return whether both rows are the same runs; their labels may differ."""
        return self._identity == other._identity

    @property
    def _identity(self) -> tuple[object, ...]:
        return self.settings, self.row.model, self.row.train, self.combination


# ---- swept values ----------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Combination:
    """One combination of the swept values.

    >>> combination = Combination(overrides=("seed_note=a", "steps=40"), swept=("steps=40",))
    >>> combination.label, combination.suffix
    ('steps=40', '--steps-40')
    """

    overrides: tuple[str, ...]  # all overrides, swept or not
    swept: tuple[str, ...] = ()  # the swept ones

    @property
    def label(self) -> str:
        """The swept values as the table shows them."""
        return ", ".join(self.swept)

    @property
    def suffix(self) -> str:
        """The end of the folder's name, such as "--steps-40"; "" without swept values.

        "=" and "," become "-", because Hydra gives them a meaning. If a value has characters that a name cannot hold, a
        digest is added: runs/a and runs-a get different folders.
        """
        if not self.swept:
            return ""
        text = ",".join(self.swept)
        unchanged = all(re.fullmatch(r"[\w.+-]*[\w.+]", value.partition("=")[2], re.ASCII) for value in self.swept)
        digest = "" if unchanged else "-" + hashlib.sha256(text.encode()).hexdigest()[:6]
        return VARIANT_SEPARATOR + re.sub(r"[^\w.+-]+", "-", text, flags=re.ASCII).strip("-") + digest


def list_combinations(overrides: Sequence[str]) -> list[Combination]:
    """Return all combinations of swept values, as Hydra's multirun makes them. Hydra's own parser reads the overrides.

    Raises ValueError for a text that is not an override, and for a setting that the sweep itself decides.

    >>> [combination.overrides for combination in list_combinations(["steps=20,40", "algorithm=grpo"])]
    [('steps=20', 'algorithm=grpo'), ('steps=40', 'algorithm=grpo')]
    """
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
        for sweep_key, instead in SWEEP_KEYS.items():
            if parsed.key_or_group in (sweep_key, translate_key(sweep_key)):
                raise ValueError(f"{parsed.key_or_group} is the sweep's own: give {instead}.")
        swept.append(many)
    return [
        Combination(chosen, tuple(text.lstrip("+") for text, many in zip(chosen, swept, strict=True) if many))
        for chosen in product(*axes)
    ]


def _make_variant_row(row: SweepRow, chosen: Combination) -> SweepRow:
    if not chosen.swept:
        return row
    update = {
        "name": row.name + chosen.suffix,
        "label": f"{row.label}, {chosen.label}",
        "paper": row.paper or row.label,
    }
    return row.model_copy(update=update)


def require_no_sweep_keys(sweep: Sweep, settings: Mapping[str, Mapping[str, Any]]) -> None:
    """Raise ValueError for a row that sets what the sweep itself decides."""
    for row in sweep.rows:
        base = {"model.path": "base_model=FOLDER, or leave `model: base` out"} if row.model == "base" else {}
        forbidden = SWEEP_KEYS | base
        if taken := [key for key in forbidden if key in settings[row.name]]:
            key = taken[0]
            raise ValueError(
                f"row {row.name} of {sweep.name} sets {key}, which is the sweep's own: give {forbidden[key]}."
            )


def require_no_clash(sweep: Sweep, settings: Mapping[str, Mapping[str, Any]], chosen: Combination) -> None:
    """Raise ValueError for an override of a setting in which the rows differ."""
    typed = {text.lstrip("+~").partition("=")[0] for text in chosen.overrides}
    for row in sweep.rows:
        for key in ("algorithm", *settings[row.name]):
            if typed & {key, translate_key(key)}:
                raise ValueError(f"{key} is what the rows of {sweep.name} differ in ({row.name}): leave it out.")


# ---- jobs ------------------------------------------------------------------------------------------------------------


def make_first_jobs(request: SweepRequest, variants: Sequence[RowVariant]) -> tuple[list[SweepJob], list[str]]:
    """Return each row's run at the first seed, and one sentence for each row that is left out.

    A row is left out if the model or the runtime does not support it, or if it contradicts the user's overrides.

    Raises ValueError for a row whose own settings are invalid. Also raises it if one combination of swept values (or a
    request without swept values) leaves out every row: then the cause is the request and not the rows.
    """
    if request.base_model is None and (from_base := [c.row.name for c in variants if c.row.model == "base"]):
        raise ValueError(f"row {from_base[0]} starts from the base: say which, base_model=FOLDER.")
    jobs: list[SweepJob] = []
    refused: dict[str, str] = {}
    runnable: set[Combination] = set()
    for variant in variants:
        try:
            jobs.append(make_job(request, variant))
        except ValueError as error:
            require_valid_settings(request, variant)
            refused[variant.row.name] = str(error)
        else:
            runnable.add(variant.combination)
    if refusals := [refused[variant.row.name] for variant in variants if variant.combination not in runnable]:
        raise ValueError("\n".join(dict.fromkeys(refusals)))
    return jobs, [f"{name} is left out: {why}" for name, why in refused.items()]


def require_valid_settings(request: SweepRequest, variant: RowVariant) -> None:
    """Raise ValueError for a row whose own settings are invalid: an unknown key or a bad value."""
    from nemo_tapo.config.load import load_config

    try:
        load_config(
            None,
            [format_override(key, value, cluster=False) for key, value in get_row_settings(request, variant).items()],
        )
    except ValueError as error:
        raise ValueError(f"row {variant.row.name}: {error}") from None


def get_row_settings(request: SweepRequest, variant: RowVariant) -> dict[str, Any]:
    """Return what the row sets of a run, except folder and seed."""
    row = variant.row
    settings = {"algorithm": "tapo", **variant.settings} if row.train else dict(variant.settings)
    if row.model == "base":
        settings["model.path"] = request.base_model
    settings["parts"] = ["train", "after"] if row.train else ["before"]
    return settings


def make_job(request: SweepRequest, variant: RowVariant) -> SweepJob:
    """Return the row's run at the first seed. Raises ValueError if the row cannot run."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config
    from nemo_tapo.runtime.registry import load_run_config

    cluster, row, seed = is_nemo_rl_config(request.config), variant.row, request.seeds[0]
    folder = get_run_folder(request.output, row.name, seed)
    row_overrides = (format_override(key, value, cluster) for key, value in get_row_settings(request, variant).items())
    overrides = (*variant.combination.overrides, *row_overrides, *get_run_overrides(folder, seed, cluster))
    cfg = load_run_config(request.config, overrides)
    if (
        cfg.model.enable_thinking
        and "model.enable_thinking" in variant.settings
        and not supports_thinking(cfg.model.path)
    ):
        raise ValueError(f"the chat template of {cfg.model.path} knows no thinking.")
    return SweepJob(row, seed, folder, overrides, cfg)


def copy_job_to_seed(request: SweepRequest, job: SweepJob, seed: int) -> SweepJob:
    """Return the same run with another seed, in that seed's folder."""
    from nemo_tapo.runtime.nemo_rl.config.cluster_run import is_nemo_rl_config

    cluster = is_nemo_rl_config(request.config)
    folder = get_run_folder(request.output, job.row.name, seed)
    shared = job.overrides[: -len(get_run_overrides(job.folder, job.seed, cluster))]
    cfg = job.cfg.model_copy(update={"seed": seed, "output": folder})
    return SweepJob(job.row, seed, folder, (*shared, *get_run_overrides(folder, seed, cluster)), cfg)


def get_run_overrides(folder: Path, seed: int, cluster: bool) -> tuple[str, ...]:
    """Return the overrides in which the runs of a row differ. NeMo-RL's own folders are inside the run's folder.

    >>> get_run_overrides(Path("runs/sweep/tapo/seed-3"), 3, cluster=False)
    ('seed=3', 'output=runs/sweep/tapo/seed-3')
    """
    ours = format_override("seed", seed, cluster), format_override("output", str(folder), cluster)
    if not cluster:
        return ours
    theirs = {"checkpointing.checkpoint_dir": "checkpoints", "logger.log_dir": "logs"}
    return (*ours, *(f"{key}={_format_value(str(folder / name))}" for key, name in theirs.items()))


def supports_thinking(model: Path) -> bool:
    """Return whether the model's chat template reads `enable_thinking`; for a model not on this disk, True."""
    paths = [model / "chat_template.jinja", model / "tokenizer_config.json"]
    contents = [path.read_text() for path in paths if path.is_file()]
    return not model.is_dir() or any("enable_thinking" in text for text in contents)


def format_override(key: str, value: Any, cluster: bool) -> str:
    """Return an override in Hydra's grammar. With a NeMo-RL file, it has NeMo-RL's name of the setting.

    Raises ValueError for a setting that a NeMo-RL file cannot hold.

    >>> format_override("tapo.m_max", 4, cluster=False), format_override("seed", 3, cluster=True)
    ('tapo.m_max=4', 'grpo.seed=3')
    """
    name = translate_key(key) if cluster else key
    if name is None:
        raise ValueError(f"{key} cannot be set in a NeMo-RL config: a row with it needs the local runtime.")
    return f"{name}={_format_value(value)}"


def translate_key(key: str) -> str | None:
    """Return NeMo-RL's name of a setting, or None for one that a NeMo-RL file cannot hold.

    >>> translate_key("seed"), translate_key("algorithm")
    ('grpo.seed', 'tapo.algorithm')
    """
    from nemo_tapo.runtime.nemo_rl.config.translate import DERIVED, PARTIAL_SECTIONS, SCALARS, SECTIONS

    if key in DERIVED:
        return DERIVED[key]
    if key == "model.enable_thinking":
        return "policy.tokenizer.chat_template_kwargs.enable_thinking"
    section, _, rest = key.partition(".")
    if section == "tapo":
        return key
    return f"tapo.{key}" if section in (*SCALARS, *SECTIONS) or rest in PARTIAL_SECTIONS.get(section, ()) else None


def _format_value(value: Any) -> str:
    """Format a value in Hydra's grammar."""
    if isinstance(value, str):
        return value if UNQUOTED.fullmatch(value) and value not in ("null", "true", "false") else json.dumps(value)
    if isinstance(value, (list, tuple)):
        return f"[{','.join(map(_format_value, value))}]"
    return json.dumps(value)


def parse_seeds(text: str) -> tuple[int, ...]:
    """Parse the value of `seeds=`: a number of seeds or a list of them. Raises ValueError for anything else.

    >>> parse_seeds("3"), parse_seeds("[3,7]")
    ((0, 1, 2), (3, 7))
    """
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
