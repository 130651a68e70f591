"""Calls into NeMo-RL: each has a deadline, and a failure says who failed."""

from __future__ import annotations

import asyncio
import errno
import os
import subprocess
import sys
import threading
from typing import Any

import pytest

from nemo_tapo.runtime.nemo_rl.nemo_calls import await_ray, nemo_errors_as_runtime_failure, run_blocking, run_in_time
from nemo_tapo.utils.errors import RuntimeFailure

SILENCE = r"the policy did not answer within 0\.05 seconds \(tapo\.call_timeout\)"


def test_a_call_that_hangs_ends_with_the_name_of_who_did_not_answer() -> None:
    for_ever = threading.Event()
    with pytest.raises(RuntimeFailure, match=SILENCE):
        asyncio.run(run_blocking(for_ever.wait, "the policy", 0.05))
    with pytest.raises(RuntimeFailure, match=r"tapo\.start_timeout"):
        asyncio.run(run_blocking(for_ever.wait, "the policy", 0.05, "start_timeout"))
    with pytest.raises(RuntimeFailure, match=SILENCE):
        run_in_time(for_ever.wait, "the policy", 0.05)
    for_ever.set()


def test_a_reference_that_never_resolves_has_the_same_end() -> None:
    async def ask() -> Any:
        return await await_ray(asyncio.get_running_loop().create_future(), "the policy", 0.05)

    with pytest.raises(RuntimeFailure, match=SILENCE):
        asyncio.run(ask())


def test_an_answer_in_time_is_returned_and_its_own_timeout_is_told_as_a_failure() -> None:
    assert asyncio.run(run_blocking(lambda: 7, "the policy", 60)) == 7
    assert run_in_time(lambda: 7, "the policy", 60) == 7

    def give_up() -> None:
        raise TimeoutError("a socket")

    with pytest.raises(RuntimeFailure, match=r"the policy failed: TimeoutError\('a socket'\)"):
        asyncio.run(run_blocking(give_up, "the policy", 60))


def test_a_hanging_call_does_not_keep_the_process_from_ending() -> None:
    program = (
        "import asyncio, threading\n"
        "from nemo_tapo.runtime.nemo_rl.nemo_calls import run_blocking\n"
        "asyncio.run(run_blocking(threading.Event().wait, 'the policy', 0.05))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 1 and "the policy did not answer" in done.stderr


def raise_inside(error: Exception) -> None:
    with nemo_errors_as_runtime_failure("the policy"):
        raise error


def from_worker(cause: Exception) -> Exception:
    from ray.exceptions import RayTaskError

    return RayTaskError("refit", "a traceback", cause)


def test_nemo_rls_own_errors_name_who_failed() -> None:
    """NeMo-RL raises RuntimeError when a refit does not succeed; Ray wraps what a worker raised."""
    with pytest.raises(RuntimeFailure, match="the policy failed: RuntimeError"):
        raise_inside(RuntimeError("Updating weights for the generation policy failed during refit."))
    with pytest.raises(RuntimeFailure, match="the policy failed: KeyError"):
        raise_inside(from_worker(KeyError("x")))


def test_what_explains_itself_is_left_as_it_is() -> None:
    with pytest.raises(ValueError, match="too long"):
        raise_inside(from_worker(ValueError("too long")))
    with pytest.raises(OSError, match="No space") as raised:
        raise_inside(from_worker(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))))
    assert raised.value.errno == errno.ENOSPC
    with pytest.raises(RuntimeFailure, match="the policy failed: FileNotFoundError"):
        raise_inside(from_worker(FileNotFoundError(errno.ENOENT, "no such file")))
