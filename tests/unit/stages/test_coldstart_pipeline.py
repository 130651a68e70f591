"""`nemo-tapo coldstart` from the command line: stopped, killed, continued in every phase; bad endpoints, bad files."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from random import Random
from typing import Any

import pytest

from nemo_tapo.evaluation.model_files import get_model_identity
from nemo_tapo.runtime.scripted_runtime import SYNTHESIS_PATTERN
from nemo_tapo.stages.coldstart.base_samples import StoredGroups
from nemo_tapo.tasks import arithmetic
from tests.helpers.command import nemo_tapo
from tests.helpers.endpoint_servers import Answer, Body, completion, error, free_port, scripted

SAMPLES, CORRECTIONS, DATA = "samples/train.jsonl", "corrections/corrections.jsonl", "data.jsonl"


def arguments(output: Path, *more: str) -> list[str]:
    return [
        "coldstart", "runtime=scripted", "rollout.max_tokens=300", "tapo.max_tokens=600", "model.max_length=3000",
        "checkpoint.min_free_gib=0", "coldstart.queries=24", "coldstart.examples_per_step=8", "coldstart.epochs=1",
        "coldstart.sft_examples=16", "coldstart.ift_examples=16", f"output={output}", *more,
    ]  # fmt: skip


def call(output: Path, *more: str) -> tuple[int, str]:
    """In this process; (exit code, standard error)."""
    done = nemo_tapo(*arguments(output, *more))
    return done.returncode, done.stderr


def start(output: Path, *more: str) -> subprocess.Popen[str]:
    """In a process that can be killed."""
    return subprocess.Popen(
        [sys.executable, "-m", "nemo_tapo.cli", *arguments(output, *more)],
        stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def wait_for(path: Path, lines: int, process: subprocess.Popen[str]) -> None:
    deadline = time.monotonic() + 120
    while time.monotonic() < deadline and process.poll() is None:
        if path.exists() and path.read_bytes().count(b"\n") >= lines:
            return
        time.sleep(0.002)
    assert path.exists(), process.communicate()[1]


def statistics(folder: Path) -> dict[str, Any]:
    return dict(json.loads((folder / "statistics.json").read_text()))


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def server(slow: float = 0.0) -> Any:
    """A writer behind an endpoint: mostly the oracle's corrections, now and then nothing of use."""

    def script(number: int, body: Body) -> Answer:
        prompt = body["messages"][0]["content"]
        question, wrong, *_ = SYNTHESIS_PATTERN.fullmatch(prompt).groups()  # type: ignore[union-attr]
        fixed = arithmetic.write_correction(arithmetic.parse_question(question), wrong, 0)
        kind = Random(prompt).choice(("good", "good", "good", "no tags", "wrong", "too long"))
        if kind == "too long":
            return error(400, "This model's maximum context length is 10 tokens")
        assert fixed is not None
        text = {"good": f"<think>hm</think>{fixed.text}", "no tags": "Sorry.", "wrong": fixed.text.replace("{", "{9")}
        return Answer(**{**completion(text[kind]).__dict__, "stall": slow})

    return scripted(script)


def endpoint(url: str, concurrency: int = 4) -> list[str]:
    return [
        "coldstart.writer=endpoint", f"coldstart.endpoint.url={url}", f"coldstart.endpoint.concurrency={concurrency}",
        "coldstart.endpoint.attempts=2", "coldstart.endpoint.pause=0.01",
    ]  # fmt: skip


# ----------------------------------------------------------------------------- undisturbed


