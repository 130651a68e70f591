"""Runtimes by name."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.load import load
from nemo_tapo.config.run_config import RunConfig


def load_either(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """The settings of a file of either kind, this package's or NeMo-RL's with a `tapo:` block. Raises as `load`."""
    from nemo_tapo.runtime.nemo_rl.config import cluster_run as nemo_rl

    if path is not None and nemo_rl.is_nemo_rl(path):
        return nemo_rl.load(path, overrides).cfg
    return load(path, overrides)
