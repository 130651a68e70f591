"""Run `nemo-tapo` in a Ray that is told of GPUs: drive.py <GPUs> <arguments of nemo-tapo>."""

from __future__ import annotations

import os
import shutil
import sys
import tempfile

import ray

from nemo_tapo import cli

OBJECT_STORE_BYTES = 256 * 2**20
ATTEMPTS = 3  # Ray gives itself 30 seconds to start, which is short on a busy machine


def main(gpus: int, arguments: list[str]) -> int:
    """Run the command line on `gpus` GPUs that do not exist; return its exit code."""
    # Short: the path of a Unix socket has at most 107 characters, and Ray adds 60 of them.
    folder = tempfile.mkdtemp(prefix=f"nt-{os.environ['NEMO_RL_ON_CPU']}-", dir="/tmp")
    try:
        start_ray(gpus, folder)
        return cli.main(arguments)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


def start_ray(gpus: int, folder: str) -> None:
    """Start a Ray for this process, with sockets and logs in `folder`."""
    for attempt in range(1, ATTEMPTS + 1):
        try:
            ray.init(
                address="local",
                num_cpus=2 * gpus + 2,  # NeMo-RL reserves one for every worker
                num_gpus=gpus,
                include_dashboard=False,
                object_store_memory=OBJECT_STORE_BYTES,
                _temp_dir=folder,
            )
            return
        except Exception:  # of no type of its own
            ray.shutdown()
            if attempt == ATTEMPTS:
                raise


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
