"""Create the task that a config names."""

from __future__ import annotations

from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.interfaces import Task


def make_task(cfg: TaskConfig, seed: int) -> Task:
    """Create the task that `cfg` names. The caller closes it. Raises ValueError for data that cannot be read."""
    if cfg.name == "arithmetic":
        from nemo_tapo.tasks.arithmetic_task import ArithmeticTask

        return ArithmeticTask(cfg.arithmetic, seed)
    assert cfg.name == "mathematics", "nemo_rl is made by its own runtime, and run_config.py lets no other have it"
    from nemo_tapo.tasks.mathematics import MathematicsTask

    return MathematicsTask(cfg.mathematics)
