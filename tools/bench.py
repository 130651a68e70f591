"""Measure speed, as ratios of one run (medians; machines are noisy). `make bench` prints the table of README.

    python tools/bench.py [--model DIR] [--repeats N] [kernel] [step] [pipelines] [growth] [floor] [peers] [driver]

kernel     the one-pass log-probability + entropy against log_softmax + gather + entropy: time and extra peak memory
step       a TAPO step against a GRPO step on the same rollouts, by pipeline; the step as the batch doubles; where a
           step's time goes. Learning rate 1e-12: the weights stay, so every round samples the same rollouts.
pipelines  the same on an engine bound by latency, as on a cluster, whose seconds follow the cost model that
           latency_engine.py states; the numbers are the same on every machine
growth     a GRPO step as its queries double and its responses grow longer (bench_growth.py); only where it is named,
           for it draws docs/growth.png
floor      a GRPO step against the same requests in a bare vLLM engine and the same rows in bare Megatron-core
           (bench_floor.py); only where it is named
peers      a GRPO step of TRL's trainer against one of this package (bench_peers.py); only where it is named, for it
           installs TRL
driver     seconds and memory of what the driver does in a step of 1,024 queries with 16 rollouts of 8,192 tokens
           (driver_scale.py); only where it is named, for it takes 15 minutes and 8 GiB. --scale 4: a quarter of the
           queries
"""

from __future__ import annotations

import argparse
import asyncio
import json
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from bench_loop import Memory, run_loop

Row = tuple[str, str]
KERNEL_SHAPES = ((65536, 512, "float32"), (512, 32768, "float32"), (256, 151936, "float32"), (256, 151936, "bfloat16"))


def table(title: str, rows: Sequence[Row]) -> None:
    """Print Markdown that can go into README as it is."""
    print(f"\n| {title} | |\n| --- | --- |")
    for name, value in rows:
        print(f"| {name} | {value} |")


# ---- the log-probability and entropy pass ------------------------------------------------------------------------


def kernel_once(which: str, tokens: int, vocab: int, dtype: str, repeats: int, gradient: bool) -> dict[str, float]:
    """Measure median seconds and extra peak memory (share of the logits' bytes) of one implementation here."""
    import torch
    from bench_gpu import one_pass, plain

    torch.manual_seed(0)
    logits = torch.empty(1, tokens, vocab, dtype=getattr(torch, dtype)).normal_().requires_grad_(gradient)
    targets = torch.randint(vocab, (1, tokens))

    run = {"one_pass": one_pass, "plain": plain}[which]
    size = logits.numel() * logits.element_size()
    before = peak_bytes()
    seconds = []
    for _ in range(repeats):
        logits.grad = None
        begin = time.perf_counter()
        logp, entropy = run(logits, targets)
        if gradient:
            logp.sum().backward()
        seconds.append(time.perf_counter() - begin)
        del logp, entropy
    return {"seconds": statistics.median(seconds), "extra": (peak_bytes() - before) / size}


def run_apart(option: str, *arguments: object) -> dict[str, float]:
    """Call what this tool's hidden `option` names in a process of its own: so the peak of its memory is its own."""
    command = [sys.executable, __file__, option, json.dumps(arguments)]
    out = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    found: dict[str, float] = json.loads(out.splitlines()[-1])
    return found


def peak_bytes() -> int:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def kernel(repeats: int) -> None:
    """Run each implementation in a process of its own, so that one's peak does not hide the other's."""
    rows: list[Row] = []
    for tokens, vocab, dtype in KERNEL_SHAPES:
        for gradient in (False, True):
            results = {}
            for which in ("one_pass", "plain"):
                results[which] = run_apart("--kernel-once", which, tokens, vocab, dtype, repeats, gradient)
            one, plain = results["one_pass"], results["plain"]
            name = f"{tokens} x {vocab:,} {dtype}, {'with gradient' if gradient else 'forward'}"
            rows.append(
                (
                    name,
                    f"time {one['seconds'] / plain['seconds']:.2f} of plain; extra peak memory "
                    f"{one['extra']:.2f} of the logits (plain {plain['extra']:.2f})",
                )
            )
    table("log-probability + entropy in one pass", rows)


# ---- steps ---------------------------------------------------------------------------------------------------------


async def steps(model: Path, repeats: int) -> None:
    from nemo_tapo.config.load import load_config
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    config = Path(__file__).parents[1] / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
    fixed = [f"model.path={model}", "optimizer.lr=1e-12", "rollout.logprobs=never", "checkpoint.every=1000000"]
    base = load_config(config, fixed)
    runtime = await LocalRuntime.start(base)
    try:
        variants = {
            "grpo": ["algorithm=grpo"],
            "overlapped": ["pipeline=overlapped"],
            "barrier": ["pipeline=barrier"],
            "deferred": ["pipeline=deferred"],
            "half": ["rollout.queries_per_step=16"],
            "quarter": ["rollout.queries_per_step=8"],
        }
        seen: dict[str, list[dict[str, float]]] = {name: [] for name in variants}
        for _ in range(repeats):  # interleaved, so that a noisy minute touches all
            for name, overrides in variants.items():
                seen[name] += await measure(runtime, lambda o=overrides: load_config(config, [*fixed, *o, "steps=3"]))
    finally:
        runtime.close()
    report(seen)


async def measure(runtime: Any, config: Callable[[], Any]) -> list[dict[str, float]]:
    """Run three steps; the first warms up and is left out."""
    memory = Memory()
    await run_loop(config(), runtime, memory, queries=512)
    return memory.metrics[1:]


