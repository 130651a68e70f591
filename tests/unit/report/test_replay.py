"""`nemo-tapo replay`: what was recorded agrees with itself, and what is changed on disk is told."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.run_config import RunConfig, validate
from nemo_tapo.report.step_replay import RecordedStep, replay_step
from tests.helpers.command import nemo_tapo

SMALL = [
    "runtime=scripted", "parts=[train]", "steps=2",
    "rollout.max_tokens=300", "tapo.max_tokens=700", "model.max_length=3000",
    "rollout.queries_per_step=6", "task.arithmetic.train_queries=64", "checkpoint.min_free_gib=0",
]  # fmt: skip


def train(folder: Path, *overrides: str) -> Path:
    done = nemo_tapo("run", *SMALL, f"output={folder}", *overrides)
    assert done.returncode == 0, done.stderr
    return folder


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return train(tmp_path_factory.mktemp("replay") / "run")


@pytest.fixture
def copy(run: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(run, tmp_path / "run"))


def edit(file: Path, step: int, change: Any, kind: str | None = None, where: Any = lambda line: True) -> None:
    """Change the first line of a step that is of this kind and fits `where`."""
    lines = [json.loads(line) for line in file.read_text().splitlines()]
    line = next(x for x in lines if x["step"] == step and (kind is None or x["kind"] == kind) and where(x))
    change(line)
    file.write_text("".join(json.dumps(line) + "\n" for line in lines))


def test_a_run_agrees_with_itself(run: Path) -> None:
    done = nemo_tapo("replay", str(run), "--step", "1")
    assert (done.returncode, done.stderr) == (0, "")
    for subject in ("pairs (Eq. 3)", "advantages", "counters", "token weights", "loss (Eq. 2, 6, 8)"):
        assert any(subject in line and " agree" in line for line in done.stdout.splitlines()), done.stdout
    metrics = [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines()]
    assert all(50 < each["memory/driver"] < 10_000 for each in metrics)  # MiB: torch is loaded
    done = nemo_tapo("replay", str(run), "--all")
    assert (done.returncode, len(done.stdout.splitlines())) == (0, 2)


@pytest.mark.parametrize(
    "overrides",
    [
        ["algorithm=grpo"],
        ["pipeline=deferred", "steps=3"],
        ["pipeline=deferred", "steps=3", "rollout.lag=1", "rollout.logprobs=always"],
        ["algorithm=opsd"],
        ["algorithm=reflective_sft"],
        ["tapo.decoupled=false", "loss.token_mean=true"],
        ["tapo.negatives=false", "tapo.ift_weight=0.5", "loss.weighting=terms", "tapo.prefix_loss=none"],
        ["tapo.suppression=false", "tapo.reflection_baseline=with_originals", "loss.updates_per_batch=2"],
    ],
)
def test_every_algorithm_and_switch_agrees(tmp_path: Path, overrides: list[str]) -> None:
    done = nemo_tapo("replay", str(train(tmp_path / "run", *overrides)), "--all")
    assert done.returncode == 0, done.stdout


@pytest.mark.parametrize(
    ("file", "kind", "change", "told"),
    [
        ("groups.jsonl", "group", {"advantages": 0.25}, "advantage of"),
        ("groups.jsonl", "construction", {"right": 99}, "is damaged"),
        ("groups.jsonl", "construction", {"advantage": 7.0}, "recorded 7, computed"),
        ("groups.jsonl", "construction", {"weight_sum": 1e6}, "outside the bounds"),
        ("groups.jsonl", "group", {"tokens": 1}, "tokens/generated"),
        ("metrics.jsonl", None, {"tapo/pairs": 3000}, "tapo/pairs: recorded 3000"),
        ("metrics.jsonl", None, {"loss/reflection": 5.0}, "loss/reflection: recorded 5"),
    ],
)
def test_a_changed_number_is_told(copy: Path, file: str, kind: str | None, change: dict[str, Any], told: str) -> None:
    def apply(line: dict[str, Any]) -> None:
        for key, value in change.items():
            line[key] = [value, *line[key][1:]] if isinstance(line[key], list) else value

    trained = (lambda line: line["advantage"] is not None) if kind == "construction" else (lambda line: True)
    edit(copy / file, 1, apply, kind, trained)
    done = nemo_tapo("replay", str(copy), "--step", "1")
    assert told in done.stdout
    assert done.returncode == (2 if "damaged" in told else 1)
    assert nemo_tapo("replay", str(copy), "--step", "2").returncode == 0


def test_another_choice_of_the_reference_is_told(copy: Path) -> None:
    def swap(line: dict[str, Any]) -> None:
        line["right"], line["wrong"] = line["wrong"], line["right"]

    edit(copy / "groups.jsonl", 1, swap, "construction")
    done = nemo_tapo("replay", str(copy), "--step", "1")
    assert done.returncode == 1
    assert "pair " in done.stdout and "computed wrong" in done.stdout


def test_what_is_missing_or_damaged_is_named(copy: Path) -> None:
    """A line that was never written to its end, a lost line, a line of another kind, no metrics, another config."""
    groups = copy / "groups.jsonl"
    lines = groups.read_bytes().splitlines(keepends=True)
    first = json.loads(lines[0])["uid"]
    lost = [line for line in lines if json.loads(line)["uid"] != first]
    groups.write_bytes(b"".join(lost)[:-20])
    done = nemo_tapo("replay", str(copy), "--step", "1")
    assert done.returncode == 2
    assert "has 5 of the 6 queries of step 1" in done.stdout
    assert "half-written" in done.stdout
    groups.write_bytes(b"\x00\xff\n" + b"".join(lines[1:]))
    (copy / "metrics.jsonl").unlink()
    config = (copy / "config.yaml").read_text()
    (copy / "config.yaml").write_text(config.replace("m_max: 4", "m_max: 1"))
    done = nemo_tapo("replay", str(copy), "--step", "1")
    assert "line 1 is damaged" in done.stdout
    assert "metrics.jsonl is missing" in done.stdout
    assert "tapo.m_max: 4 -> 1" in done.stdout
    (copy / "config.yaml").write_text("steps: [")
    assert nemo_tapo("replay", str(copy)).returncode == 2


def test_a_folder_of_something_else_is_a_sentence(tmp_path: Path, copy: Path) -> None:
    for folder, told in ((tmp_path / "none", "no run folder"), (tmp_path, "has no config.yaml")):
        done = nemo_tapo("replay", str(folder))
        assert (done.returncode, done.stdout) == (2, "")
        assert told in done.stderr
    assert "has no records of step 9: it has steps 1 to 2" in nemo_tapo("replay", str(copy), "--step", "9").stderr


def test_without_groups_the_trajectories_say_what_they_can(copy: Path) -> None:
    (copy / "groups.jsonl").unlink()
    done = nemo_tapo("replay", str(copy), "--all")
    assert done.returncode == 0, done.stdout
    edit(
        copy / "trajectories.jsonl", 1, lambda r: r.update(advantage=3.0), "pair", lambda r: r["advantage"] is not None
    )
    done = nemo_tapo("replay", str(copy), "--step", "1")
    assert done.returncode == 1
    assert "record_groups: true keeps it" in done.stdout
    assert "recorded 3, computed" in done.stdout


def test_a_uid_does_not_steer_the_terminal(copy: Path) -> None:
    edit(copy / "groups.jsonl", 1, lambda line: line.update(uid="\x1b[2Jq"), "group")
    assert "\x1b" not in nemo_tapo("replay", str(copy), "--step", "1").stdout


def hand_written(**metrics: float) -> tuple[RunConfig, RecordedStep]:
    """One query, rewards 1 and 0, one construction of 4 tokens with weights that add up to 2; all by hand."""
    cfg = validate(
        {
            "rollout": {"queries_per_step": 1, "samples_per_query": 2},
            "tapo": {"n_pos": 1, "n_neg": 1},
            "loss": {"advantage_eps": 0},
        }
    )
    group = {
        "kind": "group", "uid": "q", "prompt": 3, "rewards": [1.0, 0.0], "outcomes": ["right", "wrong"],
        "tokens": [2, 5], "truncated": [], "advantages": [1.0, -1.0],
    }  # fmt: skip
    construction = {
        "kind": "construction", "uid": "q_reflected/0", "prompt": 3, "wrong": 1, "right": 0, "dropped": None,
        "reward": 1.0, "outcome": "right", "tokens": 4, "kept_tokens": 1, "valid_tokens": 0, "kept_share": 0.5,
        "kept_steps": 1, "request": 9, "answer": 8, "decoded": 8, "advantage": 1.0, "weight_sum": 2.0,
    }  # fmt: skip
    # rows weigh 1/2 each (two originals): -(1 - 1)/2 = 0; the constructed one -1 x 1/(2 x 4) x 2 = -0.25
    by_hand = {"loss": -0.25, "loss/original": 0.0, "loss/reflection": -0.25, "tapo/ots_weight_mean": 0.5, **metrics}
    return cfg, RecordedStep(1, by_hand, [group, construction])


def test_the_numbers_of_a_step_by_hand() -> None:
    cfg, recorded = hand_written()
    checks = {check.subject: check for check in replay_step(cfg, recorded).checks}
    assert checks["advantages (Eq. 1, 4, 5)"].verdict == "agree"
    assert checks["loss (Eq. 2, 6, 8)"].verdict == "agree"
    assert checks["token weights (Eq. 7)"].verdict == "agree"
    cfg, recorded = hand_written(loss=-0.2501)
    checks = {check.subject: check for check in replay_step(cfg, recorded).checks}
    assert checks["loss (Eq. 2, 6, 8)"].differences == ("loss: recorded -0.2501, computed -0.25",)
