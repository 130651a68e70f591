"""What counts as correct (tapo.correct_at) is decided in one place, and every reader of a reward agrees with it."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest

from nemo_tapo.algorithms.tapo import TAPO
from nemo_tapo.algorithms.tools import Tools
from nemo_tapo.config.run_config import validate
from nemo_tapo.equations.selection import Zone, classify_zone, select_pairs
from nemo_tapo.evaluation.accuracy import collect_samples, summarise
from nemo_tapo.evaluation.sample_store import Sample, SampleStore, read_samples
from nemo_tapo.runtime.scripted_runtime import ScriptedRuntime, arithmetic_script
from nemo_tapo.stages.coldstart import base_samples, corrections
from nemo_tapo.tasks.arithmetic_task import ArithmeticTask
from nemo_tapo.tracking.records import get_outcome, make_skipped_record, make_trajectory_record
from nemo_tapo.types import Completion, Construction, Experience, Grade, Group, Pair, Query, Rollout, settle_grade
from tests.helpers.imports import ROOT

QUERY = Query("7", "47+38=?", "85")
REWARDS = (0.0, 0.2, 0.5, 0.5, 0.8, 1.0)


def group(correct_at: float | None) -> Group:
    rollouts = (
        Rollout(QUERY, k, Completion((k,), str(k), False), settle_grade(Grade(r, "x"), correct_at))
        for k, r in enumerate(REWARDS)
    )
    return Group(QUERY, tuple(rollouts))


@pytest.mark.parametrize(
    ("correct_at", "correct"), [(None, [1, 2, 3, 4, 5]), (0.5, [2, 3, 4, 5]), (0.8, [4, 5]), (1.0, [5])]
)
def test_eq_3_parts_the_rollouts_at_the_threshold(correct_at: float | None, correct: list[int]) -> None:
    one = group(correct_at)
    assert [r.index for r in one.correct] == correct
    assert [r.index for r in one.incorrect] == [k for k in range(6) if k not in correct]
    assert [r.grade.outcome == "right" for r in one.rollouts] == [k in correct for k in range(6)]


def test_pairs_follow_the_threshold() -> None:
    """Two right of six at 0.8: eligible for n_pos = 2, n_neg = 4. With any above 0 there is one wrong rollout."""
    assert classify_zone(group(0.8), 2, 4) is Zone.ELIGIBLE
    assert classify_zone(group(None), 2, 4) is Zone.MASTERED
    assert classify_zone(group(1.0), 2, 4) is Zone.BEYOND
    pairs = select_pairs(group(0.8), 2, 4, 4, seed=0, step=0)
    assert {p.wrong.index for p in pairs} == {0, 1, 2, 3} and {p.right.index for p in pairs} <= {4, 5}


def test_negatives_are_those_below_the_threshold() -> None:
    """Constructions of reward 0.5 are negatives at 0.8, and right without a threshold."""
    for correct_at, rows in ((None, 2), (0.8, 1)):
        cfg = validate({"tapo": {"negatives": False, "correct_at": correct_at}})
        pairs = [Pair(group(correct_at).rollouts[0], group(correct_at).rollouts[5], i) for i in range(2)]
        made = tuple(
            Construction(p, None, response_ids=(1,), grade=settle_grade(Grade(r, "x"), correct_at))
            for p, r in zip(pairs, (0.5, 0.9), strict=True)
        )
        experience = Experience((group(correct_at),), made)
        runtime = ScriptedRuntime(arithmetic_script)
        algorithm = TAPO(cfg, Tools(runtime.generator, runtime.tokenizer, ArithmeticTask(cfg.task.arithmetic, 0)))
        assert sum(row.group.endswith("_reflected") for row in algorithm.make_rows(experience)) == rows
        accepted = "accepted" if correct_at is None else "refused_by_verifier"
        assert [corrections.get_outcome(c) for c in made] == [accepted, "accepted"]


def test_an_evaluation_counts_from_the_threshold_on(tmp_path: Path) -> None:
    """Rewards 0, 0.2, 0.5, 0.5, 0.8, 1: five of six without a threshold, two of six at 0.8."""
    for correct_at, expected in ((None, 5 / 6), (0.8, 2 / 6)):
        samples = [
            Sample("b", "u", 0, k, "", 1, False, "x", reward, str(k), correct_at) for k, reward in enumerate(REWARDS)
        ]
        with SampleStore(tmp_path / str(correct_at), {"runs": 1, "samples": 6}) as store:
            for sample in samples:
                store.add(sample)
        path = tmp_path / str(correct_at) / "b.jsonl"
        assert list(read_samples(path)) == samples
        written = [json.loads(line) for line in path.read_text().splitlines()]
        assert all(("correct_at" in row) == (correct_at is not None) for row in written)
        assert summarise(collect_samples("b", samples, 1, 6, 1))["avg@6"] == pytest.approx(expected)


def test_records_and_cold_start_samples_keep_the_threshold() -> None:
    for correct_at, outcome in ((None, "corrected"), (0.8, "still_wrong")):
        one = group(correct_at)
        row = json.loads(json.dumps(base_samples.row_from_group(one)))
        assert base_samples.group_from_row(QUERY, row) == one
        assert ("correct_at" in row["rollouts"][0]) == (correct_at is not None)
        pair = Pair(one.rollouts[0], one.rollouts[5], 0)
        made = Construction(pair, None, grade=settle_grade(Grade(0.5, "x"), correct_at))
        assert get_outcome(make_trajectory_record(made, [], [], None)) == outcome
        assert make_skipped_record(one, "mastered").get("correct_at") == correct_at


def test_no_other_place_compares_a_reward() -> None:
    """`reward > 0` and its like stand in `is_correct` alone."""
    test = re.compile(r"reward\w* *(?:>|>=|==|<=|<) *[01](?:\.\d*)?\b(?!\.)")
    found = [
        f"{path.name}: {line.strip()}"
        for folder in ("nemo_tapo", "tools")
        for path in sorted((ROOT / folder).rglob("*.py"))
        for line in path.read_text(encoding="utf-8").splitlines()
        if test.search(line)
    ]
    assert found == [
        "calls.py: if not 0 <= reward <= 1:",  # the range of a reward, not what is correct
        "types.py: return reward > 0 if correct_at is None else reward >= correct_at",
    ]


def test_a_threshold_outside_the_rewards_is_refused() -> None:
    for bad in (0, 1.5):
        with pytest.raises(ValueError, match=r"^tapo\.correct_at: "):
            validate({"tapo": {"correct_at": bad}})
