"""For all tests."""

from __future__ import annotations

import signal


def pytest_configure() -> None:
    """A shell starts what it puts in the background with Ctrl-C ignored, and so would be what these tests start."""
    signal.signal(signal.SIGINT, signal.default_int_handler)
