"""Answers for torch.cuda, and CPU tensors where code asks for CUDA tensors."""

from __future__ import annotations

import contextlib
import functools
from collections import defaultdict
from types import SimpleNamespace
from typing import Any

from .after_import import Hook, replace

MEMORY = 4 * 2**30  # bytes that the GPU which does not exist says it has
NAME = "NVIDIA H100 80GB HBM3"  # nemo_rl/utils/flops_tracker.py looks the model up in a table
FACTORIES = (
    "tensor as_tensor empty zeros ones full arange rand randn randint randperm eye linspace empty_strided "
    "scalar_tensor empty_like zeros_like ones_like full_like rand_like randn_like randint_like tril_indices "
    "triu_indices"
).split()
TENSOR_FACTORIES = "new_tensor new_empty new_zeros new_ones new_full".split()


class Event:
    """A point in time that is over at once: nothing runs asynchronously."""

    def __init__(self, *args: Any, **kwargs: Any) -> None: ...
    def record(self, *args: Any) -> None: ...
    def wait(self, *args: Any) -> None: ...
    def synchronize(self) -> None: ...

    def query(self) -> bool:
        return True

    def elapsed_time(self, end: Any) -> float:
        return 0.0


class Stream(contextlib.nullcontext):  # type: ignore[type-arg]
    """A queue of work that is always empty."""

    cuda_stream = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(self)

    def synchronize(self) -> None: ...
    def wait_stream(self, stream: Any) -> None: ...
    def wait_event(self, event: Any) -> None: ...

    def record_event(self, event: Any = None) -> Any:
        return event or Event()

    def query(self) -> bool:
        return True


