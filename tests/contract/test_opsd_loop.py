"""Two steps of OPSD's sampled-token variant through NeMo-RL's setup and Policy: its reference policy is the teacher."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = [pytest.mark.nemo_rl, pytest.mark.timeout(600)]
SETTINGS = {
    "algorithm": "opsd",
    "opsd": {"divergence": "sampled", "prompt": "Copy this text.\n{reference}"},
    "loss": {"kl_rows": 4, "token_mean": True},
}


def test_the_reference_policy_teaches(tmp_path: Path) -> None:
    driver = Path(__file__).with_name("run_training.py")
    with (tmp_path / "driver.log").open("w") as log:
        command = [sys.executable, str(driver), str(tmp_path), "2", json.dumps(SETTINGS)]
        code = subprocess.run(command, stdout=log, stderr=log, check=False, timeout=500).returncode
    assert code == 0, (tmp_path / "driver.log").read_text()[-4000:]
    metrics = [json.loads(line) for line in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    assert [m["step"] for m in metrics] == [1, 2]
    assert metrics[0]["ratio_deviation"] == 0.0
    assert metrics[0]["kl_ref"] == pytest.approx(0, abs=1e-6)
    for m in metrics:
        left_out = sum(value for name, value in m.items() if name.startswith("opsd/left_out/"))
        assert m["opsd/rows"] + left_out == m["opsd/rollouts"] == 32
        assert 0 < m["num_valid_samples"] == m["rows"] == m["opsd/rows"]
        assert m["opsd/advantage"] < 0  # told a right solution the model finds its own rollouts less likely
        assert m["grad_norm"] > 0
