"""Run `nemo-tapo` in a Ray that is told of GPUs: drive.py <GPUs> <arguments of nemo-tapo>."""

from __future__ import annotations

import shutil
import sys
import tempfile

import ray

from nemo_tapo import cli

OBJECT_STORE_BYTES = 256 * 2**20


def main(gpus: int, arguments: list[str]) -> int:
    """Run the command line on `gpus` GPUs that do not exist; return its exit code."""
    folder = tempfile.mkdtemp(prefix="nt-", dir="/tmp")  # short: the path of a Unix socket has at most 107 characters
    try:
        ray.init(
            address="local",
            num_cpus=2 * gpus + 2,  # NeMo-RL reserves one for every worker
            num_gpus=gpus,
            include_dashboard=False,
            object_store_memory=OBJECT_STORE_BYTES,
            _temp_dir=folder,
        )
        return cli.main(arguments)
    finally:
        ray.shutdown()
        shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    sys.exit(main(int(sys.argv[1]), sys.argv[2:]))
