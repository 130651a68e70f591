"""What the watch page is told: runs found and followed, pieces read, filters, damage, and who may ask."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import urllib.request
from pathlib import Path
from random import Random
from typing import Any

import pytest
from werkzeug.test import Client

from nemo_tapo.tracking.records import TrajectoryWriter, make_skipped_record
from nemo_tapo.tracking.rollout_writer import RolloutWriter
from nemo_tapo.types import Group, Query
from nemo_tapo.utils.run_folder import lock_folder
from nemo_tapo.watch import find_runs as find_runs_module
from nemo_tapo.watch import query_search
from nemo_tapo.watch.find_runs import find_runs
from nemo_tapo.watch.line_follower import LineFollower
from nemo_tapo.watch.serve import open_socket
from nemo_tapo.watch.web_app import WatchApp
from tests.helpers import report_samples
from tests.helpers.command import nemo_tapo
from tests.helpers.watch_samples import make_query, write_watched_run


class Page:
    """Asks as the page does."""

    def __init__(self, *folders: Path) -> None:
        self.client = Client(WatchApp(folders))

    def get(self, path: str, **parameters: object) -> Any:
        response = self.client.get(f"/api/{path}", query_string={k: str(v) for k, v in parameters.items()})
        assert response.status_code == 200, response.text
        return response.json

    def fail(self, path: str, **parameters: object) -> str:
        response = self.client.get(f"/api/{path}", query_string={k: str(v) for k, v in parameters.items()})
        assert response.status_code in (400, 404), response.status_code
        return str(response.json["error"])  # type: ignore[index]

    def search(self, **parameters: object) -> list[Any]:
        """Every piece of a search."""
        found, cursor = [], ""
        while True:
            answer = self.get("queries", cursor=cursor, **parameters)
            found += answer["queries"]
            cursor = answer["cursor"]
            if not cursor:
                return found


@pytest.fixture
def run(tmp_path: Path) -> Path:
    return write_watched_run(tmp_path / "runs" / "tapo", steps=5)


# ------------------------------------------------------------------------------------------------ runs


def test_runs_are_found_below_a_folder_while_they_begin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    page = Page(tmp_path)
    assert [run["name"] for run in page.get("runs")["runs"]] == [tmp_path.name]  # empty, but it is what was asked for
    for name in ("sweep/tapo/seed-0", "sweep/grpo/seed-0", "sweep/grpo/seed-0/coldstart", "sweep/hf", "other"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "metrics.jsonl").write_text('{"step": 1, "loss": 1}\n')
    runs = {run["name"]: run for run in page.get("runs")["runs"]}
    assert list(runs) == ["other", "sweep/grpo/seed-0", "sweep/grpo/seed-0/coldstart", "sweep/tapo/seed-0"]
    assert runs["other"]["state"] == "running"  # it has just written
    assert find_runs([tmp_path / "other"]) == ({"other": tmp_path / "other"}, "")
    monkeypatch.setattr(find_runs_module, "MOST_RUNS", 3)
    assert page.get("runs")["notes"] == ["3 of 4 runs are shown: name fewer."]
    monkeypatch.setattr(find_runs_module, "MOST_FOLDERS", 2)
    assert find_runs([tmp_path])[1].startswith("Only 2 folders were searched")


def test_the_state_of_a_run(run: Path) -> None:
    page = Page(run)
    os.utime(run / "metrics.jsonl", (1, 1))
    [told] = page.get("runs")["runs"]
    assert (told["state"], told["step"], told["planned"], told["notes"]) == ("stopped", 5, 15, [])
    with lock_folder(run):
        assert page.get("runs")["runs"][0]["state"] == "running"
        assert nemo_tapo("show", str(run)).returncode == 0  # looking at the lock did not take it
    (run / "config.yaml").write_text("steps: 5\n")
    assert page.get("runs")["runs"][0]["state"] == "finished"
    (run / "config.yaml").write_text("steps: [5\n")
    assert page.get("runs")["runs"][0]["notes"] == ["config.yaml cannot be read, so the settings are not shown."]


def test_only_what_was_added_is_read(tmp_path: Path) -> None:
    path = tmp_path / "x.jsonl"
    follower = LineFollower(path)
    assert not follower.restarted() and list(follower.read_new_lines()) == []
    path.write_bytes(b'{"a": 1}\n{"a"')
    assert not follower.restarted() and list(follower.read_new_lines()) == [(0, b'{"a": 1}')]
    assert follower.unfinished
    with path.open("ab") as file:
        file.write(b": 2}\n")
    assert not follower.restarted() and list(follower.read_new_lines()) == [(9, b'{"a": 2}')]
    (tmp_path / "new").write_bytes(b'{"a": 1}\n' * 5)
    os.replace(tmp_path / "new", path)  # as a resumed run does
    assert follower.restarted() and len(list(follower.read_new_lines())) == 5
    path.unlink()
    assert follower.restarted()


def test_series_grow_and_begin_again_when_a_run_is_resumed(run: Path) -> None:
    page = Page(run)
    first = page.get("series", run="tapo")
    assert first["steps"] == [1, 2, 3, 4, 5] and len(first["columns"]["loss"]) == 5
    with (run / "metrics.jsonl").open("a") as file:
        file.write('{"step": 6, "loss": 0.5, "entropy": 0.25}\n')
    added = page.get("series", run="tapo", begin=5, version=first["version"])
    assert (added["begin"], added["steps"], added["columns"]["loss"]) == (5, [6], [0.5])
    assert added["columns"]["entropy"] == [0.25] and added["columns"]["reward/mean"] == [None]
    (run / "new").write_text('{"step": 1, "loss": 2.0}\n')
    os.replace(run / "new", run / "metrics.jsonl")
    again = page.get("series", run="tapo", begin=6, version=first["version"])
    assert (again["begin"], again["steps"], again["columns"]) == (0, [1], {"loss": [2.0]})


# ------------------------------------------------------------------------------------------------ samples


def test_from_step_to_query_to_every_rollout(run: Path) -> None:
    page = Page(run)
    assert page.get("steps", run="tapo")["steps"] == [1, 2, 3, 4, 5]
    queries = page.search(run="tapo", step=4)
    assert [query["index"] for query in queries] == list(range(8))
    record = page.get("query", run="tapo", step=4, index=3)
    assert record["uid"] == queries[3]["uid"] == "train-35"
    assert [rollout["reward"] for rollout in record["rollouts"]] == queries[3]["rewards"]
    assert "step 4 has 8 recorded queries, so there is no number 8" in page.fail("query", run="tapo", step=4, index=8)
    assert "nothing was recorded of step 9" in page.fail("query", run="tapo", step=9, index=0)


@pytest.mark.parametrize(("steps", "limit"), [(None, 3), (2, 50)])
def test_filters_and_pieces(run: Path, steps: int | None, limit: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(query_search, "SECONDS", -1.0)  # time is always up: the smallest pieces
    page = Page(run)
    given = {} if steps is None else {"step": steps}
    everything = page.search(run="tapo", limit=limit, **given)
    order = [(query["step"], query["index"]) for query in everything]
    assert order == [(s, i) for s in ([5, 4, 3, 2, 1] if steps is None else [steps]) for i in range(8)]

    def ask(**wanted: str) -> set[str]:
        return {query["uid"] for query in page.search(run="tapo", limit=limit, **given, **wanted)}

    def expect(fits: Any) -> set[str]:
        return {query["uid"] for query in everything if fits(query)}

    assert ask(group="all_wrong") == expect(lambda q: not any(q["correct"]))
    assert ask(group="mixed", verdict="wrong") == expect(lambda q: any(q["correct"]) and not all(q["correct"]))
    assert ask(outcome="skipped:mastered") == expect(lambda q: q["zone"] == "mastered")
    assert ask(outcome="dropped") == expect(lambda q: any(o.startswith("dropped:") for o in q["outcomes"]))
    assert ask(outcome="corrected") == expect(lambda q: "corrected" in q["outcomes"])
    eligible = expect(lambda q: q["zone"] == "eligible")
    assert ask(text="FIRST STEP the carry") <= eligible and ask(text="first step the carry")
    assert ask(text="no such words") == set()
    assert ask(text=next(iter(eligible))) == {next(iter(eligible))}


def test_a_run_with_trajectories_alone(tmp_path: Path) -> None:
    query = Query("8", "1+1=?", "2")
    answers = tuple(report_samples.rollout(query, k, f"answer {k}", float(k == 2)) for k in range(8))
    writer = TrajectoryWriter(tmp_path / "old")
    writer.write(1, [make_skipped_record(Group(query, answers), "beyond")])
    writer.write(3, [report_samples.example_record(dropped="leak")])
    writer.write(7, [report_samples.example_record()], left_out=1)
    writer.close()
    page = Page(tmp_path / "old")
    assert page.get("steps", run="old")["steps"] == [1, 3, 7]
    answer = page.get("queries", run="old", step=7)
    assert answer["notes"] == [
        "Of step 7 only trajectories.jsonl is there: without the texts of all rollouts, "
        "and 1 more records were over the limit a step."
    ]
    record = page.get("query", run="old", step=7, index=0)
    assert record["uid"] == "7" and record["pairs"][0]["wrong"] == "47+38=75\n\\boxed{75}"
    [skipped] = page.search(run="old", outcome="skipped")
    rollouts = page.get("query", run="old", step=skipped["step"], index=skipped["index"])["rollouts"]
    assert [rollout["text"] for rollout in rollouts] == ["answer 0", None, "answer 2", *[None] * 5]
    assert [query["step"] for query in page.search(run="old", outcome="dropped:leak")] == [3]


def test_damage_is_named_and_the_rest_is_shown(run: Path) -> None:
    with (run / "metrics.jsonl").open("ab") as file:
        file.write(b'\xff\xfe{"step"\n[1]\n{"step": 6, "loss": 0.1}\n{"st')
    (run / "trajectories.jsonl").write_bytes(b"\x00\x00\n")
    (run / "evaluation.json").write_text("{")
    [segment] = (run / "rollouts").glob("*.gz")
    data = segment.read_bytes()
    segment.write_bytes(data[: len(data) // 2] + bytes(len(data) - len(data) // 2))
    with (run / "rollouts" / "index.jsonl").open("ab") as file:
        file.write(b'{"step": "six"}\n{"step": 6, "se')
    page = Page(run)
    [told] = page.get("runs")["runs"]
    assert told["step"] == 6
    assert told["notes"] == [
        "metrics.jsonl: 2 lines are damaged and left out.",
        "metrics.jsonl: the last line is half-written and left out so far.",
        "rollouts/index.jsonl: one line is damaged and left out, so steps are missing.",
        "trajectories.jsonl: one line is damaged and left out.",
    ]
    assert "evaluation.json cannot be shown" in page.get("run", run="tapo")["notes"][-1]
    assert len(page.search(run="tapo")) >= 8
    assert page.get("queries", run="tapo", step=5)["notes"] == [
        f"the rollouts of step 5 cannot be read: {segment} is damaged or cut short."
    ]
    shutil.rmtree(run)  # deleted while it is watched
    [gone] = page.get("runs")["runs"]
    assert (gone["state"], gone["rows"]) == ("not started", 0)
    assert "nothing was recorded" in page.fail("query", run="tapo", step=1, index=0)


def test_a_resumed_run_is_read_again(run: Path) -> None:
    page = Page(run)
    before = page.get("steps", run="tapo")
    writer = RolloutWriter(run, 2**30)
    writer.truncate_after(2)
    writer.write(3, [make_query("other", Random(0))])
    writer.close()
    after = page.get("steps", run="tapo")
    assert after["steps"] == [1, 2, 3] and after["version"] > before["version"]
    assert [query["uid"] for query in page.search(run="tapo", step=3)] == ["other"]


# ------------------------------------------------------------------------------------------------ who may ask


@pytest.mark.parametrize("host", ["evil.example", "127.0.0.1.evil.example:6166", "", "localhost@evil.example"])
def test_a_name_that_is_not_this_machines_is_refused(run: Path, host: str) -> None:
    client = Page(run).client
    assert client.get("/api/runs", headers={"Host": host}).status_code == 400
    assert client.get("/", headers={"Host": host}).status_code == 400
    for own in ("localhost:9000", "127.0.0.1:6166"):
        assert client.get("/api/runs", headers={"Host": own}).status_code == 200


def test_other_sites_other_methods_and_other_paths_are_refused(run: Path) -> None:
    client = Page(run).client
    assert client.get("/api/runs", headers={"Sec-Fetch-Site": "cross-site"}).status_code == 400
    assert client.post("/api/runs").status_code == 400
    for path in ("/assets/../web_app.py", "/assets/%2e%2e/serve.py", "/etc/passwd", "/api/nothing", "/watch.py"):
        assert client.get(path).status_code == 404, path
    for parameters in ({"run": "../tapo"}, {"run": "tapo", "step": "x", "index": 0}, {"run": ""}):
        assert Page(run).fail("query", **parameters)
    assert "must be one of mixed" in Page(run).fail("queries", run="tapo", group="x")
    assert "must be <step>:<index>" in Page(run).fail("queries", run="tapo", cursor="x")


def test_every_answer_forbids_the_network(run: Path) -> None:
    client = Page(run).client
    assets = ["/", *(f"/assets/{name}" for name in ("main.js", "watch.css", "icon.svg"))]
    for path in (*assets, "/api/runs", "/api/nothing"):
        headers = client.get(path).headers
        assert headers["Content-Security-Policy"].startswith("default-src 'none'; script-src 'self';")
        assert headers["X-Content-Type-Options"] == "nosniff" and "Access-Control-Allow-Origin" not in headers
    for path in assets:
        text = client.get(path).text.replace("http://www.w3.org/2000/svg", "")
        assert "://" not in text and "@import" not in text and "innerHTML" not in text, path


def test_only_the_loopback_is_listened_on() -> None:
    with open_socket(None, 0) as first:
        address, port = first.getsockname()
        assert address == "127.0.0.1"
        with open_socket(None, port) as second:  # the default port is taken: another one is found
            assert second.getsockname()[1] != port
        with pytest.raises(ValueError, match=f"--port {port} cannot be used"):
            open_socket(port, port)
    with pytest.raises(ValueError, match="--port 99999 cannot be used"):
        open_socket(99999, 0)


def test_bad_input_is_one_sentence(tmp_path: Path) -> None:
    done = nemo_tapo("watch", str(tmp_path / "absent"))
    assert done.returncode == 2 and "no folder" in done.stderr


def test_the_command_serves_until_it_is_interrupted(run: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    command = [sys.executable, "-m", "nemo_tapo.cli", "watch", str(run), "--port", str(port)]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
    assert process.stdout is not None
    assert f"http://127.0.0.1:{port}/" in process.stdout.readline()
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/api/runs") as answer:
        assert json.load(answer)["runs"][0]["name"] == "tapo"
    process.send_signal(2)
    _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")
