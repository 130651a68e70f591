"""Load config files: YAML that inherits (`defaults:`), overrides in Hydra's grammar, then `run_config.validate`."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import yaml

from nemo_tapo.config.run_config import RunConfig, describe_unknown_key, list_known_keys, validate
from nemo_tapo.utils.errors import read_message


def load_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load the resolved configuration of a file (None: all defaults) with `key=value` overrides.

    Raises ValueError with a sentence for a missing file, YAML that does not parse, an override that is none, an
    unknown key (naming the nearest) or a value that does not fit.
    """
    return validate(compose_config(path, overrides))


def compose_config(path: Path | None, overrides: Sequence[str] = ()) -> dict[str, Any]:
    """Compose file and overrides into one plain mapping, not yet validated."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.core.config_store import ConfigStore
    from hydra.core.global_hydra import GlobalHydra
    from hydra.errors import HydraException
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException

    if path is None:
        ConfigStore.instance().store(name="empty", node={})
        folder, name = Path(__file__).parent, "empty"  # a folder without such a file
    else:
        if not path.is_file():
            raise ValueError(f"no config file {path}{_neighbours(path)}")
        if path.suffix != ".yaml":
            raise ValueError(f"{path}: the name of a config file ends in .yaml.")
        folder, name = path.resolve().parent, path.stem
    prefixed = [_additive(override, folder) for override in overrides]
    GlobalHydra.instance().clear()
    try:
        with initialize_config_dir(config_dir=str(folder), version_base="1.3"):
            composed = hydra_compose(config_name=name, overrides=prefixed)
        raw = OmegaConf.to_container(composed, resolve=True)
    except RecursionError:
        raise ValueError(f"{path or 'overrides'}: it is nested too deeply, or inherits from itself.") from None
    except (HydraException, OmegaConfBaseException, yaml.YAMLError, ValueError, TypeError) as error:
        raise ValueError(f"{path or 'overrides'}: {read_message(error) or type(error).__name__}") from None
    assert isinstance(raw, dict)
    return {str(k): v for k, v in raw.items()}


def _additive(override: str, folder: Path) -> str:
    """Turn `a.b=1` into `++a.b=1`, so that a key the file leaves at its default can be set; check its name."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.core.override_parser.types import OverrideType
    from hydra.errors import HydraException

    try:
        parsed = OverridesParser.create().parse_override(override)
    except HydraException as error:
        raise ValueError(f"override {override!r} is not key=value: {error}") from None
    except RecursionError:
        raise ValueError(f"override {override[:60]!r}... is nested too deeply.") from None
    key = parsed.key_or_group
    group = (parsed.is_add() or parsed.type is OverrideType.CHANGE) and (folder / key).is_dir()
    if parsed.package is not None or group:  # +data@task.mathematics.train=gsm8k, +ablations=no-ots
        return override
    if key not in list_known_keys(RunConfig, key):
        raise ValueError(describe_unknown_key(key))
    return f"++{override}" if parsed.type is OverrideType.CHANGE else override


def _neighbours(path: Path) -> str:
    """Return the nearest file name in the same folder, as the end of a sentence."""
    import difflib

    names = [p.name for p in path.parent.glob("*.yaml")] if path.parent.is_dir() else []
    near = difflib.get_close_matches(path.name, names, n=1, cutoff=0.3)
    return f"; did you mean {path.parent / near[0]}?" if near else ""
