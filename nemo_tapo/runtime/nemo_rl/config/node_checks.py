"""Check the node that a run is about to start on: what a plan on a login node cannot know. One sentence a fault."""

from __future__ import annotations

import ast
import importlib.util
import os
import shutil
from collections.abc import Iterable
from pathlib import Path

from nemo_tapo.planning.cluster_setup import ClusterSetup, GiB

SHARED_MEMORY, NVIDIA = Path("/dev/shm"), Path("/dev/nvidiactl")
SHARED_GIB, SHARED_GIB_A_GPU = 1.0, 0.5  # NCCL, vLLM's queues between its processes, Ray's objects
CACHES = ("HF_HOME", "HF_HUB_CACHE", "HF_DATASETS_CACHE", "NRL_MEGATRON_CHECKPOINT_DIR")


def check_environment(setup: ClusterSetup) -> Iterable[str]:
    """Yield what this node lacks to start a run (a plan does not need it)."""
    if setup.megatron and "TORCH_CUDA_ARCH_LIST" not in os.environ:
        yield (
            "TORCH_CUDA_ARCH_LIST is not set and NeMo-RL's Megatron workers want it: NVIDIA's container sets it; "
            "elsewhere export it, for H100 TORCH_CUDA_ARCH_LIST='9.0'."
        )
    yield from check_release()
    yield from check_caches()
    if NVIDIA.exists():
        yield from check_shared_memory(setup.gpus_per_node)


def check_release() -> Iterable[str]:
    """Yield a sentence if the installed NeMo-RL is older than v0.7.0; without importing it.

    Its version number does not tell: main calls itself 0.6.0. Since v0.7.0 `setup` takes a `policy_factory`.
    """
    package = importlib.util.find_spec("nemo_rl")
    source = Path(package.origin).parent / "algorithms" / "grpo.py" if package and package.origin else None
    if source is None or not source.is_file():
        return
    functions = [node for node in ast.parse(source.read_text()).body if isinstance(node, ast.FunctionDef)]
    arguments = {a.arg for f in functions if f.name == "setup" for a in [*f.args.args, *f.args.kwonlyargs]}
    if "policy_factory" not in arguments:
        yield (
            f"the NeMo-RL of this environment ({source.parents[1]}) is older than v0.7.0, the first that is supported: "
            "use nvcr.io/nvidia/nemo-rl:v0.7.0, or an image of your own with a later NeMo-RL."
        )


def check_caches() -> Iterable[str]:
    """Yield a sentence for each variable that names a cache folder in a place that is not here.

    The folder itself may be new, but not the one that it is in.
    """
    for name in CACHES:
        value = os.environ.get(name, "").strip()
        above = Path(value).absolute().parent
        if value and not Path(value).is_dir() and not above.is_dir():
            yield (
                f"{name} = {value}, and {above} is not on this node: mount it into the container (--mounts), or name a "
                "folder that all nodes see."
            )


def check_shared_memory(gpus: int, folder: Path = SHARED_MEMORY) -> Iterable[str]:
    """Yield a sentence if a node with so many GPUs has too little room in /dev/shm; where it ends, NCCL fails."""
    needed = SHARED_GIB + SHARED_GIB_A_GPU * gpus
    free = shutil.disk_usage(folder).free / GiB if folder.is_dir() else 0.0
    if free < needed:
        yield (
            f"{folder} has {free:.1f} GiB free, and {gpus} GPUs need about {needed:g} GiB for NCCL, vLLM and Ray: "
            "start the container with --shm-size=64g (docker) or a larger /dev/shm, or remove what others left in it."
        )
