"""Every rollout on disk: what is written is read back by piece; kills, limits, damage; what a step's records hold."""

from __future__ import annotations

import errno
import gzip
import json
import string
from dataclasses import replace
from io import StringIO
from pathlib import Path
from random import Random
from typing import Any

import pytest
import torch

from nemo_tapo.config.sections import TapoConfig
from nemo_tapo.runtime.scripted_runtime import CharacterTokenizer
from nemo_tapo.tracking import rollout_writer
from nemo_tapo.tracking.progress import Progress
from nemo_tapo.tracking.recorder import RunRecorder, SampleRecording
from nemo_tapo.tracking.records import read_trajectories
from nemo_tapo.tracking.rollout_store import read_contents, read_index, read_queries, read_query
from nemo_tapo.tracking.rollout_writer import RolloutWriter
from nemo_tapo.tracking.step_records import StepRecords
from nemo_tapo.types import (
    Completion,
    Construction,
    Experience,
    Grade,
    Group,
    Kind,
    Pair,
    Query,
    Rollout,
    Row,
    StepRecord,
    UpdateResult,
)
from nemo_tapo.utils.errors import DiskFull

PLENTY = 2**30


def record(uid: str, text: str = "85") -> dict[str, Any]:
    rollout = {"text": text, "reward": 1.0, "correct": True, "outcome": "right"}
    pair = {"kind": "pair", "dropped": "leak", "reward": 0.0}
    return {"uid": uid, "question": "47+38=?", "zone": "eligible", "rollouts": [rollout], "pairs": [pair]}


def write(folder: Path, steps: range, most: int = PLENTY, queries: int = 2, text: str = "85") -> None:
    writer = RolloutWriter(folder, most)
    for step in steps:
        writer.write(step, [record(f"{step}-{i}", text) for i in range(queries)])
    writer.close()


def uids(folder: Path) -> dict[int, list[str]]:
    return {step: [r["uid"] for r in read_queries(folder, at)] for step, at in read_index(folder).steps.items()}


def test_a_query_is_read_by_itself(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4), queries=3)
    place = read_index(tmp_path).steps[2]
    contents = read_contents(tmp_path, place)
    assert [summary["uid"] for summary in contents] == ["2-0", "2-1", "2-2"]
    assert contents[1]["rewards"] == [1.0] and contents[1]["outcomes"] == ["dropped:leak"]
    found = read_query(tmp_path, place, contents[1])
    assert {key: found[key] for key in record("2-1")} == record("2-1") and found["step"] == 2
    # any gunzip reads a segment whole
    [segment] = (tmp_path / "rollouts").glob("*.gz")
    lines = [json.loads(line) for line in gzip.decompress(segment.read_bytes()).splitlines()]
    assert [line["kind"] for line in lines] == ["query", "query", "query", "contents"] * 3


@pytest.mark.parametrize("cut", [2, 20, 10_000])
def test_a_kill_while_writing_loses_only_the_step_that_did_not_count(tmp_path: Path, cut: int) -> None:
    write(tmp_path, range(1, 3))
    whole = uids(tmp_path)
    index, [segment] = tmp_path / "rollouts" / "index.jsonl", list((tmp_path / "rollouts").glob("*.gz"))
    before = index.stat().st_size
    write(tmp_path, range(3, 4))
    data = index.read_bytes()
    # killed while the index line, or after it nothing, or before it only members were written
    index.write_bytes(data[: max(before, len(data) - cut)])
    assert uids(tmp_path) == whole
    write(tmp_path, range(3, 5))
    assert uids(tmp_path) == whole | {3: ["3-0", "3-1"], 4: ["4-0", "4-1"]}
    assert gzip.decompress(segment.read_bytes()).count(b'"contents"') == 4


def test_resuming_neither_doubles_nor_loses(tmp_path: Path) -> None:
    write(tmp_path, range(1, 7), most=8)  # a segment a step, and only the newest stays
    write(tmp_path / "b", range(1, 7))
    for folder in (tmp_path, tmp_path / "b"):
        writer = RolloutWriter(folder, PLENTY)
        assert writer.truncate_after(4) == 2
        writer.write(5, [record("again")])
        writer.close()
        with pytest.raises(ValueError, match="has steps up to 5 already"):
            write(folder, range(5, 6))
    assert {step: len(records) for step, records in uids(tmp_path / "b").items()} == {1: 2, 2: 2, 3: 2, 4: 2, 5: 1}
    assert [summary["uid"] for summary in read_contents(tmp_path, read_index(tmp_path).steps[5])] == ["again"]


