"""The algorithm that a configuration names."""

from __future__ import annotations

from nemo_tapo.algorithms.base import Tools
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.opsd import OPSD
from nemo_tapo.algorithms.reflective_sft import ReflectiveSFT
from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.config.run_config import RunConfig
from nemo_tapo.interfaces import Algorithm

ALGORITHMS: dict[str, type[GRPO]] = {"grpo": GRPO, "tapo": TAPO, "opsd": OPSD, "reflective_sft": ReflectiveSFT}


def make_algorithm(cfg: RunConfig, tools: Tools) -> Algorithm:
    """One of the algorithms that share the loop, the data order and the seeds of sampling."""
    return ALGORITHMS[cfg.algorithm](cfg, tools)
