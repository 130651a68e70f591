"""Coroutines side by side."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import TypeVar

from nemo_tapo.utils.signals import Stop

T = TypeVar("T")


async def concurrently(jobs: Iterable[Awaitable[T]]) -> list[T]:
    """Runs all at once, results in the order given. The first failure cancels the others and is raised alone."""
    tasks = [asyncio.ensure_future(job) for job in jobs]
    try:
        return await asyncio.gather(*tasks)
    finally:
        for task in tasks:
            task.cancel()


HEARD_WITHIN = 0.5  # seconds after which what is under way is dropped, when a stop was requested
Item = TypeVar("Item")


async def at_once(jobs: Iterable[Item], work: Callable[[Item], Awaitable[None]], most: int, stop: Stop) -> None:
    """`work` on every job, at most `most` under way. When `stop` is requested it returns and drops what is under way.

    The first failure ends all and is raised.
    """
    queue = iter(jobs)  # shared: whoever is free takes the next

    async def one_after_the_other() -> None:
        for job in queue:
            if stop.requested:
                return
            await work(job)

    workers = [asyncio.ensure_future(one_after_the_other()) for _ in range(most)]
    left = set(workers)
    try:
        while left and not stop.requested:
            finished, left = await asyncio.wait(left, timeout=HEARD_WITHIN, return_when=asyncio.FIRST_EXCEPTION)
            for worker in finished:
                worker.result()
    finally:
        for worker in workers:
            worker.cancel()
        await asyncio.gather(*workers, return_exceptions=True)
