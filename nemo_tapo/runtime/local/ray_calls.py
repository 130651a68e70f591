"""Waiting for an answer of a Ray actor, and what to say when none comes."""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_tapo.utils.errors import RuntimeFailure


async def answer(reference: Any, who: str, timeout: float) -> Any:
    """The value of a Ray object reference.

    Raises RuntimeFailure, with `who` in its message, if the process died or did not answer within `timeout`
    seconds. A ValueError or AssertionError of the called method is raised as it is: the process lives.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return await asyncio.wait_for(reference, timeout)
    except TimeoutError:
        raise RuntimeFailure(f"{who} did not answer within {timeout:g} seconds.") from None
    except RayActorError as error:
        raise RuntimeFailure(f"{who} died: {why_dead(error)}") from None
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | AssertionError):
            raise error.cause from None
        raise RuntimeFailure(f"{who} failed: {error.cause!r}\n{error}") from None


def why_dead(error: BaseException) -> str:
    """Ray's account of a death without its boilerplate."""
    text = str(error).strip()
    if "creation task" in text:  # an exception in __init__: its last line says what, the rest where
        return f"{text.splitlines()[-1]}\n{text}"
    _, _, detail = text.partition("Worker exit detail: ")
    if not detail:
        return text
    reason = detail.partition(" Some common causes")[0]
    return f"{reason} Killed (out of memory?) or crashed: the system's log (dmesg) says which."
