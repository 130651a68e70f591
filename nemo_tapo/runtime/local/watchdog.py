"""End Ray's processes after a driver that died before it could end them itself.

A separate program; it imports nothing of this package. Most of Ray's processes end with the driver. But two of its
agents first try for a minute to report the loss to a service that is also gone. Standard input holds Ray's folder, then
lines of "<process id> <start time>". The input closes when the driver ends.
"""

from __future__ import annotations

import shutil
import sys

import psutil  # type: ignore[import-untyped]

GRACE = 2.0  # seconds to wait for processes that end by themselves


def main() -> None:
    """Wait for the end of the driver, then end the processes that are still running and remove Ray's folder."""
    folder, *lines = sys.stdin.read().splitlines()
    left = []
    for line in lines:
        pid, started = line.split()
        if psutil.pid_exists(int(pid)):
            process = psutil.Process(int(pid))
            if process.create_time() == float(started):  # else the id belongs to a new process
                left.append(process)
    _, alive = psutil.wait_procs(left, timeout=GRACE)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
