"""Leave tests out that cannot run here, and say in one line how to enable them."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass, field

import pytest


@dataclass(frozen=True)
class LeftOut:
    """The tests of one folder that were left out."""

    what: str  # as in "NeMo-RL contract tests"
    how: str  # to enable them
    _count: pytest.StashKey[int] = field(default_factory=pytest.StashKey)

    def leave_out(self, config: pytest.Config, items: list[pytest.Item], missing: Collection[pytest.Item]) -> None:
        """Deselect `missing`, of `items`."""
        if missing:
            config.stash[self._count] = len(missing)
            config.hook.pytest_deselected(items=missing)
            items[:] = [item for item in items if item not in missing]

    def describe(self, config: pytest.Config) -> str | None:
        """Return the line, or None if no test was left out."""
        count = config.stash.get(self._count, 0)
        return f"{self.what}: {count} left out; to enable them {self.how}." if count else None
