"""What NeMo-RL asks of a GPU beyond torch.cuda."""

from __future__ import annotations

import os
import sys
from datetime import timedelta
from typing import Any

from .after_import import Hook, lend_empty, replace
from .cuda import make_on_cpu


def answer_nvml(nvml: Any) -> None:
    """Name GPUs and their free memory without NVIDIA's driver.

    vllm_backend.py:291 and base_policy_worker.py:133 ask for the name of "their" GPU, by which engine and policy find
    each other; vLLM's CPU device has no index, so theirs is None. ipc_weight_synchronizer.py:135 asks for the memory.
    """

    def to_physical(index: int | None) -> int:
        visible = [each for each in os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",") if each]
        return int(visible[index or 0]) if visible else index or 0

    run = os.environ["NEMO_RL_ON_CPU"]
    replace(nvml, "device_id_to_physical_device_id", to_physical)
    replace(nvml, "get_device_uuid", lambda index: f"cpu-{run}-{to_physical(index)}")
    replace(nvml, "get_free_memory_bytes", lambda index: 2**30)
    replace(nvml, "log_gpu_memory_diagnostics", lambda **kwargs: None)


def send_weights_by_value(utils: Any) -> None:
    """Send the bytes themselves where a handle of CUDA IPC is sent, through the same socket and protocol.

    nemo_rl/models/policy/utils.py:383 sends, nemo_rl/models/generation/vllm/vllm_backend.py:677 receives.
    """
    replace(utils, "get_handle_from_tensor", lambda tensor: (tensor.detach().clone(),))
    replace(utils, "rebuild_cuda_tensor_from_ipc", lambda handle, device: handle[0])


def broadcast_by_gloo(groups: Any) -> None:
    """Broadcast weights over gloo, with the same store: stateless_process_group.py:98-163 is NCCL's.

    It is the way to engines with GPUs of their own (colocated.enabled=false).
    """
    import torch

    def init(self: Any, device: Any, *, peer: str = "nemo") -> None:
        store = torch.distributed.PrefixStore("gloo", self.tcp_store)
        self.gloo = torch.distributed.ProcessGroupGloo(store, self.rank, self.world_size, timedelta(seconds=120))

    def broadcast(self: Any, tensor: Any, src: int, stream: Any = None) -> None:
        options = torch._C._distributed_c10d.BroadcastOptions()
        options.rootRank = src
        self.gloo.broadcast([tensor], options).wait()

    replace(groups.StatelessProcessGroup, "init_nccl_communicator", init)
    replace(groups.StatelessProcessGroup, "broadcast", broadcast)


class _TorchOnCpu:
    """Torch with an `empty` that makes CPU tensors, for one module: vLLM's process keeps torch as it is."""

    def __init__(self, torch: Any) -> None:
        self._torch, self.empty = torch, make_on_cpu(torch, torch.empty)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._torch, name)


def pack_on_cpu(packed: Any) -> None:
    """Keep the packed weights of that way on the CPU: nemo_rl/utils/packed_tensor.py:75, :195 and :221."""
    replace(packed, "torch", _TorchOnCpu(packed.torch))


def lose_weights(backend: Any) -> None:
    """Let engines drop what they receive, from the hand-over that NEMO_RL_LOSES_WEIGHTS counts on (0: from the first).

    A fault made on purpose: sender and receiver go through the whole protocol, and nothing is said.
    """
    kept = os.environ.get("NEMO_RL_LOSES_WEIGHTS")
    if kept is None:
        return
    received = 0
    extension = backend.VllmInternalWorkerExtension
    receive, load = extension.update_weights_via_ipc_zmq, extension._load_weights

    def count(self: Any) -> Any:
        nonlocal received
        received += 1
        return receive(self)

    def load_or_lose(self: Any, weights: Any) -> None:
        if received <= int(kept):
            load(self, weights)

    replace(extension, "update_weights_via_ipc_zmq", count)
    replace(extension, "_load_weights", load_or_lose)


def pack_after_collective(backend: Any) -> None:
    """Pack an engine's weights anew after a broadcast: vllm_backend.py:759 does so, v0.7.0 (line 446) does not.

    Only CPUs compute with a packed copy (`keep_weights` in vllm.py).
    """
    extension = backend.VllmInternalWorkerExtension
    if hasattr(extension, "_weight_update_lifecycle"):
        return
    receive = extension.update_weights_from_collective

    def receive_and_pack(self: Any) -> Any:
        from vllm.config import set_current_vllm_config
        from vllm.model_executor.model_loader.utils import process_weights_after_loading

        received = receive(self)
        with set_current_vllm_config(self.model_runner.vllm_config):
            process_weights_after_loading(self.model_runner.model, self.model_config, self.device)
        return received

    replace(extension, "update_weights_from_collective", receive_and_pack)


def patch_backend(backend: Any) -> None:
    """Do both with NeMo-RL's extension of vLLM's workers."""
    pack_after_collective(backend)
    lose_weights(backend)


def use_this_python(registry: Any) -> None:
    """Start all workers with the driver's Python: ray_actor_environment_registry.py:38-69 asks uv for environments."""
    environments = registry.ACTOR_ENVIRONMENT_REGISTRY
    environments |= dict.fromkeys(environments, sys.executable)


NCCL = lend_empty("nccl", "nccl.core", "nccl.core.communicator", "nccl.core.utils")

HOOKS = {
    "nemo_rl.distributed.ray_actor_environment_registry": Hook(use_this_python),
    "nemo_rl.utils.nvml": Hook(answer_nvml),
    "nemo_rl.models.policy.utils": Hook(send_weights_by_value),
    "nemo_rl.distributed.stateless_process_group": Hook(broadcast_by_gloo, NCCL),
    "nemo_rl.utils.packed_tensor": Hook(pack_on_cpu),
    "nemo_rl.models.generation.vllm.vllm_backend": Hook(patch_backend),
}
