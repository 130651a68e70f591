"""Figures that arXiv 2606.18844 reports, as the reference column of what this project prints."""

from __future__ import annotations

# Table 1, pass@1 .. pass@5 in percent: Qwen3-8B after the cold start, and after TAPO on top of it.
TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {
    "AIME 2024": {
        "cold start": (31.67, 39.38, 44.17, 48.12, 51.04),
        "+ TAPO": (62.50, 71.25, 76.04, 77.92, 80.21),
    },
    "AIME 2025": {
        "cold start": (23.75, 28.96, 32.50, 35.42, 37.08),
        "+ TAPO": (46.88, 56.46, 61.46, 66.04, 67.92),
    },
    "HMMT 2025": {
        "cold start": (14.37, 18.54, 21.25, 23.96, 26.46),
        "+ TAPO": (31.46, 40.83, 44.79, 47.50, 50.00),
    },
}

# Table 2, percent, by benchmark.
TABLE_2_BENCHMARKS = ("AIME 24", "AIME 25", "HMMT 25")
TABLE_2: dict[str, dict[str, tuple[float, ...]]] = {
    "Cold-start + GRPO": {"DSR": (34.0, 22.1, 28.0), "ERR": (52.0, 51.5, 33.8)},
    "Cold-start + TAPO": {"DSR": (47.5, 38.0, 50.4), "ERR": (63.4, 56.3, 36.8)},
    "Δ": {"DSR": (13.5, 15.9, 22.3), "ERR": (11.4, 4.8, 3.0)},
}

# Section 4.6: what the panels of Figure 3 showed for TAPO after a cold start.
FIGURE_3 = (
    "(a) stays close to 1.0 (without a cold start it falls to about 0.95 by step 500)",
    "(b) lower than GRPO's, with little variance",
    "(c) rises, slightly above GRPO's",
    "(d) among the lowest of the methods compared",
    "(e) grows moderately, as with GRPO",
    "(f) low, about GRPO's (without a cold start nearly ten times as high)",
)
