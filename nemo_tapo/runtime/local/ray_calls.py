"""Wait for the answer of a Ray actor, and turn its failures into readable errors."""

from __future__ import annotations

import asyncio
from typing import Any

from nemo_tapo.utils.errors import RuntimeFailure


async def await_ray_answer(object_ref: Any, who: str, timeout: float) -> Any:
    """Wait for the value of a Ray object reference and return it.

    Raises RuntimeFailure, with `who` in its message, if the process died, if the called method failed, or if there is
    no answer within `timeout` seconds. A ValueError or AssertionError of the called method is raised unchanged: the
    process is still alive.
    """
    from ray.exceptions import RayActorError, RayTaskError

    try:
        return await asyncio.wait_for(object_ref, timeout)
    except TimeoutError:
        raise RuntimeFailure(f"{who} did not answer within {timeout:g} seconds.") from None
    except RayActorError as error:
        raise RuntimeFailure(f"{who} died: {explain_death(error)}") from None
    except RayTaskError as error:
        if isinstance(error.cause, ValueError | AssertionError):
            raise error.cause from None
        raise RuntimeFailure(f"{who} failed: {error.cause!r}\n{error}") from None


def explain_death(error: BaseException) -> str:
    """Return Ray's message about a dead process, without the boilerplate.

    >>> explain_death(RuntimeError("The actor died. Worker exit detail: Lost socket. Some common causes include: ..."))
    "Lost socket. Killed (out of memory?) or crashed: the system's log (dmesg) says which."
    """
    text = str(error).strip()
    if "creation task" in text:  # an exception in __init__: the last line is the error, the rest its traceback
        return f"{text.splitlines()[-1]}\n{text}"
    _, _, detail = text.partition("Worker exit detail: ")
    if not detail:
        return text
    reason = detail.partition(" Some common causes")[0]
    return f"{reason} Killed (out of memory?) or crashed: the system's log (dmesg) says which."
