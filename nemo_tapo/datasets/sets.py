"""Look up the data sets of a mathematics config, and the config keys that error messages name."""

from __future__ import annotations

from collections.abc import Mapping

from nemo_tapo.config.sections import DatasetConfig, MathematicsConfig

KEY, TRAIN = "task.mathematics", "train"


def get_config_key(name: str) -> str:
    """Return the config key of the training set or of a benchmark.

    >>> get_config_key("train"), get_config_key("gsm8k")
    ('task.mathematics.train', 'task.mathematics.benchmarks.gsm8k')
    """
    return f"{KEY}.train" if name == TRAIN else f"{KEY}.benchmarks.{name}"


def get_train_set(cfg: MathematicsConfig) -> DatasetConfig:
    """Return the training set. Raises ValueError if the config names none."""
    if cfg.train is None:
        raise ValueError(f"{KEY}.train is not set: it names the training queries, {KEY}.train.path=FILE.")
    return cfg.train


def get_benchmark_sets(cfg: MathematicsConfig) -> Mapping[str, DatasetConfig]:
    """Return the benchmarks by name. Raises ValueError if the config names none."""
    if not cfg.benchmarks:
        raise ValueError(f"{KEY}.benchmarks names no set; add one, {KEY}.benchmarks.NAME.path=FILE.")
    return cfg.benchmarks
