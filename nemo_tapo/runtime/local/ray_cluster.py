"""The Ray of one run: one's own, started quietly on the loopback interface and gone afterwards; or, in a job on several
nodes, the one that was brought up across them, which `NEMO_TAPO_RAY_ADDRESS` names (tools/slurm does both).
"""

from __future__ import annotations

import contextlib
import os
import secrets
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil  # type: ignore[import-untyped]

from nemo_tapo.runtime.local import watchdog
from nemo_tapo.utils.errors import RuntimeFailure

JOB_ADDRESS = "NEMO_TAPO_RAY_ADDRESS"
OBJECT_STORE_BYTES = 256 * 2**20  # weights and batches pass through it; Ray's least is 75 MiB
RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for "one machine": it listens on 127.0.0.1 only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class Cluster:
    """What `stop` has to end."""

    folder: Path | None  # sockets and logs; None: this Ray is not ours to end
    processes: tuple[psutil.Process, ...] = ()  # Ray's own; workers come and go below them
    watchdog: subprocess.Popen[str] | None = None


def start(cpus: int = 1) -> Cluster:
    """Start Ray for this process, or join the job's.

    Has to run in the main thread: the kernel ends Ray's processes when the thread that started them ends
    (so a killed driver leaves none), and signal handlers belong to the main thread.
    """
    assert threading.current_thread() is threading.main_thread(), "Ray has to be started in the main thread"
    address = os.environ.get(JOB_ADDRESS)
    if address:
        _join(address)
        return Cluster(None)
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A password of this process's own; Ray would keep one in the home directory. Ray reads it once a process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    import ray

    if ray.is_initialized():
        raise ValueError("Ray already runs in this process; close the other runtime first.")
    before = set(psutil.Process().children(recursive=True))
    # A short path: a Unix socket's may have 107 characters, and Ray puts 60 of its own below it.
    folder = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
    try:
        with _our_handlers():
            ray.init(
                address="local",
                num_cpus=cpus,  # nothing here is scheduled by CPUs; Ray would start as many idle workers
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=str(folder),
            )
    except BaseException:
        stop(Cluster(folder, _family_since(before)))
        raise
    processes = _family_since(before)
    return Cluster(folder, processes, _watched(folder, processes))


def _join(address: str) -> None:
    """Become a driver of the Ray at `address` (host:port). RuntimeFailure if none answers there."""
    import ray

    try:
        with _our_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise RuntimeFailure(f"no Ray answers at {JOB_ADDRESS} = {address}: {error}") from None


@contextlib.contextmanager
def _our_handlers() -> Iterator[None]:
    """Keeps the signal handlers: Ray's for SIGTERM would exit without a checkpoint."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@dataclass(frozen=True)
class Places:
    """Where ranks run: Ray options of each, and where the first of them listens for the others."""

    options: list[dict[str, Any]]
    host: str | None  # of rank 0, seen from the other nodes; None: all are on this machine


def places(ranks: int) -> Places:
    """Ranks in blocks of neighbours over the nodes of the job's Ray, the driver's first: tensor parallel ranks, which
    talk most, stay together. On a Ray of one's own there is nothing to choose.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not os.environ.get(JOB_ADDRESS):
        return Places([{} for _ in range(ranks)], None)
    own = ray.get_runtime_context().get_node_id()
    nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: (n["NodeID"] != own, n["NodeName"]))
    chosen = [nodes[rank * len(nodes) // ranks]["NodeID"] for rank in range(ranks)]
    options = [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in chosen]
    return Places(options, nodes[0]["NodeManagerAddress"] if len(set(chosen)) > 1 else None)


def _family_since(before: set[psutil.Process]) -> tuple[psutil.Process, ...]:
    """Every process below this one that is not among `before`."""
    return tuple(set(psutil.Process().children(recursive=True)) - before)


def _watched(folder: Path, processes: tuple[psutil.Process, ...]) -> subprocess.Popen[str]:
    """A watchdog that waits for the end of this process; in a session of its own, so Ctrl-C does not reach it."""
    command = [sys.executable, watchdog.__file__]
    dog = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert dog.stdin is not None
    dog.stdin.writelines(f"{line}\n" for line in (folder, *(f"{p.pid} {p.create_time()}" for p in processes)))
    dog.stdin.flush()
    return dog


def stop(cluster: Cluster) -> None:
    """End Ray and every process below it, and remove its folder. Processes of others are left alone."""
    import ray

    if cluster.folder is None:
        ray.shutdown()  # the actors of this driver end with it
        return
    family = set(cluster.processes)
    for process in cluster.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            family.update(process.children(recursive=True))
    ray.shutdown()
    _, alive = psutil.wait_procs(family, timeout=5)
    for process in alive:
        process.kill()  # psutil compares the start time too: never a stranger with a reused id
    psutil.wait_procs(alive, timeout=5)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    if cluster.watchdog is not None:
        cluster.watchdog.communicate()  # closes its input: nothing is left for it to do
