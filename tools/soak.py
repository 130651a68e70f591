"""Run many steps and say how much memory each part of a run gains a step.

    python tools/soak.py                          500 steps on the scripted runtime: driver and graders
    python tools/soak.py --real --steps 60        engine, ranks and driver, on assets/tiny-coldstart
    python tools/soak.py --read RUN               a run that exists already

Memory is what the run itself records (`memory/<part>`). The growth is the slope of a line through the second half of
the steps, by Theil and Sen: the median of the slopes between all pairs of steps, which single jumps do not move.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path

from nemo_tapo.metrics import MEMORY_PREFIX
from nemo_tapo.tracking.records import read_metrics
from nemo_tapo.types import Query

ROOT = Path(__file__).parents[1]
CONFIG = ROOT / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
COMMON = ["parts=[train]", "checkpoint.every=50", "checkpoint.min_free_gib=0"]
SCRIPTED = [
    "runtime=scripted", "model.max_length=3000", "rollout.max_tokens=300", "tapo.max_tokens=700",
    "rollout.queries_per_step=8", "optimizer.lr=1e-2", f"task.reward={Path(__file__).resolve()}:score",
]  # fmt: skip
REAL = [f"model.path={ROOT / 'assets' / 'tiny-coldstart'}"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run or read, and print the table; return 1 if a part gains more than --most MiB a step, else 0."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n", 1)[0])
    parser.add_argument("--steps", type=int, default=500)
    parser.add_argument("--real", action="store_true", help="Ray, Megatron-core and vLLM")
    parser.add_argument("--read", type=Path, help="a run's folder, instead of a run")
    parser.add_argument("--out", type=Path, help="keep the run in this folder, which must not exist")
    parser.add_argument("--most", type=float, default=0.05, help="MiB a step that count as no growth")
    given = parser.parse_args(arguments)
    if given.read:
        return report(given.read, given.most)
    with tempfile.TemporaryDirectory(prefix="nemo-tapo-soak-") as temporary:
        folder = given.out or Path(temporary) / "run"
        if folder.exists():
            parser.error(f"{folder} exists already")
        settings = [*COMMON, *(REAL if given.real else SCRIPTED), f"steps={given.steps}", f"output={folder}"]
        command = [sys.executable, "-m", "nemo_tapo.cli", "run", "--config", str(CONFIG), *settings]
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        return report(folder, given.most)


def score(response: str, query: Query) -> float:
    """Grade in the processes of `grading/`, so that a scripted run has graders (`task.reward`)."""
    return float(f"\\boxed{{{query.answer}}}" in response)


def report(folder: Path, most: float) -> int:
    """Print each part's memory at the first and last step and its growth; return 1 if one grows."""
    rows = read_metrics(folder).rows
    parts = sorted({key for row in rows for key in row if key.startswith(MEMORY_PREFIX)})
    if not parts:
        raise SystemExit(f"{folder} has no step with {MEMORY_PREFIX}<part> in metrics.jsonl")
    print("| part | MiB at the first step | half-way | at the last | KiB a step, second half |")
    print("| --- | --- | --- | --- | --- |")
    growing = False
    for key in parts:
        points = [(row["step"], row[key]) for row in rows if key in row]
        gain = fit_growth(points[len(points) // 2 :])
        growing |= gain > most
        first, middle, last = (points[index][1] for index in (0, len(points) // 2, -1))
        print(f"| {key.removeprefix(MEMORY_PREFIX)} | {first:.0f} | {middle:.0f} | {last:.0f} | {1024 * gain:.1f} |")
    return int(growing)


def fit_growth(points: Sequence[tuple[int, float]]) -> float:
    """Return the median slope between all pairs of points; 0 for fewer than two.

    >>> fit_growth([(1, 10.0), (2, 11.0), (3, 12.0), (4, 40.0)])
    1.0
    """
    slopes = [(b[1] - a[1]) / (b[0] - a[0]) for a, b in itertools.combinations(points, 2)]
    return statistics.median(slopes) if slopes else 0.0


if __name__ == "__main__":
    sys.exit(main())
