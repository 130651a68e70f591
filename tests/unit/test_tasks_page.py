"""The examples of docs/tasks.md do what the page says, as they are written there."""

from __future__ import annotations

import json
import re
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from nemo_tapo.config.run_config import validate
from nemo_tapo.grading.calls import REASONS
from nemo_tapo.runtime import scripted_runtime
from nemo_tapo.types import NO_REWARD, Request
from tests.helpers.command import nemo_tapo
from tests.helpers.imports import ROOT
from tests.helpers.programs import NEEDS_BUBBLEWRAP, block

PAGE = (ROOT / "docs" / "tasks.md").read_text(encoding="utf-8")
FILES: dict[str, str] = dict(re.findall(r"```(?:python|yaml|json) (\S+)\n(.*?)```", PAGE, re.DOTALL))
COMMANDS = re.findall(r"^nemo-tapo (.*)$", PAGE, re.MULTILINE)
SMALL = ("runtime=scripted", "steps=1", "model.max_length=4096", "rollout.max_tokens=300", "rollout.queries_per_step=4")


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A folder with the files of the page, from which its commands run."""
    monkeypatch.chdir(tmp_path)
    for folder in ("examples", "assets"):
        (tmp_path / folder).symlink_to(ROOT / folder)
    for name, text in FILES.items():
        (tmp_path / name).write_text(text)
    return tmp_path


def run(output: str, *more: str) -> dict[str, Any]:
    """Run the command of the page that writes into `output`; return the first step's metrics."""
    (command,) = [each for each in COMMANDS if each.endswith(f" output={output}")]
    done = nemo_tapo(*shlex.split(command), *SMALL, *more)
    assert done.returncode == 0, done.stderr
    assert not Path(output, "ungraded.jsonl").exists()
    return dict(json.loads(Path(output, "metrics.jsonl").read_text().splitlines()[0]))


def sort_letters(prompt: str, request: Request) -> str:
    word = prompt.split()[-1].rstrip(".")
    return "The letters: " + "".join(sorted(word) if request.seed % 3 else word)


def test_the_class(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(scripted_runtime, "arithmetic_script", sort_letters)
    metrics = run("runs/words")
    assert metrics["grade/right"] + metrics["grade/wrong"] == 32 and metrics["grade/right"] and metrics["grade/wrong"]
    assert metrics["reward/mean"] == metrics["grade/right"] / 32
    assert json.loads(Path("runs/words/data.json").read_text())["train"]["rows"] == 200


def test_the_reward_function(here: Path) -> None:
    metrics = run("runs/near")
    assert metrics["grade/right"] + metrics["grade/wrong"] == 32
    assert metrics["reward/mean"] >= metrics["grade/right"] / 32


def test_several_rewards(here: Path) -> None:
    """Every response has a box and less than 200 characters: 1 if it is right, (8 x 0 + 1 + 1) / 10 if not."""
    metrics = run("runs/weighted")
    right = metrics["grade/right"]
    assert 0 < right < 32 and metrics["grade/wrong"] == 32 - right
    assert metrics["reward/mean"] == pytest.approx((right + 0.2 * (32 - right)) / 32)


def write_program(prompt: str, request: Request) -> str:
    assert "Write a Python program" in prompt
    return block("print(sum(map(int, input().split())))" if request.seed % 3 else "print(5)")


@NEEDS_BUBBLEWRAP
def test_programs(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The wrong program passes the first test alone. One query is all there is."""
    monkeypatch.setattr(scripted_runtime, "arithmetic_script", write_program)
    metrics = run("runs/programs", "rollout.queries_per_step=1")
    assert metrics["grade/right"] + metrics["grade/wrong"] == 8 and metrics["grade/right"] and metrics["grade/wrong"]
    assert metrics["reward/mean"] == metrics["grade/right"] / 8


def add_up(prompt: str, request: Request) -> str:
    found = re.search(r"(-?\d+(?: [+-] \d+)+) =", prompt)
    assert found
    total = sum(int(number.replace(" ", "")) for number in re.findall(r"[+-]? ?\d+", found[1]))
    return f"\\boxed{{{total + (request.seed % 3 == 0)}}}"


def test_a_puzzle_of_reasoning_gym(here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("reasoning_gym")
    monkeypatch.setattr(scripted_runtime, "arithmetic_script", add_up)
    metrics = run("runs/gym")
    assert metrics["grade/right"] and metrics["grade/right"] + metrics["grade/wrong"] == 32


def test_each_example_is_short_and_run() -> None:
    assert all(len(text.splitlines()) < 30 for text in FILES.values())
    assert [each.split()[-1] for each in COMMANDS] == [
        "output=runs/words",
        "output=runs/near",
        "output=runs/weighted",
        "output=runs/programs",
        "output=runs/gym",
    ]


def test_settings_without_a_file_are_settings() -> None:
    blocks = re.findall(r"```yaml\n(.*?)```", PAGE, re.DOTALL)
    assert blocks and all(validate(yaml.safe_load(block)).task.all_rewards for block in blocks)


def test_the_page_names_every_outcome() -> None:
    assert set(re.findall(rf"`{NO_REWARD}(\w+)`", PAGE)) == set(REASONS)
