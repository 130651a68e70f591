"""The code of CONTRIBUTING.md does what the page says, and what README says of the code is there."""

from __future__ import annotations

import asyncio
import importlib
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
import torch

from nemo_tapo.algorithms import registry
from nemo_tapo.algorithms.grpo import GRPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.batch import collate
from nemo_tapo.config.algorithms import ALGORITHMS, AlgorithmSettings
from nemo_tapo.config.loop import LoopConfig
from nemo_tapo.config.run_config import validate
from nemo_tapo.datasets.query_order import QueryOrder, add_prompts
from nemo_tapo.equations.vocab import VocabShard
from nemo_tapo.losses.policy import PolicyLoss
from nemo_tapo.metrics import DESCRIPTIONS
from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime
from nemo_tapo.train import train
from nemo_tapo.types import Kind, Request, Row
from nemo_tapo.utils.signals import Stop
from tests.helpers.command import nemo_tapo
from tests.helpers.imports import ROOT
from tests.unit.test_train import Memory

CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"


def defined(kind: str) -> dict[str, Any]:
    """What the block ```python <kind> of CONTRIBUTING.md defines."""
    text = (ROOT / "CONTRIBUTING.md").read_text(encoding="utf-8")
    (code,) = re.findall(rf"```python {kind}\n(.*?)```", text, re.DOTALL)
    module = ModuleType(f"contributed_{kind}")
    sys.modules[module.__name__] = module  # dataclasses look their module up
    exec(compile(code, f"CONTRIBUTING.md, {kind}", "exec"), module.__dict__)
    return vars(module)


def test_an_algorithm_is_a_class_and_two_lines(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Through the whole command line on the scripted runtime, refusals and report included."""
    kind = defined("algorithm")
    monkeypatch.setitem(registry.ALGORITHMS, "rloo", kind["RLOO"])
    monkeypatch.setitem(ALGORITHMS, "rloo", AlgorithmSettings(check=kind["check_rloo"]))
    settings = ("runtime=scripted", "steps=2", "model.max_length=4096", "rollout.max_tokens=300")
    done = nemo_tapo("train", "--config", str(CONFIG), "algorithm=rloo", *settings, f"output={tmp_path / 'run'}")
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "hf").is_dir() and (tmp_path / "run" / "report.html").is_file()
    refused = nemo_tapo("train", "--config", str(CONFIG), "algorithm=rloo", "rollout.samples_per_query=1")
    assert refused.returncode == 2 and "compares a rollout with others" in refused.stderr


def test_settings_and_registry_know_the_same_algorithms() -> None:
    assert registry.ALGORITHMS.keys() == ALGORITHMS.keys()


def test_its_advantages_leave_the_rollout_itself_out(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rewards 1, 0, 0: the others' means are 0, 1/2 and 1/2."""
    from tests.unit.algorithms.test_opsd import group

    monkeypatch.setitem(ALGORITHMS, "rloo", AlgorithmSettings())
    algorithm = defined("algorithm")["RLOO"](validate({"algorithm": "rloo"}), None)
    from nemo_tapo.types import Experience

    rows = algorithm.make_rows(Experience(groups=(group(1.0, 0.0, 0.0),)))
    assert [row.advantage for row in rows] == [1.0, -0.5, -0.5]


def test_a_loss_has_the_gradient_of_the_policy_loss_at_ratio_one() -> None:
    torch.manual_seed(0)
    rows = [Row(f"q/{k}", "q", Kind.ORIGINAL, (1, 2), (3, 4, 5), advantage=1.5 - k) for k in range(3)]
    batch, logits = collate(rows, pad_id=0), torch.randn(3, 5, 8)

    def gradient(loss: Callable[..., Any]) -> torch.Tensor:
        leaf = logits.clone().requires_grad_()
        loss(leaf, batch, VocabShard(0, 8)).loss.backward()
        assert leaf.grad is not None
        return leaf.grad

    torch.testing.assert_close(gradient(defined("loss")["ReinforceLoss"]()), gradient(PolicyLoss()))


def test_a_task_is_a_class(tmp_path: Path) -> None:
    words = ["abc", "tapo", "loop", "grade", "query", "row"]
    task = defined("task")["ReversalTask"](words)

    def answer(prompt: str, request: Request) -> str:
        word = prompt.split()[1]
        return word[::-1] if request.seed % 2 else word

    cfg = validate({"algorithm": "grpo", "rollout": {"queries_per_step": 6, "samples_per_query": 4}})
    runtime, memory = ScriptedRuntime(answer), Memory()
    queries, _ = add_prompts(task.train_queries(), runtime.tokenizer, 1000)
    algorithm = GRPO(cfg, Tools(runtime.generator, runtime.tokenizer, task))
    loop = LoopConfig(tmp_path, 2, cfg.optimizer, cfg.loss)
    order = QueryOrder(queries, 6, seed=0)
    asyncio.run(train(loop, algorithm, runtime, order.queries, memory, Stop()))
    right, wrong = memory.metrics[0]["grade/right"], memory.metrics[0]["grade/wrong"]
    assert right + wrong == 24 and right and wrong


def test_readme_names_functions_that_exist() -> None:
    """Every `module.name` of the equation table."""
    table = (ROOT / "README.md").read_text(encoding="utf-8").partition("## Where each equation lives")[2]
    names = re.findall(r"`([a-z_]+(?:\.[a-z_]+)*\.[A-Za-z_]+)`", table.partition("\n## ")[0].partition("Ablations")[0])
    assert len(names) >= 12
    for name in names:
        module, _, attribute = name.rpartition(".")
        assert hasattr(importlib.import_module(f"nemo_tapo.{module}"), attribute), name


def test_written_docs_are_up_to_date() -> None:
    done = subprocess.run([sys.executable, ROOT / "tools" / "write_docs.py", "--check"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_a_runs_metrics_are_described(tmp_path: Path) -> None:
    from tests.unit.test_train import run, settings

    memory, _ = run(settings(), tmp_path)
    described = [key.partition("<")[0] for key in DESCRIPTIONS]
    for key in {key for metrics in memory.metrics for key in metrics}:
        assert key in DESCRIPTIONS or any(key.startswith(p) for p in described if p.endswith("/")), key