@pytest.mark.parametrize("writer", ["oracle", "model"])
def test_the_whole_stage(tmp_path: Path, writer: str) -> None:
    code, errors = call(tmp_path, f"coldstart.writer={writer}")
    assert code == 0, errors
    told, corrections = statistics(tmp_path), rows(tmp_path / CORRECTIONS)
    assert len(rows(tmp_path / SAMPLES)) == told["queries"]["sampled"] == 24
    assert len(corrections) == told["corrections"]["pairs"] == told["queries"]["right_and_wrong"]  # one a query
    assert sum(c["outcome"] == "accepted" for c in corrections) == told["corrections"]["accepted"]
    if writer == "model":  # the scripted policy answers badly now and then
        assert {"no_reconstruction", "refused_by_verifier"} & told["corrections"]["rejected"].keys()
    else:
        assert told["corrections"]["rejected"] == {}
    assert len(rows(tmp_path / DATA)) == told["examples"]["taken"] == len(rows(tmp_path / "examples.jsonl"))
    assert (tmp_path / "hf").is_dir()


def test_a_second_call_asks_nothing_and_changes_nothing(tmp_path: Path) -> None:
    call(tmp_path)
    before = {p: (tmp_path / p).read_bytes() for p in (SAMPLES, CORRECTIONS, DATA)}
    code, errors = call(tmp_path)
    assert code == 0 and "sampling" not in errors
    assert before == {p: (tmp_path / p).read_bytes() for p in before}


# ----------------------------------------------------------------------------- stopped and killed


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """An undisturbed run with a served writer."""
    folder = tmp_path_factory.mktemp("whole") / "run"
    with server() as served:
        code, errors = call(folder, *endpoint(served.url))
    assert code == 0, errors
    return folder


@pytest.mark.parametrize(
    ("file", "lines", "sign"),
    [(SAMPLES, 2, signal.SIGKILL), (CORRECTIONS, 3, signal.SIGKILL), (CORRECTIONS, 3, signal.SIGINT)],
)
def test_killed_or_stopped_it_ends_like_an_undisturbed_run(
    whole: Path, tmp_path: Path, file: str, lines: int, sign: signal.Signals
) -> None:
    folder = tmp_path / "run"
    with server(slow=0.05) as served:
        process = start(folder, *endpoint(served.url, concurrency=2))
        wait_for(folder / file, lines, process)
        process.send_signal(sign)
        _, errors = process.communicate(timeout=120)
        if sign == signal.SIGINT:
            assert process.returncode == 130 and "The same command goes on from there" in errors
        answered = len(rows_that_are_whole(folder / CORRECTIONS))
        asked_before = len(served.requests)
    with server() as served:
        code, errors = call(folder, *endpoint(served.url))
        assert code == 0, errors
        asked_after = len(served.requests)
    pairs = statistics(whole)["corrections"]["pairs"]
    assert asked_after == pairs - answered and asked_before - answered <= 2  # what was under way, nothing more
    for name in (DATA, "examples.jsonl"):
        assert (folder / name).read_bytes() == (whole / name).read_bytes()
    assert statistics(folder) == statistics(whole)


def rows_that_are_whole(path: Path) -> list[str]:
    return [line for line in path.read_text().splitlines(keepends=True) if line.endswith("\n")] if path.exists() else []


def test_killed_in_training_it_keeps_data_and_step(whole: Path, tmp_path: Path) -> None:
    """The weights end the same, and nothing is sampled or asked again."""
    longer = ["coldstart.epochs=25", "checkpoint.every=50"]
    undisturbed, folder = tmp_path / "undisturbed", tmp_path / "run"
    assert call(undisturbed, *longer)[0] == 0
    process = start(folder, *longer)
    wait_for(folder / "metrics.jsonl", 52, process)
    process.kill()
    process.communicate()
    written = (folder / DATA).stat().st_mtime_ns
    code, errors = call(folder, *longer)
    assert code == 0 and "sampling" not in errors
    assert (folder / DATA).stat().st_mtime_ns == written
    same = "hf/model.safetensors"
    assert (folder / same).read_bytes() == (undisturbed / same).read_bytes()


