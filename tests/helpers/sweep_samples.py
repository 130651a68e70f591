"""Folders of a sweep as its runs leave them, with responses made to order."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from pathlib import Path
from random import Random
from typing import Any

from nemo_tapo.config.run_config import to_yaml, validate
from nemo_tapo.evaluation.sample_store import Sample
from nemo_tapo.tasks import arithmetic
from nemo_tapo.utils.files import hash_json

# Held-out problems in which a carry can be forgotten, under the names that the task gives them.
PROBLEMS = [
    (f"test-{i}", p)
    for i, p in enumerate(arithmetic.get_held_out_problems(40))
    if arithmetic.diagnose(p, arithmetic.write_solution(p, Random(0), mistake_rate=1.0))
]


def response(problem: arithmetic.Problem, kind: str) -> str:
    """ "right"; "wrong": a forgotten carry; "turned": it is found and put right; "turned wrong": but not the answer."""
    wrong = arithmetic.write_solution(problem, Random(0), mistake_rate=1.0)
    if kind == "right":
        return arithmetic.write_solution(problem, Random(0), mistake_rate=0.0)
    fixed = arithmetic.write_correction(problem, wrong)
    assert fixed is not None, "chosen so"
    return {
        "wrong": wrong,
        "turned": fixed.reconstruction,
        "turned wrong": fixed.reconstruction.replace("\\boxed{", "\\boxed{1"),
    }[kind]


def write_run(
    output: Path,
    row: str,
    seed: int,
    kinds: Sequence[Sequence[str]],
    metrics: Sequence[dict[str, float]] = (),
    name: str = "after",
    **settings: Any,
) -> Path:
    """A finished run: a list of kinds of response for each of the first problems, in one run of evaluation."""
    folder, n = output / row / f"seed-{seed}", len(kinds[0])
    samples = folder / "evaluation" / name
    samples.mkdir(parents=True)
    problems = PROBLEMS[: len(kinds)]
    cfg = validate({"output": folder, "seed": seed, "evaluation": {"runs": 1, "samples": n}, **settings})
    (folder / "config.yaml").write_text(to_yaml(cfg))
    lines = [
        Sample("arithmetic", uid, 0, k, text, 10, False, outcome, reward, None)
        for (uid, problem), of in zip(problems, kinds, strict=True)
        for k, kind in enumerate(of)
        for text in [response(problem, kind)]
        for reward, outcome in [arithmetic.verify_response(problem.answer, text)]
    ]
    (samples / "arithmetic.jsonl").write_text("".join(json.dumps(asdict(s)) + "\n" for s in lines))
    data = hash_json([(uid, p.question, p.answer) for uid, p in problems])
    evaluation = {"temperature": 0.6, "top_p": 0.9, "max_tokens": 96}
    benchmarks = {"arithmetic": {"problems": len(problems), "data": data, "prompts": "of the test"}}
    described = {"model": {}, "seed": seed, "evaluation": evaluation, "benchmarks": benchmarks, "runs": 1, "samples": n}
    (samples / "settings.json").write_text(json.dumps(described))
    (folder / "evaluation.json").write_text(json.dumps({name: {"settings": {"runs": 1, "samples": n}}}))
    (folder / "metrics.jsonl").write_text(
        "".join(json.dumps({"step": i, **m}) + "\n" for i, m in enumerate(metrics, 1))
    )
    return folder
