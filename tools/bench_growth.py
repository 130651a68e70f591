"""Measure how a GRPO step grows with its queries and with the length of its responses.

    python tools/bench.py growth [--repeats 3]

Every response has the same length: the model has the shape of the demo's and never ends one by itself (bench_peers.py
writes it). So the tokens of a step are queries x rollouts x length, and what is told is how time grows beside them.
The learning rate is 1e-12, so every step does the same work. Steps of all sizes take turns, so that a noisy minute
touches all.
"""

from __future__ import annotations

import statistics
from collections import defaultdict
from dataclasses import dataclass

from bench_loop import CONFIG, ROOT, SAME_WORK, Memory, run_loop
from bench_peers import write_model_that_ends

from nemo_tapo.report.plots import COLOURS, open_figure

FIGURE = ROOT / "docs" / "growth.png"
ROLLOUTS = 8
NEVER = 1e-9  # the probability of an end, at every token
PARTS = {"generation": "time/rollouts", "update": "time/update", "step": "time/step"}


@dataclass(frozen=True)
class Size:
    """What a step consists of."""

    queries: int
    length: int  # tokens of a response

    @property
    def tokens(self) -> int:
        """Tokens sampled and trained on."""
        return self.queries * ROLLOUTS * self.length


BY_QUERIES = [Size(queries, 64) for queries in (8, 16, 32, 64)]
BY_LENGTH = [Size(8, length) for length in (64, 128, 256)]
Seconds = dict[Size, dict[str, float]]  # of each part, medians


async def measure_growth(repeats: int) -> Seconds:
    """Take `repeats` rounds of steps of every size on the local runtime."""
    from nemo_tapo.config.load import load_config
    from nemo_tapo.runtime.local.runtime import LocalRuntime

    model = ROOT / "runs" / "bench" / "never-ends"
    write_model_that_ends(ROOT / "assets" / "tiny-coldstart", model, NEVER)

    def configure(size: Size) -> list[str]:
        return [
            *SAME_WORK,
            f"model.path={model}",
            f"rollout.max_tokens={size.length}",
            f"rollout.queries_per_step={size.queries}",
            f"rollout.samples_per_query={ROLLOUTS}",
        ]

    sizes = list(dict.fromkeys(BY_QUERIES + BY_LENGTH))
    seen: dict[Size, list[dict[str, float]]] = defaultdict(list)
    runtime = await LocalRuntime.start(load_config(CONFIG, configure(sizes[-1])))
    try:
        for _ in range(repeats):
            for size in sizes:
                memory = Memory()
                await run_loop(load_config(CONFIG, configure(size)), runtime, memory, queries=512)
                seen[size] += memory.metrics[1:]  # the first step warms up
    finally:
        runtime.close()
    for size, steps in seen.items():
        assert {m["tokens/generated"] for m in steps} == {size.tokens}, "a response ended by itself"
    return {
        size: {part: statistics.median(m[key] for m in steps) for part, key in PARTS.items()}
        for size, steps in seen.items()
    }


def list_rows(seconds: Seconds) -> list[tuple[str, str]]:
    """Return the table's rows: how the tokens and the time of each part grow from the smallest step."""
    rows = []
    for name, sizes in (("queries", BY_QUERIES), ("tokens a response", BY_LENGTH)):
        first = sizes[0]
        for size in sizes[1:]:
            told = ", ".join(f"{part} {seconds[size][part] / seconds[first][part]:.2f}" for part in PARTS)
            value = {"queries": size.queries, "tokens a response": size.length}[name]
            rows.append((f"{value} {name}, tokens x {size.tokens / first.tokens:.0f}", f"time x: {told}"))
    smallest = BY_QUERIES[0]
    rows.append((f"step of {smallest.queries} queries, {smallest.length} tokens", f"{seconds[smallest]['step']:.2f} s"))
    return rows


def draw(seconds: Seconds) -> None:
    """Draw time over tokens, both as multiples of the smallest step's, into docs/growth.png."""
    with open_figure(FIGURE, size=(9, 3.8)) as figure:
        axes = figure.subplots(1, 2, sharey=True)
        for axis, (title, sizes) in zip(
            axes, (("more queries", BY_QUERIES), ("longer responses", BY_LENGTH)), strict=True
        ):
            tokens = [size.tokens / sizes[0].tokens for size in sizes]
            axis.plot(tokens, tokens, color="0.5", linestyle=":", label="as the tokens grow")
            for part, colour in zip(PARTS, COLOURS, strict=False):
                times = [seconds[size][part] / seconds[sizes[0]][part] for size in sizes]
                axis.plot(tokens, times, marker="o", color=colour, label=part)
            axis.set(title=title, xlabel="tokens of a step, times the smallest", xscale="log", yscale="log")
            axis.set_xticks(tokens, [f"{each:.0f}" for each in tokens])
            axis.set_yticks([1, 2, 4, 8], ["1", "2", "4", "8"])
            axis.minorticks_off()
        axes[0].set_ylabel("time, times the smallest")
        axes[0].legend(frameon=False)
