"""The data sets that a mathematics config names, and the settings by which errors speak of them."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_tapo.config.sections import DatasetConfig, MathematicsConfig

KEY, TRAIN = "task.mathematics", "train"


def setting(name: str) -> str:
    """Where the config names a set: the training set or a benchmark."""
    return f"{KEY}.train" if name == TRAIN else f"{KEY}.benchmarks.{name}"


def train_set(cfg: MathematicsConfig) -> DatasetConfig:
    """Raises ValueError if there is none."""
    if cfg.train is None:
        raise ValueError(f"{KEY}.train is not set: it names the training queries, {KEY}.train.path=FILE.")
    return cfg.train


def benchmark_sets(cfg: MathematicsConfig) -> Mapping[str, DatasetConfig]:
    """By name. Raises ValueError if there is none."""
    if not cfg.benchmarks:
        raise ValueError(f"{KEY}.benchmarks names no set; add one, {KEY}.benchmarks.NAME.path=FILE.")
    return cfg.benchmarks
