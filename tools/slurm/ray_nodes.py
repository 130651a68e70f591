"""Wait until Ray has all nodes: ray_nodes.py LOGS SECONDS NODE... Exit code 1, and names, if some are missing."""

from __future__ import annotations

import sys
import time
from pathlib import Path


def main() -> int:
    logs, seconds, names = Path(sys.argv[1]), float(sys.argv[2]), set(sys.argv[3:])
    deadline = time.monotonic() + seconds
    address = logs / "address"
    while not address.is_file():
        if time.monotonic() > deadline:
            return missing(logs, names, seconds)
        time.sleep(0.5)
    import ray

    ray.init(address.read_text().strip(), log_to_driver=False, logging_level="error")
    while True:
        up = {node["NodeName"] for node in ray.nodes() if node["Alive"]}
        if names <= up:
            print(f"Ray is up on {len(names)} nodes", flush=True)
            return 0
        if time.monotonic() > deadline:
            return missing(logs, names - up, seconds)
        time.sleep(0.5)


def missing(logs: Path, names: set[str], seconds: float) -> int:
    for name in sorted(names):
        began = (logs / "nodes" / f"{name}.started").exists()
        why = "its Ray did not come up" if began else "nothing was heard of it (container not loaded, or a bad node)"
        print(f"slurm: node {name} did not join Ray within {seconds:g} seconds: {why}", file=sys.stderr)
    return 1


if __name__ == "__main__":
    sys.exit(main())
