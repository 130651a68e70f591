"""Make the algorithm that a configuration names. A new algorithm adds one line here (CONTRIBUTING.md)."""

from __future__ import annotations

from collections.abc import Callable

from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.opsd import OPSD
from nemo_tapo.algorithms.reflective_sft import ReflectiveSFT
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Algorithm

ALGORITHMS: dict[str, Callable[[RunConfig, Tools], Algorithm]] = {
    "grpo": GRPO,
    "tapo": TAPO,
    "opsd": OPSD,
    "reflective_sft": ReflectiveSFT,
}


def make_algorithm(cfg: RunConfig, tools: Tools) -> Algorithm:
    """Make the algorithm of `cfg.algorithm`; all share the loop, the data order and the seeds of sampling."""
    return ALGORITHMS[cfg.algorithm](cfg, tools)
