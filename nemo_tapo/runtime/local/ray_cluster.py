"""Start, join and stop the Ray cluster of one run.

By default a run starts its own Ray on the loopback interface and stops it afterwards. In a job on several nodes, Ray
already runs across them and `NEMO_TAPO_RAY_ADDRESS` names it; the run joins that one (tools/slurm starts such jobs).
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
from nemo_tapo.utils.errors import RuntimeFailure, get_first_line

JOB_ADDRESS_VARIABLE = "NEMO_TAPO_RAY_ADDRESS"
OBJECT_STORE_BYTES = 256 * 2**20  # weights and batches pass through it; Ray's minimum is 75 MiB
RAY_ENVIRONMENT = {
    "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",  # Ray's switch for "one machine": it listens on 127.0.0.1 only
    "RAY_USAGE_STATS_ENABLED": "0",
    "RAY_ACCEL_ENV_VAR_OVERRIDE_ON_ZERO": "0",
}


@dataclass(frozen=True)
class RayCluster:
    """The processes and the folder that `stop` has to remove."""

    folder: Path | None  # sockets and logs; None: this run only joined Ray and must not end it
    processes: tuple[psutil.Process, ...] = ()  # Ray's own processes; workers start and end as their children
    watchdog: subprocess.Popen[str] | None = None


def start(cpus: int = 1) -> RayCluster:
    """Start Ray for this process, or join the Ray of the job.

    Must run in the main thread. The kernel ends Ray's processes when the thread that started them ends (so a killed
    driver leaves none behind), and signal handlers belong to the main thread. Raises ValueError if Ray already runs in
    this process, RuntimeFailure if Ray does not start, or if the Ray of the job does not answer.
    """
    assert threading.current_thread() is threading.main_thread(), "Ray has to be started in the main thread"
    address = os.environ.get(JOB_ADDRESS_VARIABLE)
    if address:
        _join(address)
        return RayCluster(None)
    for name, value in RAY_ENVIRONMENT.items():
        os.environ.setdefault(name, value)
    # A password for this process only; Ray would store one in the home directory. Ray reads it once per process.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    os.environ["RAY_AUTH_MODE"] = "token"  # whatever the environment says: any user can reach a port of this machine
    import ray

    if not _expects_token():  # code of a user imported Ray before, and Ray has read the mode then
        os.environ["RAY_AUTH_MODE"] = "disabled"  # else its processes would refuse this one
    if ray.is_initialized():
        raise ValueError("Ray already runs in this process; close the other runtime first.")
    before = set(psutil.Process().children(recursive=True))
    # A short path: the path of a Unix socket may have 107 characters, and Ray adds 60 of them.
    folder = Path(tempfile.mkdtemp(prefix="nt-", dir="/tmp"))
    try:
        with _keep_signal_handlers():
            ray.init(
                address="local",
                num_cpus=cpus,  # Ray starts this many idle workers; nothing here is scheduled by CPUs
                object_store_memory=OBJECT_STORE_BYTES,
                include_dashboard=False,
                log_to_driver=False,
                logging_level="error",
                _temp_dir=str(folder / "r"),  # Ray opens its folder to everybody; the one around it is the user's alone
            )
    except BaseException as error:
        stop(RayCluster(folder, _find_new_descendants(before)))
        if type(error) in (Exception, RuntimeError, ConnectionError, TimeoutError):  # Ray has no type of its own here
            raise RuntimeFailure(f"Ray did not start: {get_first_line(error)}") from error
        raise
    processes = _find_new_descendants(before)
    return RayCluster(folder, processes, _start_watchdog(folder, processes))


def _join(address: str) -> None:
    """Connect to the Ray at `address` (host:port). Raises RuntimeFailure if none answers there."""
    import ray

    try:
        with _keep_signal_handlers():
            ray.init(address=address, log_to_driver=False, logging_level="error")
    except (ConnectionError, ray.exceptions.RayError) as error:
        raise RuntimeFailure(f"no Ray answers at {JOB_ADDRESS_VARIABLE} = {address}: {error}") from None


@contextlib.contextmanager
def _keep_signal_handlers() -> Iterator[None]:
    """Restore the signal handlers afterwards: Ray's handler for SIGTERM would exit without a checkpoint."""
    handlers = {s: signal.getsignal(s) for s in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for signum, handler in handlers.items():
            signal.signal(signum, handler)


@dataclass(frozen=True)
class RankPlacement:
    """The nodes on which ranks run."""

    options: list[dict[str, Any]]  # Ray options of each rank
    host: str | None  # address of rank 0, as the other nodes see it; None: all ranks are on one node


def place_ranks(ranks: int) -> RankPlacement:
    """Assign ranks to the nodes of the job's Ray, in blocks of consecutive ranks, the driver's node first.

    Blocks keep tensor-parallel ranks together, which communicate most. A Ray that this run started has one node, so
    there is nothing to choose.
    """
    import ray
    from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

    if not os.environ.get(JOB_ADDRESS_VARIABLE):
        return RankPlacement([{} for _ in range(ranks)], None)
    driver_node = ray.get_runtime_context().get_node_id()
    nodes = sorted((n for n in ray.nodes() if n["Alive"]), key=lambda n: (n["NodeID"] != driver_node, n["NodeName"]))
    chosen = [nodes[rank * len(nodes) // ranks]["NodeID"] for rank in range(ranks)]
    options = [{"scheduling_strategy": NodeAffinitySchedulingStrategy(node, soft=False)} for node in chosen]
    return RankPlacement(options, nodes[0]["NodeManagerAddress"] if len(set(chosen)) > 1 else None)


def _find_new_descendants(before: set[psutil.Process]) -> tuple[psutil.Process, ...]:
    """Return every descendant of this process that is not in `before`."""
    return tuple(set(psutil.Process().children(recursive=True)) - before)


def _start_watchdog(folder: Path, processes: tuple[psutil.Process, ...]) -> subprocess.Popen[str]:
    """Start a watchdog that waits for the end of this process, in a new session so that Ctrl-C does not reach it."""
    command = [sys.executable, watchdog.__file__]
    dog = subprocess.Popen(command, stdin=subprocess.PIPE, text=True, start_new_session=True)
    assert dog.stdin is not None
    dog.stdin.writelines(f"{line}\n" for line in (folder, *(f"{p.pid} {p.create_time()}" for p in processes)))
    dog.stdin.flush()
    return dog


def _expects_token() -> bool:
    """Return whether Ray in this process uses the token; it decides when it is imported."""
    from ray._raylet import AuthenticationMode, get_authentication_mode  # type: ignore[attr-defined]

    return bool(get_authentication_mode() == AuthenticationMode.TOKEN)


def stop(cluster: RayCluster) -> None:
    """End Ray and all its descendants, and remove its folder. No other process is touched."""
    import ray

    if cluster.folder is None:
        ray.shutdown()  # also ends the actors of this driver
        return
    descendants = set(cluster.processes)
    for process in cluster.processes:
        with contextlib.suppress(psutil.NoSuchProcess):
            descendants.update(process.children(recursive=True))
    ray.shutdown()
    _, alive = psutil.wait_procs(descendants, timeout=5)
    for process in alive:
        process.kill()  # psutil also compares the start time, so a reused process id is safe
    psutil.wait_procs(alive, timeout=5)
    shutil.rmtree(cluster.folder, ignore_errors=True)
    if cluster.watchdog is not None:
        cluster.watchdog.communicate()  # closes its input, so it ends; its processes are gone already
