"""Find NeMo-RL's source tree and compose config files that inherit from it, in the way NeMo-RL composes them.

NeMo-RL is not imported: `plan` and `--dry-run` work on a login node that has only the YAML files of a checkout.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

CONTAINER_SOURCE = Path("/opt/nemo-rl")  # the checkout in NVIDIA's container
FILE_KEYS = ("tapo.coldstart.sft_recipe",)  # they name another config file, as `defaults` does
RELEASE = "v0.7.0"  # whose files `FETCH` gets


def get_fetched_source() -> Path:
    """Return where a checkout is looked for that was fetched for plans alone: in the user's cache."""
    cache = os.environ.get("XDG_CACHE_HOME", "").strip() or os.path.expanduser("~/.cache")
    return Path(cache, "nemo_tapo", f"nemo-rl-{RELEASE}")


def get_fetch_command() -> str:
    """Return the command that fetches NeMo-RL's files (30 MB) to where they are found without further settings."""
    return f"git clone -q --depth 1 -b {RELEASE} https://github.com/NVIDIA-NeMo/RL {get_fetched_source()}"


def get_source_hint() -> str:
    """Return how to give a plan NeMo-RL's files, as the end of a sentence."""
    return (
        f"fetch its files once with `{get_fetch_command()}`, or set NEMO_RL_SRC to a checkout (the YAML files are "
        "enough), or run inside NVIDIA's container, which has it in /opt/nemo-rl"
    )


def find_source() -> Path | None:
    """Return NEMO_RL_SRC, else the checkout of an installed nemo_rl, else the container's, else a fetched one; or None.

    Raises ValueError if NEMO_RL_SRC is not a checkout.
    """
    named = os.environ.get("NEMO_RL_SRC")
    if named:
        if not (Path(named) / "examples" / "configs").is_dir():
            raise ValueError(f"NEMO_RL_SRC={named} is no NeMo-RL checkout: it has no folder examples/configs")
        return Path(named).resolve()
    package = importlib.util.find_spec("nemo_rl")  # does not import it
    installed = [Path(package.origin).parents[1]] if package and package.origin else []
    for candidate in [*installed, CONTAINER_SOURCE, get_fetched_source()]:
        if (candidate / "examples" / "configs").is_dir():
            return candidate
    return None


def compose_config(path: Path, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Return the content of a file merged with what it inherits and with the overrides, `${...}` resolved.

    `defaults:` names files relative to the file itself or, if there is no such file, to NeMo-RL's examples/configs.
    `file.yaml@a.b` puts a file's content under `a.b` (Hydra's notation, which NeMo-RL's own loader lacks). Raises
    ValueError for a file that is missing or does not parse, an invalid override, or an interpolation that cannot be
    resolved.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    _register_resolvers()
    try:
        composed = _load_with_defaults(path)
        for override in overrides:
            _apply_override(composed, override)
        resolved = OmegaConf.to_container(composed, resolve=True, throw_on_missing=True)
    except (OmegaConfBaseException, yaml.YAMLError) as error:
        raise ValueError(f"{path}: {error}") from None
    assert isinstance(resolved, dict)
    return {str(key): value for key, value in resolved.items()}


def _load_with_defaults(path: Path) -> Any:
    """Load a file merged over its `defaults`: later ones over earlier ones, each relative to the file that names it."""
    from omegaconf import DictConfig, OmegaConf

    config = OmegaConf.load(path)
    if not isinstance(config, DictConfig):
        raise ValueError(f"{path} is not a mapping of sections")
    _anchor_files(config, path.parent)
    defaults = config.pop("defaults", [])
    base = OmegaConf.create({})
    for each in [defaults] if isinstance(defaults, str) else defaults:
        name, _, package = str(each).partition("@")
        inherited = _load_with_defaults(_find_parent(path, name))
        for section in reversed(package.split(".") if package else []):
            inherited = OmegaConf.create({section: inherited})
        base = _merge_over(base, inherited)
    return _merge_over(base, config)


def _anchor_files(config: Any, folder: Path) -> None:
    """Make the path of a config file that `config` names absolute if the file is in `folder`, beside `config`."""
    from omegaconf import OmegaConf

    for key in FILE_KEYS:
        named = OmegaConf.select(config, key)
        if isinstance(named, str) and (folder / named).is_file():
            OmegaConf.update(config, key, str((folder / named).resolve()))


def _find_parent(child: Path, name: str) -> Path:
    """Return the file that `child` inherits from as `name`. Raises ValueError if there is none."""
    beside = child.parent / name  # an absolute `name` replaces the folder
    if beside.is_file():
        return beside
    source = find_source()
    if source is None:
        raise ValueError(f"{child} inherits {name}, which is not beside it: if it is NeMo-RL's, {get_source_hint()}")
    inherited = source / "examples" / "configs" / name
    if not inherited.is_file():
        raise ValueError(f"{child} inherits {name}, which is neither beside it nor in {inherited.parent}")
    return inherited


def _merge_over(base: Any, config: Any) -> Any:
    """Merge `config` over `base`; a section with `_override_: true` replaces the inherited one.

    A mandatory value (`???`) in `config` keeps the inherited one; a child or an override may still set it.
    """
    from omegaconf import DictConfig, OmegaConf

    for key in list(config.keys()):
        if OmegaConf.is_missing(config, key) or not isinstance(config[key], DictConfig):
            continue
        if config[key].pop("_override_", False):
            base.pop(key, None)
    return OmegaConf.merge(base, config)


def _apply_override(config: Any, override: str) -> None:
    """Apply one override in Hydra's grammar: `a.b=1`, `+a.b=1`, `++a.b=1`, `~a.b`.

    Raises ValueError for text that is no override, a sweep, or the deletion of a missing key.
    """
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException
    from omegaconf import OmegaConf

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"override {override!r} is not key=value: {error}") from None
    if parsed.is_sweep_override():
        raise ValueError(f"override {override!r} is a sweep; this command takes one value")
    if parsed.is_delete():
        owner, _, leaf = parsed.key_or_group.rpartition(".")
        section = OmegaConf.select(config, owner) if owner else config
        if section is None or leaf not in section:
            raise ValueError(f"override {override!r} deletes a key that is not there")
        section.pop(leaf)
    else:
        OmegaConf.update(config, parsed.key_or_group, parsed.value(), force_add=True)


def _register_resolvers() -> None:
    """Register the arithmetic that NeMo-RL's files use, such as `${mul:a,b}`."""
    from omegaconf import OmegaConf

    arithmetic = {
        "add": lambda a, b: a + b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "max": lambda a, b: max(a, b),
    }
    for name, function in arithmetic.items():
        if not OmegaConf.has_resolver(name):
            OmegaConf.register_new_resolver(name, function)
