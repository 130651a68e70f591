"""Coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Iterable
from typing import TypeVar

T = TypeVar("T")


async def concurrently(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Runs all at once, results in the order given. The first failure cancels the others and is raised alone."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()