def report(seen: dict[str, list[dict[str, float]]]) -> None:
    def median(name: str, key: str) -> float:
        return statistics.median(m[key] for m in seen[name])

    grpo = median("grpo", "time/step")
    tokens = {name: median(name, "tokens/trained") for name in seen}
    table(
        "step times, as ratios",
        [
            ("TAPO over GRPO, overlapped", f"{median('overlapped', 'time/step') / grpo:.2f}"),
            ("TAPO over GRPO, barrier", f"{median('barrier', 'time/step') / grpo:.2f}"),
            ("TAPO over GRPO, deferred", f"{median('deferred', 'time/step') / grpo:.2f}"),
            ("tokens trained, TAPO over GRPO", f"{tokens['overlapped'] / tokens['grpo']:.2f}"),
            *(
                (
                    f"{small} -> {large} queries",
                    f"time x {median(b, 'time/step') / median(a, 'time/step'):.2f}, "
                    f"tokens x {tokens[b] / tokens[a]:.2f}",
                )
                for small, large, a, b in ((8, 16, "quarter", "half"), (16, 32, "half", "overlapped"))
            ),
            ("GRPO step, seconds (this machine)", f"{grpo:.2f}"),
        ],
    )
    for name in ("overlapped", "barrier", "deferred"):
        table(f"share of a TAPO step, {name}", shares(seen[name]))


PARTS = {
    "generation": "time/rollouts",
    "synthesis (not hidden by generation)": "time/synthesis",
    "reference log-probabilities": "time/reference",
    "update": "time/update",
    "weight hand-over": "time/weights",
}


def shares(steps: list[dict[str, float]]) -> list[Row]:
    """Return the median share of each part; grading runs within generation and synthesis."""

    def share(part: Callable[[dict[str, float]], float]) -> str:
        return f"{statistics.median(part(m) / m['time/step'] for m in steps):.1%}"

    rows = [(name, share(lambda m, k=key: m[k])) for name, key in PARTS.items()]
    rows.append(("grading (within the first two)", share(lambda m: m["time/grading"])))
    rows.append(("idle and bookkeeping", share(lambda m: m["time/step"] - sum(m[k] for k in PARTS.values()))))
    return rows


def pipelines() -> None:
    from latency_engine import measure_balanced_lag, measure_lag, measure_pipelines

    seconds, lagged = measure_pipelines(), measure_lag()
    rows = [(f"TAPO over GRPO, {name}", f"{value / seconds['grpo']:.2f}") for name, value in seconds.items()][1:]
    names = {"grpo": "GRPO", "deferred": "TAPO, deferred"}
    rows += [(f"{names[name]}: lag 1 over lag 0", f"{value / seconds[name]:.2f}") for name, value in lagged.items()]
    rows.append(("GRPO, an update 12 times as long: lag 1 over lag 0", f"{measure_balanced_lag():.2f}"))
    table("step times on an engine bound by latency, as ratios", [*rows, ("GRPO step, s", f"{seconds['grpo']:.0f}")])


def growth(repeats: int) -> None:
    from bench_growth import draw, list_rows, measure_growth

    seconds = asyncio.run(measure_growth(repeats))
    table("a GRPO step as it grows", list_rows(seconds))
    draw(seconds)


def driver(scale: int) -> None:
    from driver_scale import TOKENS_TRAINED

    for pipeline in ("overlapped", "deferred"):
        seen = run_apart("--driver-once", 1024 // scale, 16, 8192, pipeline)
        title = f"the driver's part of a step, {1024 // scale:,} queries, {pipeline}"
        table(
            title,
            [(name, f"{value:,.0f}" if name == TOKENS_TRAINED else f"{value:.1f}") for name, value in seen.items()],
        )


def main() -> None:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument(
        "what", nargs="*", help="kernel, step, pipelines: all three if none is named; the others only where named"
    )
    arguments.add_argument("--model", type=Path, default=Path("assets/tiny-coldstart"))
    arguments.add_argument("--repeats", type=int, default=5)
    arguments.add_argument("--scale", type=int, default=1, help="of driver: divide its queries by so much")
    arguments.add_argument("--kernel-once", help=argparse.SUPPRESS)
    arguments.add_argument("--driver-once", help=argparse.SUPPRESS)
    given = arguments.parse_args()
    if given.kernel_once:
        print(json.dumps(kernel_once(*json.loads(given.kernel_once))))
        return
    if given.driver_once:
        from driver_scale import measure_driver

        print(json.dumps(measure_driver(*json.loads(given.driver_once))))
        return
    if not given.what or "kernel" in given.what:
        kernel(given.repeats)
    if not given.what or "step" in given.what:
        asyncio.run(steps(given.model, given.repeats))
    if not given.what or "pipelines" in given.what:
        pipelines()
    if "peers" in given.what:
        from bench_peers import list_rows, measure_peers

        table("a GRPO step beside TRL's", list_rows(asyncio.run(measure_peers(given.repeats))))
    if "floor" in given.what:
        from bench_floor import list_rows as list_floor_rows
        from bench_floor import measure_floor

        table("a GRPO step beside its floor", list_floor_rows(asyncio.run(measure_floor(given.repeats))))
    if "growth" in given.what:
        growth(given.repeats)
    if "driver" in given.what:
        driver(given.scale)


if __name__ == "__main__":
    main()