def test_a_lost_data_file_is_made_anew_from_what_is_on_disk(whole: Path, tmp_path: Path) -> None:
    """No model is asked: with a server that is there but refuses everything, the same bytes come out."""
    folder = tmp_path / "run"
    with server() as served:
        assert call(folder, *endpoint(served.url))[0] == 0
        (folder / DATA).unlink()
        (folder / "hf" / "model.safetensors").unlink()
        (folder / "hf").rename(folder / "old")
        before = len(served.requests)
        assert call(folder, *endpoint(served.url))[0] == 0
        assert len(served.requests) == before
    assert (folder / DATA).read_bytes() == (whole / DATA).read_bytes()


# ----------------------------------------------------------------------------- rounds


def test_a_second_round_starts_from_the_model_of_the_first(tmp_path: Path) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    assert call(one)[0] == 0
    code, errors = call(two, "coldstart.rounds=2")
    assert code == 0, errors
    first, weights = two / "round-1", "hf/model.safetensors"
    assert (first / weights).read_bytes() == (one / weights).read_bytes() != (two / weights).read_bytes()
    identity = [json.loads((f / "samples" / "settings.json").read_text())["model"] for f in (one, first, two)]
    assert identity[0] == identity[1] == get_model_identity(Path("assets/tiny-base"))
    assert identity[2] == get_model_identity(first / "hf")
    for folder in (first, two):  # each round samples and corrects anew
        assert len(rows(folder / SAMPLES)) == 24 and rows(folder / CORRECTIONS)
    code, errors = call(two, "coldstart.rounds=2")
    assert code == 0 and "sampling" not in errors
    code, errors = call(two)
    assert code == 2 and "model" in errors  # the folder's data is of the second round


def test_killed_in_the_second_round_it_ends_like_an_undisturbed_run(tmp_path: Path) -> None:
    with server() as served:
        assert call(tmp_path / "whole", "coldstart.rounds=2", *endpoint(served.url))[0] == 0
    folder = tmp_path / "run"
    with server(slow=0.05) as served:
        process = start(folder, "coldstart.rounds=2", *endpoint(served.url, concurrency=2))
        wait_for(folder / CORRECTIONS, 3, process)
        process.kill()
        process.communicate()
    assert not (folder / "hf").exists()
    with server() as served:
        code, errors = call(folder, "coldstart.rounds=2", *endpoint(served.url))
    assert code == 0, errors
    for name in (DATA, "hf/model.safetensors", "round-1/hf/model.safetensors"):
        assert (folder / name).read_bytes() == (tmp_path / "whole" / name).read_bytes()


# ----------------------------------------------------------------------------- bad endpoints, bad files


def test_a_served_writer_whose_outcomes_are_all_counted(whole: Path) -> None:
    told = statistics(whole)["corrections"]
    assert {"no_analysis", "refused_by_verifier", "refused_by_server"} <= told["rejected"].keys()
    assert told["pairs"] == told["accepted"] + sum(told["rejected"].values())
    assert all("<think>" not in e["messages"][1]["content"] for e in rows(whole / "examples.jsonl"))


def test_an_endpoint_that_is_down_is_told_before_anything_is_sampled(tmp_path: Path) -> None:
    url = f"http://127.0.0.1:{free_port()}/v1"
    code, errors = call(tmp_path, *endpoint(url))
    assert code == 3 and f"nothing usable at {url}" in errors and "coldstart.endpoint.url" in errors
    assert not (tmp_path / SAMPLES).exists()


def test_a_missing_key_is_told_before_anything_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("NO_SUCH_KEY", raising=False)
    code, errors = call(tmp_path, *endpoint("http://127.0.0.1:9/v1"), "coldstart.endpoint.key_env=NO_SUCH_KEY")
    assert code == 2 and "NO_SUCH_KEY" in errors and "starting engines" not in errors


