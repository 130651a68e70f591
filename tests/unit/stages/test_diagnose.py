"""`nemo-tapo diagnose`: what it counts, and what it takes for an obstacle."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.evaluation.diagnosis import PrefixProbe, describe, find_obstacles, give_verdict, summarise_probes
from tests.helpers.command import nemo_tapo

SMALL = (
    "runtime=scripted", "model.max_length=4000", "rollout.max_tokens=300", "tapo.max_tokens=900", "tapo.n_neg=2",
    "checkpoint.min_free_gib=0",
)  # fmt: skip


def test_it_counts_what_one_step_makes(tmp_path: Path) -> None:
    done = nemo_tapo("diagnose", *SMALL, "diagnose.queries=24", f"output={tmp_path / 'out'}")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "out" / "diagnosis.json").read_text())
    assert found["queries"] == 24 == found["eligible"] + found["mastered"] + found["beyond"]
    assert found["rollouts"] == 24 * 8
    assert found["pairs"] == found["parsed"] + sum(found["dropped"].values()) > 0
    assert 0 < found["correct"] < found["parsed"]
    detection = found["detection"]
    assert 0 < detection["prefixes"] <= found["pairs"]
    # the script turns at random, behind right and wrong steps alike, and knows the answer half of the time
    assert 0.2 < detection["turned_behind_error"] < 0.8
    assert abs(detection["difference"]) < 0.45
    assert 0.2 < detection["recovered"] < 0.8
    assert f"pairs      {found['pairs']}: {found['parsed']} give a row" in done.stdout
    assert str(tmp_path / "out" / "diagnosis.json") in done.stdout


def test_the_same_command_finds_the_same(tmp_path: Path) -> None:
    for name in "ab":
        assert nemo_tapo("diagnose", *SMALL, "diagnose.queries=6", f"output={tmp_path / name}").returncode == 0
    first, second = ((tmp_path / name / "diagnosis.json").read_bytes() for name in "ab")
    assert first == second


GOOD: dict[str, Any] = {
    "queries": 64, "eligible": 30, "mastered": 20, "beyond": 14, "rollouts": 512, "right_rollouts": 256, "pairs": 100,
    "parsed": 80, "correct": 50, "groups": 28, "mixed_groups": 14, "kept_share": 0.5, "dropped": {"no_analysis": 20},
    "detection": {"prefixes": 90, "turned_behind_error": 0.8, "turned_behind_right": 0.1, "difference": 0.7,
                  "recovered": 0.4},
}  # fmt: skip


@pytest.mark.parametrize(
    ("changed", "verdict", "words"),
    [
        ({}, "likely", []),
        ({"detection": None}, "open", []),
        ({"eligible": 3, "mastered": 50, "beyond": 11}, "unlikely", ["nearly always right", "nemo-tapo filter"]),
        ({"eligible": 3, "mastered": 11, "beyond": 50}, "unlikely", ["nearly always wrong"]),
        ({"parsed": 20, "dropped": {"no_analysis": 70, "leak": 10}}, "unlikely", ["no_analysis (70)", "cold start"]),
        ({"mixed_groups": 2}, "unlikely", ["2 of 28 reflection groups", "62% of the constructions"]),
        ({"detection": {**GOOD["detection"], "turned_behind_right": 0.7, "difference": 0.1}}, "unlikely", ["in 70%"]),
        ({"pairs": 0, "parsed": 0, "groups": 0, "mixed_groups": 0, "dropped": {}}, "unlikely", []),
    ],
)  # fmt: skip
def test_obstacles(changed: dict[str, Any], verdict: str, words: list[str]) -> None:
    found = {**GOOD, **changed}
    obstacles = find_obstacles(found)
    assert give_verdict(found, obstacles) == verdict
    assert len(obstacles) == bool(words)
    shown = describe({**found, "obstacles": obstacles, "verdict": verdict})
    assert all(word in shown for word in words)
    assert ("unlikely to help" in shown) == (verdict == "unlikely")


def test_detection_is_a_difference() -> None:
    probes = [PrefixProbe(True, turned, False) for turned in (True, True, True, False)]
    probes += [PrefixProbe(False, turned, True) for turned in (True, False)]
    assert summarise_probes(probes) == {
        "prefixes": 4, "turned_behind_error": 0.75, "turned_behind_right": 0.5, "difference": 0.25, "recovered": 0.0,
    }  # fmt: skip
    assert summarise_probes(probes[:4]) is None
