"""Runs for the watch page, of any size: every rollout, metrics with times, and configuration."""

from __future__ import annotations

import json
from pathlib import Path
from random import Random

from nemo_tapo.tracking.records import MetricsWriter
from nemo_tapo.tracking.rollout_writer import RolloutWriter
from nemo_tapo.utils.jsonl import Record
from tests.helpers import report_samples as samples

K = 8


def make_query(uid: str, rng: Random, filler: str = "") -> Record:
    """A query with K rollouts, a random share of them right, and two pairs if at least two are."""
    chain, right = samples.Chain(rng), rng.randint(0, K)
    rollouts = []
    for index in range(K):
        good = index < right
        text = (chain.right if good else chain.wrong) + filler
        answer = chain.answer if good else str(int(chain.answer) - 10)
        rollouts.append(
            {
                "text": text,
                "length": len(text),
                "reward": float(good),
                "correct": good,
                "graded": True,
                "outcome": "right" if good else "wrong",
                "extracted": answer,
                "truncated": False,
                "advantage": (1.0 if good else -1.0) * (1 - right / K if good else right / K),
                "detail": "",
            }
        )
    zone = "eligible" if 2 <= right <= 4 else "beyond" if right < 2 else "mastered"
    pairs = [samples._pair_record(uid, chain, rng) for _ in range(2)] if zone == "eligible" else []
    for index, pair in enumerate(pairs):
        pair |= {"wrong_index": right + index, "right_index": 0}
    base = {"uid": uid, "question": chain.question, "answer": chain.answer}
    return {**base, "zone": zone, "rollouts": rollouts, "pairs": pairs}


def write_watched_run(folder: Path, steps: int, queries: int = 8, filler: str = "", seed: int = 0) -> Path:
    """A run that has done `steps` of `steps` + 10. filler: text at the end of every rollout, to make it long."""
    rng = Random(seed)
    metrics, rollouts = MetricsWriter(folder), RolloutWriter(folder, 2**34)
    metrics._tensorboard = lambda: _NoEvents()  # type: ignore[method-assign, assignment, return-value]
    for step in range(1, steps + 1):
        records = [make_query(f"train-{step * queries + i}", rng, filler) for i in range(queries)]
        rewards = [rollout["reward"] for record in records for rollout in record["rollouts"]]
        rows: dict[str, float] = {"reward/mean": sum(rewards) / len(rewards), "loss": rng.gauss(0, 0.02)}
        rows |= {"time/rollouts": 3 + rng.random(), "time/synthesis": 1.0, "time/update": 2.0, "time/weights": 0.1}
        rows |= {"time/collect": rows["time/rollouts"] + 1.0, "time/grading": 0.5}
        rows["time/step"] = rows["time/collect"] + 2.2
        metrics.write(step, rows)
        rollouts.write(step, records)
    metrics.close()
    rollouts.close()
    (folder / "config.yaml").write_text(json.dumps({**samples.CONFIG, "steps": steps + 10}))
    return folder


class _NoEvents:
    """Stands for TensorBoard's writer, which takes seconds to import."""

    def add_scalar(self, *_: object) -> None: ...

    def flush(self) -> None: ...
