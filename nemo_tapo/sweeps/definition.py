"""Define sweeps: tables in which each row holds the settings of one run per seed.

Sweep files are in examples/configs/sweeps, ablation files in examples/configs/ablations. A sweep file:

    title: Integration components
    paper: table4                                        the paper's table that it mirrors, if any
    rows:
      - {name: coldstart, label: Cold-start, train: false}
      - {name: no-ots, label: + TAPO w/o OTS, ablations: [no-ots]}
      - {name: tapo, label: + TAPO}

A row's name is also the name of its folder, in every sweep: rows with the same name are the same runs. A row with
swept values is named <row>--<values>.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from nemo_tapo.config.run_config import flatten_settings
from nemo_tapo.config.sections import Section
from nemo_tapo.utils.resources import find_resource

CONFIGS = Path("examples") / "configs"
SWEEPS_FOLDER, ABLATIONS_FOLDER = "sweeps", "ablations"  # folders inside CONFIGS
VARIANT_SEPARATOR = "--"  # in a row's name, before the values of swept settings
RESERVED_NAMES = {SWEEPS_FOLDER, "report", "slurm"}  # other entries of a sweep's output folder, beside its rows
DEFAULT_CONFIG = "sweep-tiny-1n0g.yaml"  # inside CONFIGS; used unless --config names another file


class SweepRow(Section):
    """One row of the table; it has one run per seed.

    >>> row = SweepRow(name="tapo--steps-40", label="+ TAPO, steps=40")
    >>> row.base_name, row.variant
    ('tapo', 'steps-40')
    """

    name: str = Field(pattern=r"^[A-Za-z0-9][\w.+-]*$", description="of its folder, unique for its settings")
    label: str = Field(description="as the table shows it")
    paper: str | None = Field(None, description="the label of the paper's row, where it is another")
    ablations: tuple[str, ...] = Field(
        (), description="files of the folder `ablations`, or of another beside it (opsd/opsd-v1), later over earlier"
    )
    settings: dict[str, Any] = Field(default_factory=dict, description="settings of its own, over its ablations")
    model: Literal["coldstart", "base"] = Field("coldstart", description="where it starts: model.path, or base_model")
    train: bool = Field(True, description="false: the model is evaluated as it is")
    seeds: tuple[int, ...] = Field((), description="those that were asked for; the command keeps them for the report")

    @property
    def variant(self) -> str:
        """The swept values as they appear in the folder name; "" without swept values."""
        return self.name.partition(VARIANT_SEPARATOR)[2]

    @property
    def base_name(self) -> str:
        """The row's name without swept values."""
        return self.name.partition(VARIANT_SEPARATOR)[0]

    @field_validator("settings")
    @classmethod
    def _flatten_settings(cls, value: dict[str, Any]) -> dict[str, Any]:
        return flatten_settings(value)


class Sweep(Section):
    """A table of runs that are compared with each other.

    >>> sweep = Sweep(name="demo", title="Demo", rows=(SweepRow(name="tapo", label="+ TAPO"),))
    >>> sweep.rows[0].train, sweep.against
    (True, 'above')
    """

    name: str
    title: str
    paper: str | None = Field(None, description="the table or figure of the paper that it mirrors")
    against: Literal["above", "first"] = Field("above", description="the row from which a row's difference is taken")
    rows: tuple[SweepRow, ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _check_names(cls, rows: tuple[SweepRow, ...]) -> tuple[SweepRow, ...]:
        names = [row.name for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several rows are called {', '.join(twice)}: each has a folder of its own.")
        if taken := sorted(RESERVED_NAMES & {*names}):
            raise ValueError(f"no row can be called {taken[0]}: a sweep's folder has another of that name.")
        return rows


def find_configs_folder() -> Path:
    """Return examples/configs of this package; as a relative path where the current folder is its repository.

    A copy of the code alone, as a queued job runs it, has none: then those of the current folder, if it has any.
    """
    try:
        own = find_resource(str(CONFIGS))
    except ValueError:
        return CONFIGS
    return CONFIGS if CONFIGS.resolve() == own else own


def list_sweep_names() -> list[str]:
    """Return the names of the sweeps that come with the package."""
    return sorted(path.stem for path in (find_configs_folder() / SWEEPS_FOLDER).glob("*.yaml"))


def read_sweep(name: str) -> tuple[Sweep, dict[str, dict[str, Any]]]:
    """Read a sweep by name or file; also return {row: {dotted key: value}}, what each row sets except its model.

    Raises ValueError for an unknown sweep, with the closest name, and for a file that does not hold a sweep.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else find_configs_folder() / SWEEPS_FOLDER / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, list_sweep_names(), n=1, cutoff=0.0)
        if not near or path == Path(name) or "/" in name:
            raise ValueError(f"no sweep '{name}': there is no file {path}.")
        raise ValueError(f"no sweep '{name}'; did you mean '{near[0]}'?")
    sweep = parse_sweep(path, {"name": path.stem, **_mapping(path)})
    folder = path.parent.parent / ABLATIONS_FOLDER
    folder = folder if folder.is_dir() else find_configs_folder() / ABLATIONS_FOLDER
    return sweep, {row.name: collect_row_settings(row, folder) for row in sweep.rows}


def read_saved_sweep(path: Path) -> Sweep:
    """Read a sweep that the command saved beside its runs.

    Raises ValueError, naming the file, if it does not hold a sweep.
    """
    try:
        return parse_sweep(path, _mapping(path))
    except ValueError as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} is damaged ({why}): remove it, `nemo-tapo sweep` writes it anew.") from None


def parse_sweep(path: Path, raw: Mapping[str, Any]) -> Sweep:
    """Validate `raw`, the content of the file `path`. Raises ValueError with one line per fault."""
    try:
        return Sweep.model_validate(dict(raw))
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join(faults)) from None


def collect_row_settings(row: SweepRow, ablations: Path) -> dict[str, Any]:
    """Return {dotted key: value} of a row: its ablations, later over earlier, then its own settings.

    Raises ValueError for an ablation that does not exist.
    """
    settings: dict[str, Any] = {}
    for name in row.ablations:
        path = (ablations.parent if "/" in name else ablations) / f"{name}.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(name, [p.stem for p in ablations.glob("*.yaml")], n=1, cutoff=0.0)
            raise ValueError(
                f"row {row.name}: no ablation '{name}' in {ablations}"
                + (f"; did you mean '{near[0]}'?" if near else ".")
            )
        settings |= flatten_settings(_mapping(path))
    return settings | row.settings


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a mapping of settings.")
    return raw