def test_the_oldest_are_deleted_and_their_steps_still_known(tmp_path: Path) -> None:
    noise = "".join(Random(0).choices(string.ascii_letters, k=2000))
    write(tmp_path, range(1, 41), most=40_000, text=noise)
    index = read_index(tmp_path)
    assert list(index.steps) == list(range(1, 41))
    files = list((tmp_path / "rollouts").glob("*.gz"))
    assert len(files) > 1 and sum(f.stat().st_size for f in files) <= 40_000
    assert len(read_contents(tmp_path, index.steps[40])) == 2
    with pytest.raises(ValueError, match=r"step 1 are not on the disk: .*00000001.jsonl.gz was deleted"):
        read_contents(tmp_path, index.steps[1])


def test_damage_is_named_and_the_rest_is_read(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    index, [segment] = read_index(tmp_path), list((tmp_path / "rollouts").glob("*.gz"))
    data = bytearray(segment.read_bytes())
    place = index.steps[2]
    data[place.offset : place.offset + place.size] = bytes(place.size)
    segment.write_bytes(data[:-4])
    assert len(read_contents(tmp_path, index.steps[1])) == 2
    for step in (2, 3):
        with pytest.raises(ValueError, match=f"step {step} cannot be read: .* is damaged or cut short"):
            read_contents(tmp_path, index.steps[step])
    write(tmp_path, range(4, 5))  # not after bytes that are missing, but in a segment of its own
    assert len(read_contents(tmp_path, read_index(tmp_path).steps[4])) == 2
    assert read_index(tmp_path / "nothing").steps == {}


def test_segments_whose_index_was_lost_are_not_deleted(tmp_path: Path) -> None:
    write(tmp_path, range(1, 4))
    (tmp_path / "rollouts" / "index.jsonl").write_bytes(b"")
    writer = RolloutWriter(tmp_path, PLENTY)
    assert "00000001.jsonl.gz is not in" in writer.notes[0]
    writer.write(4, [record("4")])
    writer.close()
    aside = tmp_path / "rollouts" / "00000001.jsonl.gz.unindexed"
    assert gzip.decompress(aside.read_bytes()).count(b'"contents"') == 3
    assert uids(tmp_path) == {4: ["4"]}
    again = RolloutWriter(tmp_path, PLENTY)
    assert again.truncate_after(0) == 1  # of steps that do not count nothing is kept
    again.close()
    assert [path.name for path in sorted((tmp_path / "rollouts").iterdir())] == [aside.name, "index.jsonl"]


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, "no space left")

    monkeypatch.setattr(rollout_writer.os, "fsync", full)
    writer = RolloutWriter(tmp_path, PLENTY)
    with pytest.raises(DiskFull, match="no room on the disk for the rollouts of step 1"):
        writer.write(1, [record("1")])
    assert read_index(tmp_path).steps == {}


# ------------------------------------------------------------------------------------------------ what a step gives

QUERY = Query("7", "47+38=?", "85", prompt_ids=(2, 52, 3))
TOKENIZER = CharacterTokenizer()


def rollouts(rewards: list[float], logprobs: bool = False) -> tuple[Rollout, ...]:
    ids = (*TOKENIZER.encode("75"), 1)
    completion = Completion(ids, "75", False, (-0.5, -0.25, -0.125) if logprobs else None)
    return tuple(
        Rollout(QUERY, k, completion, Grade(reward, "right" if reward else "wrong", "75"))
        for k, reward in enumerate(rewards)
    )


def step_record(experience: Experience) -> StepRecord:
    rows = [Row("7/0", "7", Kind.ORIGINAL, QUERY.prompt_ids, (55, 53, 1), 0.0, advantage=-0.5)]
    rows += [Row("7_reflected/0", "7_reflected", Kind.CONSTRUCTED, QUERY.prompt_ids, (55, 53, 1), 1.0, 0.75)]
    weights = torch.tensor([[1.0] * 6, [1.0, 1.0, 1.0, 0.5, 0.25, 2.0]])
    return StepRecord(3, {}, experience, rows, [UpdateResult(0.0, 0.0, 0.0, {}, weights)])


def test_all_rollouts_with_advantages_and_pairs_of_a_query() -> None:
    group = Group(QUERY, rollouts([0.0, 1.0], logprobs=True))
    pair = Pair(group.rollouts[0], group.rollouts[1], 0)
    made = Construction(pair, None, reconstruction="75", response_ids=(55, 53, 1), grade=Grade(1.0, "right", "75"))
    records = StepRecords(TOKENIZER, TapoConfig(n_pos=1, n_neg=1))
    [query] = records.make_query_records(step_record(Experience((group,), (made,))))
    assert (query["uid"], query["question"], query["zone"]) == ("7", "47+38=?", "eligible")
    first, second = query["rollouts"]
    assert (first["reward"], first["correct"], first["outcome"], first["advantage"]) == (0.0, False, "wrong", -0.5)
    assert second["advantage"] is None  # it gave no row
    assert (first["text"], first["length"], first["tokens"]) == ("75", 3, ["7", "5", ""])
    assert first["logprobs"] == [-0.5, -0.25, -0.125]
    [constructed] = query["pairs"]
    assert (constructed["wrong_index"], constructed["right_index"], constructed["advantage"]) == (0, 1, 0.75)
    assert (constructed["tokens"], constructed["weights"]) == (["7", "5", ""], [0.5, 0.25, 2.0])
    [grpo] = StepRecords(TOKENIZER, None).make_query_records(step_record(Experience((group,))))
    assert grpo["zone"] is None and grpo["pairs"] == []


