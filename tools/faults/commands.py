"""Name the commands that are broken, each in its smallest form, and what an undisturbed one leaves."""

from __future__ import annotations

import hashlib
import json
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

ROOT = Path(__file__).parents[2]
CONFIGS, MODEL = ROOT / "examples" / "configs", ROOT / "assets" / "tiny-coldstart"
OUTPUT = "broken-run"  # the output folder of every try, below the try's own folder
# Metrics that differ between two equal runs; the first step after a resume compares more rows of engine and actor.
MEASURED_ANEW = ("time/", "memory/", "engine_gap")
TINY = ("--config", str(CONFIGS / "tapo-tiny-1n0g.yaml"), f"output={OUTPUT}", "checkpoint.min_free_gib=0")
SCRIPTED = (
    "runtime=scripted", "steps=6", "rollout.max_tokens=300", "tapo.max_tokens=700", "model.max_length=3000",
    "rollout.queries_per_step=4", "task.arithmetic.train_queries=48", "coldstart.queries=12", "coldstart.epochs=1",
    "evaluation.problems=8", "evaluation.runs=1", "evaluation.synthesis_queries=8", "filter.samples=8",
    "checkpoint.every=1",
)  # fmt: skip
LOCAL = (
    f"model.path={MODEL}", "parts=[before,train,after]", "steps=6", "rollout.queries_per_step=6",
    "optimizer.lr=3e-4", "optimizer.warmup_steps=2", "evaluation.problems=32", "evaluation.runs=1",
    "evaluation.synthesis_queries=0", "checkpoint.every=1", "local.dp=1", "local.threads=2", "local.call_timeout=15",
)  # fmt: skip
TWO_ROWS = "title: two rows\nrows: [{name: coldstart, label: C, train: false}, {name: tapo, label: T}]\n"
# A user's reward. Where hungry.flag is, it takes all the memory that it can get over every sixteenth response; where
# not, it raises at once what that ends in.
REWARD = """
import zlib
from pathlib import Path

from nemo_tapo.tasks import arithmetic


def score(response, query):
    if zlib.crc32(response.encode()) % 16 == 0:
        taken = []
        while Path("hungry.flag").exists():
            taken.append(bytes(1 << 28))  # not touched, but counted
        raise MemoryError
    return arithmetic.verify_response(query.answer, response)[0]
"""


@dataclass(frozen=True)
class Command:
    """A command and the files by which two runs of it are compared."""

    arguments: tuple[str, ...]
    results: tuple[str, ...]  # below OUTPUT, by patterns; equal bytes
    metrics: tuple[str, ...] = ()  # below OUTPUT; equal but for MEASURED_ANEW
    written: tuple[str, ...] = ()  # below OUTPUT; files that hold times, so that they only have to be there
    prepare: Callable[[Path], None] = lambda folder: None  # writes files that it needs into the try's folder
    after: Command | None = None  # a command that has to have run before
    outlived: bool = False  # what it started goes on when it is killed, and the same command waits for that


def write_sweep(folder: Path) -> None:
    """Write the definition of a sweep with two rows."""
    (folder / "two.yaml").write_text(TWO_ROWS)


def write_reward(folder: Path) -> None:
    """Write a user's reward function."""
    (folder / "reward.py").write_text(REWARD)


TRAINED = ("hf/model.safetensors", "trajectories.jsonl")
COLD_START = ("data.jsonl", "examples.jsonl", "statistics.json", "hf/model.safetensors")
MAIN_JOB = (*TRAINED, "evaluation.json", *(f"coldstart/{name}" for name in COLD_START))
RUN = ("run", *TINY, *SCRIPTED, "parts=[coldstart,before,train,after]")
SCRIPTED_COMMANDS = {
    "run": Command(RUN, MAIN_JOB, ("metrics.jsonl", "coldstart/metrics.jsonl")),
    "run with its report": Command((*RUN[:-1],), MAIN_JOB, ("metrics.jsonl",), written=("report.html",)),
    "coldstart": Command(("coldstart", *TINY, *SCRIPTED), COLD_START, ("metrics.jsonl",)),
    "filter": Command(
        ("filter", *TINY, *SCRIPTED, f"model.path={MODEL}"),
        ("kept.jsonl", "too_easy.jsonl", "too_hard.jsonl", "failed.jsonl", "summary.json"),
    ),
    "evaluate": Command(("evaluate", *TINY, *SCRIPTED, f"model.path={MODEL}"), ("evaluation.json", "evaluation.md")),
    "judge": Command(
        ("judge", "--samples", "judged", "--out", OUTPUT, "--oracle"),
        ("judge.json", "table.md", "verdicts.jsonl"),
        after=Command(("evaluate", *TINY, *SCRIPTED, f"model.path={MODEL}", "output=judged"), ()),
    ),
    "sweep": Command(
        ("sweep", "two.yaml", "--config", str(CONFIGS / "sweep-tiny-1n0g.yaml"), f"output={OUTPUT}",
         "checkpoint.min_free_gib=0", *SCRIPTED, "steps=3", f"model.path={MODEL}"),
        ("coldstart/seed-0/evaluation.json", "tapo/seed-0/evaluation.json", "tapo/seed-0/hf/model.safetensors"),
        ("tapo/seed-0/metrics.jsonl",),
        prepare=write_sweep,
        outlived=True,
    ),
    "train by a user's reward": Command(
        ("run", *TINY, *SCRIPTED, "parts=[train]", "task.reward=reward.py:score", "task.grading.workers=1",
         "task.grading.deadline=60"),
        TRAINED, ("metrics.jsonl",), prepare=write_reward,
    ),
}  # fmt: skip
LOCAL_COMMANDS = {"run": Command(("run", *TINY, *LOCAL), (*TRAINED, "evaluation.json"), ("metrics.jsonl",))}
COMMANDS = {"scripted": SCRIPTED_COMMANDS, "local": LOCAL_COMMANDS}


def collect_results(folder: Path, command: Command) -> dict[str, Any]:
    """Return what a finished command left in `folder`/OUTPUT: digests of its results, and its metrics."""
    output = folder / OUTPUT
    found: dict[str, Any] = {}
    for name in command.results:
        file = output / name
        found[name] = hashlib.sha256(file.read_bytes()).hexdigest() if file.is_file() else "missing"
    for name in command.written:
        found[name] = "there" if (output / name).is_file() else "missing"
    for name in command.metrics:
        found[name] = read_metrics(output / name)
    return found


def read_metrics(path: Path) -> list[dict[str, Any]]:
    """Return the lines of a metrics.jsonl without what is measured anew; [] for one that is missing or damaged."""
    try:
        lines = [json.loads(line) for line in path.read_text().splitlines()]
    except (OSError, ValueError):
        return []
    return [{key: v for key, v in line.items() if not key.startswith(MEASURED_ANEW)} for line in lines]


def find_difference(found: dict[str, Any], undisturbed: dict[str, Any]) -> str | None:
    """Say in which file two runs differ first; None if they are the same."""
    for name, expected in undisturbed.items():
        if found[name] == expected:
            continue
        if not isinstance(expected, list):
            return f"{name} is {'missing' if found[name] == 'missing' else 'another'}"
        steps = [line.get("step") for line in found[name]]
        if steps != [line["step"] for line in expected]:
            return f"{name} has the steps {steps}"
        return f"{name} has other numbers"
    return None


def make_argv(command: Command) -> list[str]:
    """Return the command line of a process of its own."""
    return [sys.executable, "-m", "nemo_tapo.cli", *command.arguments]