def answer_calls(torch: Any) -> None:
    """Answer what torch.cuda raises for without a driver.

    Asked by every worker: nemo_rl/models/policy/workers/base_policy_worker.py:51-184, nemo_rl/models/policy/utils.py
    :157 and :382, nemo_rl/models/generation/vllm/vllm_worker.py:87 and :1284, vllm_backend.py:223-275,
    nemo_rl/utils/packed_tensor.py:27-69; Megatron-LM's timers and pipelines; Megatron-Bridge's set-up.
    """
    cuda = torch.cuda
    if cuda.is_available():
        raise RuntimeError("NEMO_RL_ON_CPU is set on a machine with a GPU: run NeMo-RL itself there.")
    device, stream = SimpleNamespace(index=0), Stream()
    properties = SimpleNamespace(
        total_memory=MEMORY, major=9, minor=0, multi_processor_count=1, name=NAME, warp_size=32
    )

    def set_device(index: Any) -> None:
        device.index = index if isinstance(index, int) else getattr(index, "index", None) or 0

    def use_device(index: Any) -> Any:
        return contextlib.nullcontext()

    answers: dict[str, Any] = {
        "is_available": lambda: False,  # it asks device_count, which megatron.py answers
        "Stream": Stream,
        "Event": Event,
        "ExternalStream": Stream,
        "stream": lambda stream: contextlib.nullcontext(),
        "device": use_device,
        "current_stream": lambda device=None: stream,
        "default_stream": lambda device=None: stream,
        "set_stream": lambda stream: None,
        "current_device": lambda: device.index,
        "set_device": set_device,
        "get_device_name": lambda device=None: NAME,
        "get_device_capability": lambda device=None: (9, 0),
        "get_device_properties": lambda device=None: properties,
        "mem_get_info": lambda device=None: (MEMORY // 2, MEMORY),
        "memory_stats": lambda device=None: defaultdict(int),
        "is_current_stream_capturing": lambda: False,
    }
    answers |= dict.fromkeys(
        ("memory_allocated", "memory_reserved", "max_memory_allocated", "max_memory_reserved"), lambda device=None: 0
    )
    answers |= dict.fromkeys(
        ("synchronize", "reset_peak_memory_stats", "empty_cache", "ipc_collect"), lambda *args, **kwargs: None
    )
    for name, answer in answers.items():
        replace(cuda, name, answer)
    for name in ("range_push", "range_pop", "mark"):
        replace(cuda.nvtx, name, lambda *args, **kwargs: None)  # nemo_rl/utils/nsys.py:118
    import torch.cuda.profiler as profiler

    for name in ("start", "stop"):
        replace(profiler, name, lambda: None)  # base_policy_worker.py:173


# ---- CUDA tensors: in the processes of policy workers only ----------------------------------------------------------


def make_tensors_on_cpu(torch: Any) -> None:
    """Make a tensor on the CPU wherever CUDA is asked for.

    dtensor_policy_worker.py:675-1090 calls `.cuda()`, megatron_policy_worker.py:366-787 asks for `device="cuda"`, and
    Megatron-LM for `device=torch.cuda.current_device()`, a number, at every turn.
    """
    import torch.utils._device

    # Filled before the functions are wrapped: otherwise `with torch.device("meta")`, in which Transformers builds a
    # model, does not recognise them, and buffers such as inv_freq hold what was in memory.
    torch.utils._device._device_constructors()
    for name in FACTORIES:
        replace(torch, name, make_on_cpu(torch, getattr(torch, name)))
    tensor, module = torch.Tensor, torch.nn.Module
    for name in TENSOR_FACTORIES:
        replace(tensor, name, make_on_cpu(torch, getattr(tensor, name)))
    for owner in (tensor, module):
        replace(owner, "to", _move_to_cpu(torch, owner.to))
        replace(owner, "cuda", lambda self, *args, **kwargs: self)
    # A copy, as of a GPU's tensor: Megatron-LM's core/distributed/param_and_grad_buffer.py:1637 frees the original.
    replace(tensor, "pin_memory", lambda self, *args, **kwargs: self.clone())
    replace(tensor, "record_stream", lambda self, stream: None)
    _name_cuda_types(tensor)
    _autocast_on_cpu(torch)


def _on_cpu(torch: Any, device: Any) -> Any:
    """Return the CPU for a CUDA device or a device's number, anything else unchanged."""
    if isinstance(device, int) and not isinstance(device, bool):
        return torch.device("cpu")
    if isinstance(device, str):
        return "cpu" if device.partition(":")[0] == "cuda" else device
    if isinstance(device, torch.device) and device.type == "cuda":
        return torch.device("cpu")
    return device


def make_on_cpu(torch: Any, make: Any) -> Any:
    """Return a function that makes a tensor as `make` does, on the CPU if CUDA is asked for."""

    @functools.wraps(make)
    def made(*args: Any, **kwargs: Any) -> Any:
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(torch, kwargs["device"])
        if kwargs.get("pin_memory"):
            kwargs["pin_memory"] = False
        return make(*args, **kwargs)

    return made


def _move_to_cpu(torch: Any, move: Any) -> Any:
    @functools.wraps(move)
    def moved(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args and isinstance(args[0], int | str | torch.device):
            args = (_on_cpu(torch, args[0]), *args[1:])
        if "device" in kwargs:
            kwargs["device"] = _on_cpu(torch, kwargs["device"])
        return move(self, *args, **kwargs)

    return moved


def _name_cuda_types(tensor: Any) -> None:
    """Call a type torch.cuda.FloatTensor: Megatron-LM's core/optimizer/clip_grads.py:174 asserts the name.

    core/optimizer/distrib_optimizer.py:466 and optimizer.py:1028 choose by it.
    """
    get_type = tensor.type

    def named(self: Any, *args: Any, **kwargs: Any) -> Any:
        if args or kwargs:
            return get_type(self, *args, **kwargs)
        return get_type(self).replace("torch.", "torch.cuda.", 1)

    replace(tensor, "type", named)


def _autocast_on_cpu(torch: Any) -> None:
    """Let `torch.autocast("cuda")` mean the CPU: dtensor_policy_worker.py:737 and :1169."""
    autocast = torch.amp.autocast_mode.autocast
    init = autocast.__init__

    def init_on_cpu(self: Any, device_type: str, *args: Any, **kwargs: Any) -> None:
        init(self, "cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    replace(autocast, "__init__", init_on_cpu)


def communicate_by_gloo(torch: Any) -> None:
    """Use gloo for NCCL: dtensor_policy_worker.py:262 and :408, nemo_rl/models/megatron/setup.py:321.

    Megatron-LM's core/parallel_state.py:245 gives new groups options of NCCL's.
    """
    import torch.distributed.device_mesh as device_mesh
    import torch.distributed.distributed_c10d as c10d

    def without_nccl(make: Any) -> Any:
        @functools.wraps(make)
        def made(*args: Any, **kwargs: Any) -> Any:
            for name in ("pg_options", "device_id"):
                kwargs.pop(name, None)
            if "nccl" in str(kwargs.get("backend")):
                kwargs["backend"] = "gloo"
            return make(*(_gloo_for_nccl(each) for each in args), **kwargs)

        return made

    for name in ("init_process_group", "new_group"):
        wrapped = without_nccl(getattr(c10d, name))
        replace(c10d, name, wrapped)
        replace(torch.distributed, name, wrapped)
    init_mesh = device_mesh.init_device_mesh

    @functools.wraps(init_mesh)
    def init_mesh_on_cpu(device_type: str, *args: Any, **kwargs: Any) -> Any:
        return init_mesh("cpu" if device_type == "cuda" else device_type, *args, **kwargs)

    replace(device_mesh, "init_device_mesh", init_mesh_on_cpu)
    replace(torch.distributed, "init_device_mesh", init_mesh_on_cpu)


def _gloo_for_nccl(argument: Any) -> Any:
    return "gloo" if isinstance(argument, str) and "nccl" in argument else argument


def make_policy_process(module: Any) -> None:
    """Turn this process into one that holds a policy worker; engines keep vLLM's own CPU platform."""
    import torch

    make_tensors_on_cpu(torch)
    communicate_by_gloo(torch)


HOOKS = {
    "torch": Hook(answer_calls),
    "nemo_rl.models.policy.workers.base_policy_worker": Hook(make_policy_process),
}
