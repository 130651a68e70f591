"""Lets NeMo-RL's real workers run where there is no GPU, for tests only.

A hook runs right after the import of the module that it patches; nothing is imported before its time, and NeMo-RL, vLLM
and Megatron stay as they are on the disk. Ray is told of GPUs that do not exist (`ray.init(num_gpus=N)`), so placement
groups, CUDA_VISIBLE_DEVICES and ranks are Ray's and NeMo-RL's own.

The file and line that a hook names are those of NeMo-RL 7ea279ab, vLLM 0.25.1, Megatron-Bridge 8c46dc42 and Megatron-LM
14346b65; NeMo-RL v0.7.0 and its vLLM 0.20.0 have the same in other lines. A hook that finds nothing to patch raises
AttributeError in the process that imported the module.
"""

from __future__ import annotations

import sys

from . import cuda, megatron, nemo_rl, vllm
from .after_import import Finder, Hooks


def hooks() -> Hooks:
    """Return every hook, by the module that it patches."""
    return cuda.HOOKS | nemo_rl.HOOKS | vllm.HOOKS | megatron.HOOKS


def install() -> None:
    """Run the hooks from now on."""
    sys.meta_path.insert(0, Finder(hooks()))
