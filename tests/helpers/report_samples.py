"""A hand-made run folder: arithmetic trajectories of every outcome, metrics and an evaluation."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path
from random import Random
from typing import Any

from nemo_tapo.tracking.records import MetricsWriter, TrajectoryWriter, make_skipped_record, make_trajectory_record
from nemo_tapo.types import Completion, Construction, Grade, Group, Pair, Query, Rollout
from nemo_tapo.utils.jsonl import Record

HOSTILE = "</script><script>document.title='owned'</script><img src=x onerror=alert(1)> & \u2028 <b>bold</b>"


def rollout(query: Query, index: int, text: str, reward: float) -> Rollout:
    """A graded response of one token a character."""
    completion = Completion(token_ids=tuple(map(ord, text)), text=text, truncated=False)
    answer = text.rpartition("{")[2].rstrip("}") if "\\boxed{" in text else None
    return Rollout(query, index, completion, Grade(reward, "right" if reward else "wrong", answer))


def pieces(text: str) -> list[str]:
    """Tokens as the small tokenizer cuts: words with the blank before them, single digits, signs."""
    return re.findall(r"\\boxed\{| ?[A-Za-z]+|: |[0-9]|\n|.", text, re.DOTALL)


def example_pair(uid: str = "7", question: str = "47+38=?") -> Pair:
    """The worked example of types.py."""
    query = Query(uid, question, "85")
    wrong = rollout(query, 0, "47+38=75\n\\boxed{75}", 0.0)
    return Pair(wrong, rollout(query, 3, "47+38=85\n\\boxed{85}", 1.0), 0)


def example_construction(**changes: object) -> Construction:
    """Its correction, right and not dropped unless changed."""
    pair = example_pair()
    kept = "47+38=75\n"
    values: dict[str, object] = {
        "dropped": None,
        "raw": "<analysis>...</analysis><reconstruction>...</reconstruction>",
        "analysis": "The carry was forgotten.",
        "reconstruction": kept + "Wait, the carry was forgotten: 47+38=85\n\\boxed{85}",
        "kept_chars": len(kept),
        "kept_tokens": len(pieces(kept)),
        "kept_share": len(kept) / len(pair.wrong.text),
        "grade": Grade(1.0, "right", "85"),
    }
    return Construction(pair, **{**values, **changes})  # type: ignore[arg-type]


def example_record(**changes: object) -> Record:
    """The record of `example_construction`; weights of 1 but 0.05 on " carry"."""
    construction = example_construction(**changes)
    if construction.dropped is not None:
        return make_trajectory_record(construction, [], [], None)
    tokens = pieces(construction.reconstruction)
    weights = [0.05 if token == " carry" else 1.0 for token in tokens]
    return make_trajectory_record(construction, tokens, weights, 0.577)


class Chain:
    """An addition chain with one forgotten carry: question, right and wrong working, correction."""

    def __init__(self, rng: Random) -> None:
        numbers = [rng.randint(15, 59) for _ in range(rng.randint(2, 4))]
        numbers[1] += max(0, 10 - numbers[0] % 10 - numbers[1] % 10)  # the first step needs a carry
        self.question = "+".join(map(str, numbers)) + "=?"
        self.right = self._lines(numbers, 0)
        self.wrong = self._lines(numbers, -10)
        self.answer = str(sum(numbers))
        self.kept = self.wrong.partition("\n")[0] + "\n"
        self.correction = f"Wait, the carry is missing: {self.right}"

    @staticmethod
    def _lines(numbers: list[int], slip: int) -> str:
        total, lines = numbers[0], []
        for place, number in enumerate(numbers[1:]):
            result = total + number + (slip if place == 0 else 0)
            lines.append(f"{total}+{number}={result}")
            total = result
        return "\n".join([*lines, f"\\boxed{{{total}}}"])


def _weights(tokens: list[str], kept: int, rng: Random) -> list[float]:
    """About 1 on the kept prefix, low where the correction begins, sometimes above 1."""
    weights, chars = [], 0
    for token in tokens:
        first = chars < kept + 14 and chars >= kept
        centre = -1.6 if first else 0.0
        weights.append(min(max(math.exp(rng.gauss(centre, 0.9 if first else 0.25)), 0.01), 10.0))
        chars += len(token)
    return weights


def _pair_record(uid: str, chain: Chain, rng: Random) -> Record:
    query = Query(uid, chain.question, chain.answer)
    pair = Pair(rollout(query, 0, chain.wrong, 0.0), rollout(query, 5, chain.right, 1.0), rng.randint(0, 3))
    fate = rng.random()
    analysis = f"In the first step the carry was forgotten: {chain.kept.strip()} is ten too small."
    raw = f"<analysis>{analysis}</analysis>\n<reconstruction>\n{chain.kept}"
    if fate < 0.10:
        return make_trajectory_record(Construction(pair, "truncated", raw=raw[:90]), [], [], None)
    if fate < 0.18:
        return make_trajectory_record(Construction(pair, "no_reconstruction", raw=raw, analysis=analysis), [], [], None)
    if fate < 0.26:
        text = chain.kept + "The reference says otherwise: " + chain.right
        raw = f"<analysis>{analysis}</analysis>\n<reconstruction>\n{text}\n</reconstruction>"
        return make_trajectory_record(Construction(pair, "leak", raw, analysis, text), [], [], None)
    good = fate < 0.75
    text = chain.kept + (chain.correction if good else f"Wait, that is wrong. {chain.wrong}")
    grade = Grade(float(good), "right" if good else "wrong", chain.answer if good else str(int(chain.answer) - 10))
    share = len(chain.kept) / len(chain.wrong)
    tokens = [*pieces(text), ""]  # the end-of-response token has no text
    construction = Construction(pair, None, "", analysis, text, len(chain.kept), 0, share, (), grade)
    weights = _weights(tokens, len(chain.kept), rng)
    return make_trajectory_record(construction, tokens, weights, 0.577 if good else -1.732)


def _skipped(uid: str, chain: Chain, right: int) -> Record:
    query = Query(uid, chain.question, chain.answer)
    rollouts = [rollout(query, k, chain.right if k < right else chain.wrong, float(k < right)) for k in range(8)]
    return make_skipped_record(Group(query, tuple(rollouts)), "beyond" if right < 2 else "mastered")


def _step_metrics(step: int, records: list[Record], rng: Random, progress: float) -> dict[str, float]:
    pairs = [r for r in records if r["kind"] == "pair"]
    dropped = [r["dropped"] for r in pairs if r["dropped"]]
    zones = [r["zone"] for r in records if r["kind"] == "skipped"]
    out = {
        "loss": rng.gauss(-0.02, 0.03 * (1.2 - progress)),
        "reward/mean": 0.35 + 0.4 * progress + rng.gauss(0, 0.03),
        "grad_norm": 0.9 - 0.4 * progress + rng.gauss(0, 0.08),
        "response_length/mean": 34 + 6 * progress + rng.gauss(0, 0.8),
        "kl_ref": 0.08 * progress**1.5 + abs(rng.gauss(0, 0.004)),
        "tapo/eligible": len({r["group"] for r in pairs}),
        "tapo/mastered": zones.count("mastered"),
        "tapo/beyond": zones.count("beyond"),
        "tapo/pairs": len(pairs),
        "tapo/parsed": len(pairs) - len(dropped),
        "tapo/correct": sum(r["reward"] > 0 for r in pairs),
        "tapo/groups": len({r["group"] for r in pairs if not r["dropped"]}),
        "tapo/mixed_groups": len(pairs) // 4,
    }
    if len(pairs) > len(dropped):
        out["tapo/ots_weight_mean"] = 0.93 + 0.05 * progress + rng.gauss(0, 0.01)
    for reason in ("truncated", "no_reconstruction", "leak"):
        out[f"tapo/dropped/{reason}"] = dropped.count(reason)
    return out


SETTINGS = {"samples": 5, "runs": 16, "temperature": 0.6, "top_p": 0.9, "max_tokens": 96, "seed": 0}
OTHERS = {"problems": 200, "responses": 16_000, "avg@5": 0.342, "truncated": 0.02, "no_answer": 0.01}


def measures(*pass_values: float, half: float = 0.04) -> dict[str, Any]:
    """pass@1 .. with intervals of that half width; first@k the same."""
    found: dict[str, Any] = {}
    for estimator in ("pass", "first"):
        for k, value in enumerate(pass_values, 1):
            found[f"{estimator}@{k}"] = value
            found[f"{estimator}@{k}/interval95"] = [value - half, value + half]
    return found


EVALUATION: dict[str, Any] = {
    "before": {
        "model": "runs/sample/coldstart/hf",
        "settings": SETTINGS,
        "benchmarks": {
            "arithmetic": {**measures(0.342, 0.463, 0.531, 0.577, 0.612), **OTHERS, "outcomes": {"timeout": 3}}
        },
        "synthesis": {"pairs": 240, "parsed": 201, "correct": 121, "mixed_groups": 28, "groups": 62},
    },
    "after": {
        "model": "runs/sample/hf",
        "settings": SETTINGS,
        "benchmarks": {"arithmetic": {**measures(0.668, 0.752, 0.789, 0.811, 0.825), **OTHERS, "outcomes": {}}},
        "synthesis": {"pairs": 232, "parsed": 224, "correct": 199, "mixed_groups": 17, "groups": 58},
        "change": {
            "from": "before",
            "benchmarks": {
                "arithmetic": {
                    **measures(0.326, 0.289, 0.258, 0.234, 0.213, half=0.025),
                    "problems": {"better": 150, "worse": 30, "equal": 20},
                }
            },
        },
    },
}

CONFIG = {
    "algorithm": "tapo",
    "steps": 60,
    "seed": 0,
    "runtime": "local",
    "task": {"name": "arithmetic"},
    "model": {"path": "assets/tiny-base"},
    "rollout": {"queries_per_step": 32, "samples_per_query": 8},
    "tapo": {"n_pos": 2, "n_neg": 4, "m_max": 4, "lambda": 1.0, "w_min": 0.01, "w_max": 10.0},
    "optimizer": {"lr": 1e-4},
}


def write_run(folder: Path, steps: int = 60, per_step: int = 8, trajectory_steps: int = 8, seed: int = 0) -> Path:
    """A complete run folder; trajectories are kept for the first `trajectory_steps` steps."""
    rng = Random(seed)
    metrics, trajectories = MetricsWriter(folder), TrajectoryWriter(folder)
    for step in range(steps):
        records: list[Record] = []
        for index in range(per_step):
            uid, chain, draw = f"{step * per_step + index}", Chain(rng), rng.random()
            if draw < 0.15:
                records.append(_skipped(uid, chain, 7))
            elif draw < 0.28:
                records.append(_skipped(uid, chain, 1))
            else:
                records.append(_pair_record(uid, chain, rng))
        metrics.write(step, _step_metrics(step, records, rng, step / max(steps - 1, 1)))
        if step < trajectory_steps:
            trajectories.write(step, records)
    metrics.close()
    trajectories.close()
    (folder / "evaluation.json").write_text(json.dumps(EVALUATION))
    (folder / "config.json").write_text(json.dumps(CONFIG))
    return folder