def test_a_server_that_dies_under_way_keeps_the_answers(whole: Path, tmp_path: Path) -> None:
    with server() as good:
        alive = 4

        def dies(number: int, body: Body) -> Answer:
            return good.script(number, body) if number < alive else Answer(hang_up=True)

        with scripted(dies) as served:
            code, errors = call(tmp_path, *endpoint(served.url, concurrency=1))
        assert code == 3 and "goes on from there" in errors
        kept = len(rows(tmp_path / CORRECTIONS))
        assert kept == alive and not (tmp_path / DATA).exists()
        assert call(tmp_path, *endpoint(good.url))[0] == 0
        assert len(good.requests) == statistics(whole)["corrections"]["pairs"] - kept
    assert (tmp_path / DATA).read_bytes() == (whole / DATA).read_bytes()


def test_a_server_that_refuses_everything_ends_the_run(tmp_path: Path) -> None:
    with scripted([error(422, "no")]) as served:
        code, errors = call(tmp_path, *endpoint(served.url, concurrency=1))
        assert code == 3 and "refuses the request: 422" in errors and len(served.requests) == 10


def test_all_corrections_refused_is_a_sentence_and_the_samples_stay(tmp_path: Path) -> None:
    with scripted([completion("<analysis>a</analysis><reconstruction>\\boxed{-1}</reconstruction>")]) as served:
        code, errors = call(tmp_path, *endpoint(served.url))
    assert code == 2 and "corrections was accepted (" in errors and "error_not_kept" in errors
    assert not (tmp_path / DATA).exists() and len(rows(tmp_path / SAMPLES)) == 24
    code, errors = call(tmp_path, "coldstart.writer=oracle")
    assert code == 2 and "coldstart.writer" in errors and "remove that" in errors  # the answers are another writer's


def test_no_pair_at_all_is_a_sentence(tmp_path: Path) -> None:
    code, errors = call(tmp_path, "coldstart.samples_per_query=1")
    assert code == 2 and "no query was answered both right and wrong" in errors and SAMPLES in errors
    asked = ["coldstart.samples_per_query=1", "coldstart.ift_examples=0", "coldstart.corrective_share=0"]
    code, errors = call(tmp_path, *asked)  # right responses alone were asked for
    assert code == 0, errors


def test_other_settings_are_refused_with_their_names(tmp_path: Path) -> None:
    call(tmp_path)
    (tmp_path / "hf").rename(tmp_path / "old")
    code, errors = call(tmp_path, "coldstart.ift_examples=9", "seed=1")
    assert code == 2 and "coldstart.ift_examples: 16 -> 9; seed: 0 -> 1" in errors
    (tmp_path / DATA).unlink()
    code, errors = call(tmp_path, "seed=1")
    assert code == 2 and "samples" in errors and "seed: 0 -> 1" in errors
    shutil.rmtree(tmp_path / "checkpoints")  # which trained on the other mix
    code, errors = call(tmp_path, "coldstart.ift_examples=9")  # another mix of the same answers
    assert code == 0 and statistics(tmp_path)["examples"]["synthesis"]["taken"] == 9


def test_a_finished_cold_start_is_not_taken_for_another(tmp_path: Path) -> None:
    assert call(tmp_path)[0] == 0
    weights = (tmp_path / "hf" / "model.safetensors").read_bytes()
    code, errors = call(tmp_path, "coldstart.ift_examples=9", "coldstart.writer=model")
    assert code == 2 and "coldstart.ift_examples: 16 -> 9" in errors and f"that file and {tmp_path / 'hf'}" in errors
    code, errors = call(tmp_path, "coldstart.epochs=2", "coldstart.optimizer.lr=1e-4")
    assert code == 2 and "epochs: 1.0 -> 2.0" in errors and "optimizer.lr: " in errors
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() == weights
    assert call(tmp_path, "coldstart.max_length=null")[0] == 0  # the same settings
    for name in ("hf", "checkpoints"):  # what the sentence says
        shutil.rmtree(tmp_path / name)
    assert call(tmp_path, "coldstart.epochs=2", "coldstart.optimizer.lr=1e-4")[0] == 0
    assert (tmp_path / "hf" / "model.safetensors").read_bytes() != weights


