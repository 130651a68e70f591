"""For the tests of pure code."""

from __future__ import annotations

from hypothesis import settings

settings.register_profile("no deadline", deadline=None)  # machines are shared: no test is timed
settings.load_profile("no deadline")
