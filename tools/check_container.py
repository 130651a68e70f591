"""Check whether this environment can run TAPO on NeMo-RL: packages, NeMo-RL's own parts, settings, GPUs. One line each.

    python tools/check_container.py [--gpus N]

Runs on every node of a job before Ray starts (tools/slurm/node.sh), and when the image is built. Exit code 1: something
is missing; everything is named at once.
"""

from __future__ import annotations

import argparse
import importlib
import inspect
import os
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

# What nemo_tapo imports outside the standard library; NeMo-RL v0.7.0 and main bring all of it.
PACKAGES = (
    "torch numpy pydantic safetensors hydra omegaconf yaml rich matplotlib tensorboard httpx math_verify "
    "latex2sympy2_extended datasets pyarrow transformers psutil ray"
).split()
ARCHITECTURES = "TORCH_CUDA_ARCH_LIST"
WORKERS = {  # of NeMo-RL, with what each has to import; the loss goes to them by value and wants no more than torch
    "megatron_policy_worker.MegatronPolicyWorker": ("torch", "megatron.core"),
    "vllm_worker.VllmGenerationWorker": ("torch", "vllm"),
}
# torch is imported: it loads the CUDA libraries. The others are looked for, as some want a GPU to be imported.
LOOK = (
    "import importlib.util, sys, torch\n"
    "def there(name):\n"
    "    try: return importlib.util.find_spec(name) is not None\n"
    "    except ImportError: return False\n"
    "missing = [name for name in sys.argv[1:] if not there(name)]\n"
    "sys.exit(f'no {\", \".join(missing)}' if missing else 0)"
)


def faults(gpus: int) -> Iterator[str]:
    """Yield one sentence for each thing that would end a run later."""
    missing = [name for name in ("nemo_tapo", *PACKAGES) if not imports(name)]
    if missing:
        yield f"cannot import {', '.join(missing)}."
    if "nemo_tapo" not in missing:
        yield from of_nemo_rl()
    yield from of_workers()
    if not os.environ.get(ARCHITECTURES):
        yield f"{ARCHITECTURES} is not set, without which NeMo-RL's Megatron policy does not start: 9.0 for H100."
    if gpus and "torch" not in missing:
        import torch

        if torch.cuda.device_count() < gpus:
            yield f"{torch.cuda.device_count()} GPUs are visible, {gpus} were asked for."
    if "nemo_tapo" not in missing:
        yield from of_node(gpus)


def of_node(gpus: int) -> Iterator[str]:
    """Check the caches' folders, and the room in /dev/shm if GPUs were asked for."""
    from nemo_tapo.runtime.nemo_rl.config import node_checks

    yield from node_checks.check_caches()
    if gpus:
        yield from node_checks.check_shared_memory(gpus)


def imports(name: str) -> bool:
    """Return True if a package imports; one that is there and breaks counts as missing."""
    try:
        importlib.import_module(name)
    except Exception as error:  # whatever a broken package raises
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def of_nemo_rl() -> Iterator[str]:
    """Check that NeMo-RL is there and has every name that this package calls."""
    from nemo_tapo.runtime.nemo_rl import compat

    if not compat.is_installed():
        yield "NeMo-RL is not importable: this is not its container."
        return
    lacking = [name for name in compat.NAMES if not has(compat, name)]
    if lacking:
        yield f"this NeMo-RL has no {', '.join(lacking)}: v0.7.0 and later are supported."
    elif "policy_factory" not in inspect.signature(compat.load("setup")).parameters:
        yield "this NeMo-RL's setup() takes no policy_factory: v0.7.0 and later are supported."


def has(compat: object, name: str) -> bool:
    try:
        compat.load(name)  # type: ignore[attr-defined]
    except Exception as error:
        print(f"{name}: {type(error).__name__}: {error}", file=sys.stderr)
        return False
    return True


def of_workers() -> Iterator[str]:
    """Check that the environments of NeMo-RL's workers, where they have been built, have what they need."""
    for worker, names in WORKERS.items():
        for python in interpreters(worker):
            command = [str(python), "-c", LOOK, *names]
            done = subprocess.run(command, check=False, capture_output=True, text=True)
            if done.returncode:
                why = done.stderr.strip().splitlines()[-1:] or [f"exit code {done.returncode}"]
                yield f"the workers' environment {python.parents[1]} is not fit to run: {why[0]}."


def interpreters(worker: str) -> list[Path]:
    """Yield the interpreters of the environments that NeMo-RL has built for workers."""
    folder = Path(os.environ.get("NEMO_RL_VENV_DIR", "/opt/ray_venvs"))
    return sorted(folder.glob(f"*{worker}/bin/python"))


def notes() -> Iterator[str]:
    """Yield what does not stop a run, but delays its start."""
    absent = [worker for worker in WORKERS if not interpreters(worker)]
    if absent:
        yield f"no environment of {', '.join(absent)} is built: NeMo-RL will do it on every node."


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--gpus", type=int, default=0, help="GPUs that have to be visible")
    found = list(faults(arguments.parse_args().gpus))
    for note in notes():
        print(f"check_container: note: {note}", file=sys.stderr)
    print(" ".join(found) if found else "check_container: ready")  # one line: a node's fault is its log's last line
    return 1 if found else 0


if __name__ == "__main__":
    sys.exit(main())
