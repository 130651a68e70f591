"""Run coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, TypeVar

from nemo_tapo.utils.signals import Stop

T = TypeVar("T")
U = TypeVar("U")


async def run_concurrently(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Run all jobs at once and return their results in the order given.

    The first failure cancels the other jobs and is raised alone.
    """
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


async def run_both(first: Awaitable[T], second: Awaitable[U]) -> tuple[T, U]:
    """Run two jobs of different results as `run_concurrently` does."""
    jobs: tuple[Awaitable[Any], Awaitable[Any]] = first, second
    one, other = await run_concurrently(jobs)
    return one, other


STOP_POLL_SECONDS = 0.5  # how often a requested stop is looked for
Item = TypeVar("Item")


async def for_each_concurrently(
    jobs: Iterable[Item], work: Callable[[Item], Awaitable[None]], most: int, stop: Stop
) -> None:
    """Call `work` on every job, at most `most` at a time; return when all are done or `stop` is requested.

    Jobs under way at that moment are cancelled. The first failure cancels the others and is raised.
    """
    queue = iter(jobs)  # shared: whichever worker is free takes the next job

    async def take_jobs() -> None:
        for job in queue:
            if stop.requested:
                return
            await work(job)

    workers = [asyncio.ensure_future(take_jobs()) for _ in range(most)]
    left = set(workers)
    try:
        while left and not stop.requested:
            finished, left = await asyncio.wait(left, timeout=STOP_POLL_SECONDS, return_when=asyncio.FIRST_EXCEPTION)
            for worker in finished:
                worker.result()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
