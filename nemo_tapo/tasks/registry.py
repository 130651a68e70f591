"""Create the task that a config names."""

from __future__ import annotations

from nemo_tapo.config.sections import TaskConfig
from nemo_tapo.interfaces import Task


def make_task(cfg: TaskConfig, seed: int) -> Task:
    """Create the task that `cfg` names, with its rewards. The caller closes it.

    Raises ValueError for data that cannot be read and for a user's class or function that cannot be used.
    """
    return add_rewards(make_bare_task(cfg, seed), cfg)


def make_bare_task(cfg: TaskConfig, seed: int) -> Task:
    """Create the task that `cfg` names, with its own verdict."""
    if cfg.name == "arithmetic":
        from nemo_tapo.tasks.arithmetic_task import ArithmeticTask

        return ArithmeticTask(cfg.arithmetic, seed)
    if cfg.name == "countdown":
        from nemo_tapo.tasks.countdown_task import CountdownTask

        return CountdownTask(cfg.countdown, seed)
    if cfg.name == "custom":
        from nemo_tapo.tasks.custom_task import CustomTask

        return CustomTask(cfg, seed)
    if cfg.name == "reasoning_gym":
        from nemo_tapo.tasks.reasoning_gym_task import ReasoningGymTask

        return ReasoningGymTask(cfg, seed)
    assert cfg.name == "mathematics", "nemo_rl is made by its own runtime, and run_config.py lets no other have it"
    from nemo_tapo.tasks.mathematics import MathematicsTask

    return MathematicsTask(cfg.mathematics, cfg.own_verdict)


def add_rewards(task: Task, cfg: TaskConfig) -> Task:
    """Return `task` graded by the rewards of `cfg`; `task` itself if there are none."""
    if not cfg.all_rewards:
        return task
    from nemo_tapo.tasks.rewarded_task import RewardedTask

    return RewardedTask(task, cfg)
