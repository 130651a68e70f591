"""Ray's processes: who hears Ctrl-C, and what is left when the driver is killed. By a real driver process."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

pytestmark = [pytest.mark.e2e, pytest.mark.timeout(180)]

DRIVER = """
import asyncio, os, signal
from nemo_tapo.runtime.local import ray_cluster

class Worker:
    def pid(self):
        return os.getpid()

before = signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)
here = ray_cluster.start()
import ray
worker = ray.remote(Worker).options(num_cpus=0).remote()
pid = ray.get(worker.pid.remote())
assert (signal.getsignal(signal.SIGINT), signal.getsignal(signal.SIGTERM)) == before
heard = []
for signum in (signal.SIGINT, signal.SIGTERM):
    signal.signal(signum, lambda number, frame: heard.append(number))
from ray._private.authentication.authentication_utils import is_token_auth_enabled
print("ready", here.folder, is_token_auth_enabled(), flush=True)
while not heard:
    signal.pause()
assert ray.get(worker.pid.remote(), timeout=20) == pid
print("worker alive", flush=True)
ray_cluster.stop(here)
print("stopped", flush=True)
"""


@pytest.fixture
def driver() -> Iterator[subprocess.Popen[str]]:
    """A driver with Ray and one worker, in a process group of its own, as a shell starts it.

    The environment asks for a Ray without a token, which it does not get.
    """
    environment = {**os.environ, "RAY_AUTH_MODE": "disabled"}
    process = subprocess.Popen(
        [sys.executable, "-c", DRIVER], stdout=subprocess.PIPE, text=True, start_new_session=True, env=environment
    )
    yield process
    if process.poll() is None:
        process.kill()
    process.communicate()


def family(process: subprocess.Popen[str]) -> tuple[list[psutil.Process], Path]:
    """All processes below a driver that is ready, and Ray's folder."""
    assert process.stdout is not None
    word, folder, wants_token = process.stdout.readline().split()
    assert (word, wants_token) == ("ready", "True")
    return psutil.Process(process.pid).children(recursive=True), Path(folder)


def left_of(processes: list[psutil.Process], seconds: float) -> list[psutil.Process]:
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        alive = [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE]
        if not alive:
            return []
        time.sleep(0.2)
    return alive


@pytest.mark.parametrize("signum", [signal.SIGINT, signal.SIGTERM])
def test_ctrl_c_reaches_the_driver_and_no_worker(driver: subprocess.Popen[str], signum: signal.Signals) -> None:
    below, folder = family(driver)
    assert len(below) > 2
    os.killpg(driver.pid, signum) if signum == signal.SIGINT else driver.send_signal(signum)
    output, _ = driver.communicate(timeout=60)
    assert output.split("\n")[:2] == ["worker alive", "stopped"]
    assert driver.returncode == 0
    assert not left_of(below, 5)
    assert not folder.exists()


def test_nothing_outlives_a_killed_driver(driver: subprocess.Popen[str]) -> None:
    below, folder = family(driver)
    driver.kill()
    assert not left_of(below, 15)
    assert not folder.exists()


def test_it_listens_on_the_loopback_interface_only_in_a_folder_of_its_own(driver: subprocess.Popen[str]) -> None:
    below, folder = family(driver)
    assert folder.stat().st_mode & 0o777 == 0o700
    listening = [
        c.laddr.ip for p in [psutil.Process(driver.pid), *below] for c in p.net_connections() if c.status == "LISTEN"
    ]
    assert listening
    assert all(ip in ("127.0.0.1", "::1", "::ffff:127.0.0.1") for ip in listening), sorted(set(listening))