def test_a_query_that_is_sampled_again_is_corrected_again(whole: Path, tmp_path: Path) -> None:
    """An engine without seeds answers otherwise: what was written on the old answer is passed over."""
    with server() as served:
        call(tmp_path, *endpoint(served.url))
        (tmp_path / DATA).unlink()
        shutil.rmtree(tmp_path / "hf")
        shutil.rmtree(tmp_path / "checkpoints")
        asked = rows(tmp_path / CORRECTIONS)[0]
        sampled = rows(tmp_path / SAMPLES)
        [group] = [row for row in sampled if row["uid"] == asked["wrong"].rsplit("/", 1)[0]]
        for rollout in group["rollouts"]:
            rollout["text"] += "\n" * (rollout["reward"] > 0)
        del group["crc32"]
        (tmp_path / SAMPLES).write_text("".join(json.dumps(row) + "\n" for row in sampled))
        before = rows(tmp_path / CORRECTIONS)
        code, errors = call(tmp_path, *endpoint(served.url))
        assert code == 0, errors
    new = {row["uid"]: row for row in rows(tmp_path / CORRECTIONS)[len(before) :]}
    assert new.pop(asked["uid"])["texts"] != asked["texts"]
    assert not new.keys() & {row["uid"] for row in before}  # besides, only what the server had failed to answer


@pytest.mark.parametrize("row", ['{"uid": "a", "rollouts": 3}', '{"uid": ["a"], "rollouts": []}', "[1]"])
def test_a_line_of_other_fields_is_named(tmp_path: Path, row: str) -> None:
    path = tmp_path / "train.jsonl"
    for line in (row, '{"uid": "a", "rollouts": [{}, {}]}'):
        path.write_text(line + "\n")
        with pytest.raises(ValueError, match="line 1 is no query with its 2 responses; remove that line"):
            StoredGroups(path, [], 2)


def test_somebodys_own_data_is_trained_on(whole: Path, tmp_path: Path) -> None:
    (tmp_path / DATA).write_bytes((whole / DATA).read_bytes())
    code, errors = call(tmp_path)
    assert code == 0 and "sampling" not in errors and (tmp_path / "hf").is_dir()


@pytest.mark.parametrize(("file", "word"), [(SAMPLES, "24|no query with its 8 responses"), (CORRECTIONS, "correction")])
def test_a_damaged_line_costs_that_line_alone(whole: Path, tmp_path: Path, file: str, word: str) -> None:
    with server() as served:
        call(tmp_path, *endpoint(served.url))
        (tmp_path / DATA).unlink()
        (tmp_path / "hf").rename(tmp_path / "old")
        lines = (tmp_path / file).read_text().splitlines(keepends=True)
        (tmp_path / file).write_text("".join([*lines[:2], lines[2][:40] + "\n", *lines[3:]]))
        code, errors = call(tmp_path, *endpoint(served.url))
        assert code == 2 and f"{file}: line 3 is no" in errors and "remove that line" in errors
        (tmp_path / file).write_text("".join([*lines[:2], *lines[3:]]))
        before = len(served.requests)
        code, errors = call(tmp_path, *endpoint(served.url))
        assert code == 0 and len(served.requests) - before == (file == CORRECTIONS)
    assert (tmp_path / DATA).read_bytes() == (whole / DATA).read_bytes()


def test_parts_without_a_cold_start_do_not_ask_for_a_writer(tmp_path: Path) -> None:
    """`run` without it does not read the section at all."""
    from nemo_tapo.cli import check_coldstart
    from nemo_tapo.config.run_config import validate

    served = {"writer": "endpoint"}
    check_coldstart(validate({"coldstart": served, "parts": ["train"]}), "run")
    with pytest.raises(ValueError, match=r"coldstart\.endpoint\.url"):
        check_coldstart(validate({"coldstart": served}), "run")
