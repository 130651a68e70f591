"""Numbers that arXiv 2606.18844 reports, printed beside this project's own results for comparison."""

from __future__ import annotations

# Table 1, pass@1 .. pass@5 in percent: methods that start from Qwen3-8B-Instruct, and from its cold start.
TABLE_1: dict[str, dict[str, tuple[float, ...]]] = {
    "AIME 2024": {
        "Qwen3-8B-Instruct": (23.12, 31.52, 35.00, 40.00, 42.71),
        "Qwen3-8B-Instruct w/ Thinking": (55.21, 62.71, 66.25, 68.45, 70.42),
        "Qwen3-8B-Instruct + OPSD": (54.58, 63.75, 69.58, 72.71, 75.83),
        "Qwen3-8B-Instruct + GRPO": (54.58, 63.12, 66.88, 69.58, 72.08),
        "Qwen3-8B-Instruct + TAPO": (63.12, 71.25, 74.79, 76.46, 77.08),
        "Cold-start": (31.67, 39.38, 44.17, 48.12, 51.04),
        "Cold-start + OPSD": (57.71, 65.42, 70.21, 75.62, 78.12),
        "Cold-start + GRPO": (52.92, 62.92, 70.00, 72.50, 74.58),
        "Cold-start + TAPO": (62.50, 71.25, 76.04, 77.92, 80.21),
    },
    "AIME 2025": {
        "Qwen3-8B-Instruct": (18.54, 25.21, 27.50, 30.00, 32.71),
        "Qwen3-8B-Instruct w/ Thinking": (42.08, 46.67, 49.38, 51.46, 53.12),
        "Qwen3-8B-Instruct + OPSD": (42.29, 49.58, 54.37, 56.67, 59.58),
        "Qwen3-8B-Instruct + GRPO": (42.08, 51.04, 56.88, 60.42, 62.50),
        "Qwen3-8B-Instruct + TAPO": (41.25, 49.58, 54.37, 57.50, 59.17),
        "Cold-start": (23.75, 28.96, 32.50, 35.42, 37.08),
        "Cold-start + OPSD": (43.33, 53.75, 59.58, 62.29, 64.17),
        "Cold-start + GRPO": (46.88, 57.08, 60.42, 63.12, 64.79),
        "Cold-start + TAPO": (46.88, 56.46, 61.46, 66.04, 67.92),
    },
    "HMMT 2025": {
        "Qwen3-8B-Instruct": (9.79, 14.17, 17.50, 19.38, 20.83),
        "Qwen3-8B-Instruct w/ Thinking": (25.62, 30.62, 34.17, 36.88, 38.33),
        "Qwen3-8B-Instruct + OPSD": (22.08, 28.33, 33.33, 35.83, 37.29),
        "Qwen3-8B-Instruct + GRPO": (25.00, 29.17, 32.50, 35.62, 37.08),
        "Qwen3-8B-Instruct + TAPO": (22.71, 28.54, 31.87, 35.21, 36.88),
        "Cold-start": (14.37, 18.54, 21.25, 23.96, 26.46),
        "Cold-start + OPSD": (24.17, 33.33, 37.92, 42.08, 46.46),
        "Cold-start + GRPO": (28.75, 38.96, 42.71, 45.62, 48.12),
        "Cold-start + TAPO": (31.46, 40.83, 44.79, 47.50, 50.00),
    },
}

# Table 2, percent, by benchmark.
TABLE_2_BENCHMARKS = ("AIME 24", "AIME 25", "HMMT 25")
TABLE_2: dict[str, dict[str, tuple[float, ...]]] = {
    "Cold-start + GRPO": {"DSR": (34.0, 22.1, 28.0), "ERR": (52.0, 51.5, 33.8)},
    "Cold-start + TAPO": {"DSR": (47.5, 38.0, 50.4), "ERR": (63.4, 56.3, 36.8)},
    "Δ": {"DSR": (13.5, 15.9, 22.3), "ERR": (11.4, 4.8, 3.0)},
}

# Tables 3, 4 and 5, percent: pass@1 and pass@5 of each benchmark of Table 1 in its order. Table 3's runs had 200 steps.
TABLE_3: dict[str, tuple[float, ...]] = {
    "Cold-start": (31.67, 51.04, 23.75, 37.08, 14.37, 26.46),
    "+ GRPO": (41.46, 66.67, 30.00, 52.50, 20.00, 36.67),
    "+ SFT w/ micro-reflective": (30.62, 44.58, 20.21, 32.50, 12.29, 21.67),
    "+ TAPO w/ full reconstruction": (42.29, 67.08, 33.75, 53.96, 18.75, 37.50),
    "+ TAPO w/ micro-reflective": (46.67, 67.08, 36.46, 60.21, 20.62, 40.21),
}
TABLE_4: dict[str, tuple[float, ...]] = {
    "Cold-start": (31.67, 51.04, 23.75, 37.08, 14.37, 26.46),
    "+ TAPO w/o DAE + w/o OTS + w/o Negative": (52.71, 71.67, 41.46, 57.92, 20.83, 38.96),
    "+ TAPO w/o OTS + w/o Negative": (49.17, 67.92, 36.67, 56.46, 21.67, 42.92),
    "+ TAPO w/o OTS": (57.29, 77.71, 45.83, 61.67, 21.46, 46.25),
    "+ TAPO": (62.50, 80.21, 46.88, 67.92, 31.46, 50.00),
}
TABLE_5: dict[str, tuple[float, ...]] = {  # n_pos n_neg m_max
    "2 2 2": (51.88, 73.75, 37.92, 56.25, 22.08, 39.79),
    "2 2 4": (57.92, 78.12, 40.21, 58.75, 24.17, 42.92),
    "2 4 4": (62.50, 80.21, 46.88, 67.92, 31.46, 50.00),
    "1 5 3": (57.08, 76.46, 48.96, 66.04, 30.42, 48.96),
}

# Section 4.6: what the panels of Figure 3 show for TAPO after a cold start.
FIGURE_3 = (
    "(a) stays close to 1.0 (without a cold start it falls to about 0.95 by step 500)",
    "(b) lower than GRPO's, with little variance",
    "(c) rises, slightly above GRPO's",
    "(d) among the lowest of the methods compared",
    "(e) grows moderately, as with GRPO",
    "(f) low, about GRPO's (without a cold start nearly ten times as high)",
)


def get_pass_rates(table: str | None, label: str) -> dict[str, dict[int, float]]:
    """Return what the paper reports for a row of "table1", "table3", ...: {benchmark: {k: pass@k in percent}}.

    The result is {} for a table or a row that the paper does not have.

    >>> get_pass_rates("table3", "+ GRPO")["AIME 2025"]
    {1: 30.0, 5: 52.5}
    """
    if table in ("table1", "table1-direct"):
        by_benchmark = {benchmark: rows[label] for benchmark, rows in TABLE_1.items() if label in rows}
        return {benchmark: dict(enumerate(values, 1)) for benchmark, values in by_benchmark.items()}
    row = {"table3": TABLE_3, "table4": TABLE_4, "table5": TABLE_5}.get(table or "", {}).get(label)
    if row is None:
        return {}
    return {benchmark: {1: row[2 * i], 5: row[2 * i + 1]} for i, benchmark in enumerate(TABLE_1)}
