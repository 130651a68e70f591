"""What a sweep is: rows of a table, each a run's settings. Files in examples/configs/sweeps and .../ablations.

    title: Integration components
    paper: table4                                        the paper's table that it mirrors, if it does
    rows:
      - {name: coldstart, label: Cold-start, train: false}
      - {name: no-ots, label: + TAPO w/o OTS, ablations: [no-ots]}
      - {name: tapo, label: + TAPO}

A row's name is the name of its folder, the same in every sweep: rows of the same name are the same runs. With swept
values it is <row>--<values>.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

import yaml
from pydantic import Field, ValidationError, field_validator

from nemo_tapo.config.run_config import flatten
from nemo_tapo.config.sections import Section

CONFIGS = Path("examples") / "configs"
SWEEPS, ABLATIONS = "sweeps", "ablations"  # folders of it
VARIANT = "--"  # in a row's name: what follows are the values of swept settings
RESERVED = {SWEEPS, "report", "slurm"}  # in a sweep's folder, beside its rows
BASE = "sweep-tiny-1n0g.yaml"  # in it: what is run unless --config names another file


class Row(Section):
    """One row of the table: one run a seed."""

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
        """The swept values, as in its folder's name; "" without."""
        return self.name.partition(VARIANT)[2]

    @property
    def base(self) -> str:
        """Its name without swept values."""
        return self.name.partition(VARIANT)[0]

    @field_validator("settings")
    @classmethod
    def _flat(cls, value: dict[str, Any]) -> dict[str, Any]:
        return flatten(value)


class Sweep(Section):
    """A table."""

    name: str
    title: str
    paper: str | None = Field(None, description="the table or figure of the paper that it mirrors")
    against: Literal["above", "first"] = Field("above", description="the row from which a row's difference is taken")
    rows: tuple[Row, ...] = Field(min_length=1)

    @field_validator("rows")
    @classmethod
    def _names_differ(cls, rows: tuple[Row, ...]) -> tuple[Row, ...]:
        names = [row.name for row in rows]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"several rows are called {', '.join(twice)}: each has a folder of its own.")
        if taken := sorted(RESERVED & {*names}):
            raise ValueError(f"no row can be called {taken[0]}: a sweep's folder has another of that name.")
        return rows


def configs_folder() -> Path:
    """examples/configs of this repository, or of the folder in which the command was typed."""
    beside_the_code = Path(__file__).parents[2] / CONFIGS
    here = CONFIGS.resolve() == beside_the_code or not beside_the_code.is_dir()
    return CONFIGS if here else beside_the_code


def names() -> list[str]:
    """Of the sweeps that come with the package."""
    return sorted(path.stem for path in (configs_folder() / SWEEPS).glob("*.yaml"))


def read_sweep(name: str) -> tuple[Sweep, dict[str, dict[str, Any]]]:
    """A sweep by its name or file, and what each of its rows sets: {row: {dotted key: value}}, the model left out.

    Raises ValueError with the nearest name for one that there is not, and for a file that is no sweep.
    """
    path = Path(name) if name.endswith((".yaml", ".yml")) else configs_folder() / SWEEPS / f"{name}.yaml"
    if not path.is_file():
        near = difflib.get_close_matches(name, names(), n=1, cutoff=0.0)
        if not near or path == Path(name) or "/" in name:
            raise ValueError(f"no sweep '{name}': there is no file {path}.")
        raise ValueError(f"no sweep '{name}'; did you mean '{near[0]}'?")
    sweep = parse(path, {"name": path.stem, **_mapping(path)})
    folder = path.parent.parent / ABLATIONS
    folder = folder if folder.is_dir() else configs_folder() / ABLATIONS
    return sweep, {row.name: row_settings(row, folder) for row in sweep.rows}


def read_kept(path: Path) -> Sweep:
    """A sweep as the command keeps it beside its runs. Raises ValueError, naming the file, for what is none."""
    try:
        return parse(path, _mapping(path))
    except ValueError as error:
        why = " ".join(str(error).split()).rstrip(".")
        raise ValueError(f"{path} is damaged ({why}): remove it, `nemo-tapo sweep` writes it anew.") from None


def parse(path: Path, raw: Mapping[str, Any]) -> Sweep:
    """Raises ValueError, one sentence a fault."""
    try:
        return Sweep.model_validate(dict(raw))
    except ValidationError as error:
        faults = [f"{path}: {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ValueError("\n".join(faults)) from None


def row_settings(row: Row, ablations: Path) -> dict[str, Any]:
    """{dotted key: value} of a row's ablations and of its own settings."""
    found: dict[str, Any] = {}
    for name in row.ablations:
        path = (ablations.parent if "/" in name else ablations) / f"{name}.yaml"
        if not path.is_file():
            near = difflib.get_close_matches(name, [p.stem for p in ablations.glob("*.yaml")], n=1, cutoff=0.0)
            raise ValueError(
                f"row {row.name}: no ablation '{name}' in {ablations}"
                + (f"; did you mean '{near[0]}'?" if near else ".")
            )
        found |= flatten(_mapping(path))
    return found | row.settings


def _mapping(path: Path) -> dict[str, Any]:
    try:
        raw = yaml.safe_load(path.read_text())
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ValueError(f"{path}: {error}") from None
    if not isinstance(raw, dict):
        raise ValueError(f"{path} is not a mapping of settings.")
    return raw
