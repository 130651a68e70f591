"""Load the configuration of a run for any runtime."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.config.load import load_config
from nemo_tapo.config.run_config import RunConfig


def load_run_config(path: Path | None, overrides: Sequence[str] = ()) -> RunConfig:
    """Load a config file in either format: this package's own, or NeMo-RL's with a `tapo:` block.

    Raises the same errors as `load_config`.
    """
    from nemo_tapo.runtime.nemo_rl.config import cluster_run as nemo_rl

    if path is not None and nemo_rl.is_nemo_rl_config(path):
        return nemo_rl.load_cluster_run(path, overrides).cfg
    return load_config(path, overrides)
