"""The plan's times against the steps that NeMo-RL publishes; docs/cluster.md has the same table (test_contributing)."""

from __future__ import annotations

import math
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parents[3] / "tools"))
import published_steps

COMPARED = list(published_steps.compare_steps())


def test_every_published_step_is_within_a_factor_of_one_and_a_half() -> None:
    """One set of values for 50 rows: five models, 8 to 512 GPUs, on and off policy."""
    assert len(COMPARED) == 50
    assert {c.step.model for c in COMPARED} == {
        "Llama-3.1-8B", "Qwen3-32B", "Qwen3-30B-A3B", "Qwen3-235B-A22B", "DeepSeek-V3"
    }  # fmt: skip
    assert [c.step for c in COMPARED if not 1 / 1.5 < c.ratio < 1.5] == []
    assert math.sqrt(sum(math.log(c.ratio) ** 2 for c in COMPARED) / len(COMPARED)) < 0.15


def test_rows_divide_as_the_page_says() -> None:
    """GPUs for policy and engines; the page's global batch sizes."""
    data = published_steps.read_data()
    for compared in COMPARED:
        step = compared.step
        setup = step.make_setup(data["models"][step.model], data["gpus_per_node"][step.gpu])
        apart = 0 if setup.colocated else setup.engine_gpus
        assert compared.gpus == setup.nodes * setup.gpus_per_node == setup.train_gpus + apart
        assert setup.train_gpus % (setup.tp * setup.pp * setup.cp) == setup.engine_gpus % setup.engine_tp == 0
        assert setup.originals == (512 if step.model in ("Qwen3-235B-A22B", "DeepSeek-V3") else 2048)
        assert setup.update_rows == 512