def test_log_probabilities_are_kept_up_to_so_many_tokens_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of three rollouts of three tokens, with room for seven."""
    monkeypatch.setattr("nemo_tapo.tracking.step_records.MOST_SCORED_TOKENS", 7)
    records = StepRecords(TOKENIZER, None)
    for _ in range(2):  # each step anew
        step = step_record(Experience((Group(QUERY, rollouts([0.0, 1.0, 1.0], logprobs=True)),)))
        [query] = records.make_query_records(step)
        assert ["logprobs" in rollout for rollout in query["rollouts"]] == [True, True, False]


def test_weights_are_kept_up_to_so_many_tokens_a_step(monkeypatch: pytest.MonkeyPatch) -> None:
    """Of two constructions of three tokens, with room for five: of the other one the text is kept."""
    monkeypatch.setattr("nemo_tapo.tracking.step_records.MOST_SCORED_TOKENS", 5)
    group = Group(QUERY, rollouts([0.0, 1.0]))
    made = [
        Construction(
            Pair(*group.rollouts, k), None, reconstruction="75", response_ids=(55, 53, 1), grade=Grade(1.0, "right")
        )
        for k in range(2)
    ]
    first = step_record(Experience((group,), tuple(made)))
    other = Row("7_reflected/1", "7_reflected", Kind.CONSTRUCTED, QUERY.prompt_ids, (55, 53, 1), 1.0, 0.25)
    weights = torch.cat((first.results[0].token_weights, torch.ones(1, 6)))
    step = replace(first, rows=[*first.rows, other], results=[UpdateResult(0.0, 0.0, 0.0, {}, weights)])
    [query] = StepRecords(TOKENIZER, TapoConfig(n_pos=1, n_neg=1)).make_query_records(step)
    assert [len(pair["weights"]) for pair in query["pairs"]] == [3, 0]
    assert [pair["advantage"] for pair in query["pairs"]] == [0.75, 0.25]
    assert query["pairs"][1]["reconstruction"] == "75"


def test_pairs_of_the_step_before_are_kept_even_if_their_query_is_not_drawn_again() -> None:
    earlier = rollouts([0.0, 1.0])
    made = Construction(Pair(earlier[0], earlier[1], 0), None, response_ids=(55, 53, 1), grade=Grade(1.0, "right"))
    other = Group(replace(QUERY, uid="8"), rollouts([1.0, 1.0]))
    records = StepRecords(TOKENIZER, TapoConfig(n_pos=1, n_neg=1))
    step = step_record(Experience((other,), (made,)))
    queries = list(records.make_query_records(step))
    assert [(q["uid"], q.get("earlier", False), len(q["pairs"])) for q in queries] == [("8", False, 0), ("7", True, 1)]
    trajectories, left_out = records.make_trajectory_records(step)
    assert left_out == 0 and [(t["kind"], t["uid"]) for t in trajectories] == [
        ("skipped", "8"),
        ("pair", "7_reflected/0"),
    ]
    assert "wrong_index" not in trajectories[1]
    assert records.make_trajectory_records(step, limit=1) == (trajectories[:1], 1)


def test_a_limit_below_0_is_refused() -> None:
    with pytest.raises(ValueError, match="trajectories_per_step is -1"):
        SampleRecording(TOKENIZER, None, per_step=-1)


def test_a_resumed_stage_records_each_step_once(tmp_path: Path) -> None:
    settings = SampleRecording(TOKENIZER, TapoConfig(n_pos=1, n_neg=2), max_bytes=PLENTY)
    experience = Experience((Group(QUERY, rollouts([0.0, 1.0])),))
    with Progress(stream=StringIO()) as progress:
        for first, last in ((1, 3), (3, 4)):  # killed after step 3, of which no checkpoint was left
            recorder = RunRecorder(tmp_path, progress, "RL", 4, settings)
            recorder.resume(first, [])
            for step in range(first, last + 1):
                recorder.step(replace(step_record(experience), step=step))
            recorder.close()
    assert uids(tmp_path) == {step: ["7"] for step in (1, 2, 3, 4)}
    assert [row["step"] for row in read_trajectories(tmp_path).rows] == [1, 2, 3, 4]
