"""Ends Ray's processes when the driver is gone without having done it. A program of its own; imports no package.

Most of Ray's processes end with the driver, but two of its agents first try for a minute to report the loss to a
service that is gone too. Standard input: Ray's folder, then "<process id> <start time>" lines; its end is the
driver's end.
"""

from __future__ import annotations

import shutil
import sys

import psutil  # type: ignore[import-untyped]

GRACE = 2.0  # seconds for those that end by themselves


def main() -> None:
    folder, *lines = sys.stdin.read().splitlines()
    left = []
    for line in lines:
        pid, started = line.split()
        if psutil.pid_exists(int(pid)):
            process = psutil.Process(int(pid))
            if process.create_time() == float(started):  # else the id belongs to another by now
                left.append(process)
    _, alive = psutil.wait_procs(left, timeout=GRACE)
    for process in alive:
        process.kill()
    shutil.rmtree(folder, ignore_errors=True)


if __name__ == "__main__":
    main()
