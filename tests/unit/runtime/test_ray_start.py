"""Ray that does not start on a machine with too much to do: a lost process with its reason, no traceback."""

from __future__ import annotations

from typing import Any, NoReturn

import pytest

from nemo_tapo.utils.errors import RuntimeFailure


def test_it_is_a_runtime_failure_with_rays_first_sentence(monkeypatch: pytest.MonkeyPatch) -> None:
    ray = pytest.importorskip("ray")
    from nemo_tapo.runtime.local import ray_cluster

    def fail(**settings: Any) -> NoReturn:
        raise Exception("The current node timed out during startup.\nThis could happen because ...")

    monkeypatch.setattr(ray, "init", fail)
    monkeypatch.setattr(ray_cluster, "RAY_ENVIRONMENT", {})
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of this test")
    monkeypatch.delenv(ray_cluster.JOB_ADDRESS_VARIABLE, raising=False)
    with pytest.raises(RuntimeFailure, match="Ray did not start: The current node timed out during startup"):
        ray_cluster.start()
