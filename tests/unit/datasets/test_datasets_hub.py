"""Hugging Face data sets: copied repositories, the hub's cache, and a hub on loopback that speaks its protocol."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.hub import explain_offline
from nemo_tapo.datasets.read import LoadedDataset, read_dataset

pytest.importorskip("datasets")
KEY = "task.mathematics.benchmarks.aime25"
COMMIT, OTHER = "a6ad95f611d72cf628a80b58bd0432ef6638f958", "0" * 40
PARTS = ("AIME2025-I", "AIME2025-II")
NOWHERE = "http://127.0.0.1:9"  # nobody listens there


def repository(folder: Path) -> Path:
    """Laid out like opencompass/AIME2025: two configurations of 15 rows, named in the README's front matter."""
    folder.mkdir(parents=True)
    configs = "".join(
        f"- config_name: {part}\n  data_files:\n  - split: test\n    path: {part.lower()}.jsonl\n" for part in PARTS
    )
    (folder / "README.md").write_text(f"---\nlicense: mit\nconfigs:\n{configs}---\n# AIME 2025\n")
    for part in PARTS:
        rows = [{"question": f"{part}, problem {i}: what is {i} + 1?", "answer": str(i + 1)} for i in range(15)]
        (folder / f"{part.lower()}.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    return folder


def aime(hub: Path | str, **settings: Any) -> LoadedDataset:
    chosen = {"configs": PARTS, "split": "test", "question": "question", **settings}
    return read_dataset(DatasetConfig(hub=str(hub), **chosen), "aime25", KEY)


def sentence(hub: Path | str, **settings: Any) -> str:
    with pytest.raises(ValueError) as caught:  # noqa: PT011 - the caller looks at the sentence
        aime(hub, **settings)
    assert "\n" not in str(caught.value)
    return str(caught.value)


def test_both_configurations_in_order(tmp_path: Path) -> None:
    found = aime(repository(tmp_path / "AIME2025"), rows=30, licence="MIT")
    assert [e.uid for e in found.rows] == [f"aime25-{i}" for i in range(30)]
    assert found.rows[14].question.startswith("AIME2025-I, problem 14")
    assert found.rows[15].question.startswith("AIME2025-II, problem 0")
    assert found.provenance.source == f"{tmp_path / 'AIME2025'}, AIME2025-I + AIME2025-II, test"


def test_one_configuration_alone_is_half_the_benchmark(tmp_path: Path) -> None:
    """Even without `rows`: the benchmark's size is known by its name."""
    folder = repository(tmp_path / "AIME2025")
    assert sentence(folder, configs=("AIME2025-I",)) == (
        f"{KEY}: {folder}, AIME2025-I, test has 15 rows, not 30. Left out of {KEY}.configs: AIME2025-II; a part of a "
        f"benchmark is not the benchmark. If that is meant, set {KEY}.rows=15."
    )
    assert len(aime(folder, configs=("AIME2025-I",), rows=15).rows) == 15


def test_none_or_wrong_ones_named(tmp_path: Path) -> None:
    folder = repository(tmp_path / "AIME2025")
    assert "has 2 configurations, AIME2025-I, AIME2025-II. Name" in sentence(folder, configs=())
    assert f"{KEY}.configs=[AIME2025-I,AIME2025-II]" in sentence(folder, configs=())
    assert "has no 'AIME2025-III', it has AIME2025-I, AIME2025-II" in sentence(folder, configs=("AIME2025-III",))
    assert "has no split 'train', it has test" in sentence(folder, split="train")
    assert "did you mean 'question'?" in sentence(folder, question="problem")


def test_one_unnamed_configuration_and_parquet(tmp_path: Path) -> None:
    """The layout of HuggingFaceH4/aime_2024 and MathArena/hmmt_feb_2025: data/train-00000-of-00001.parquet."""
    pa, pq = pytest.importorskip("pyarrow"), pytest.importorskip("pyarrow.parquet")
    folder = tmp_path / "hmmt_feb_2025"
    (folder / "data").mkdir(parents=True)
    rows = [{"problem_idx": i, "problem": f"Compute {i}/7.", "answer": f"\\frac{{{i}}}{{7}}"} for i in range(30)]
    pq.write_table(pa.Table.from_pylist(rows), folder / "data" / "train-00000-of-00001.parquet")
    found = aime(folder, configs=(), split="train", question="problem", uid="problem_idx")
    assert [(e.uid, e.answer) for e in found.rows] == [(str(i), f"\\frac{{{i}}}{{7}}") for i in range(30)]


def test_a_folder_that_is_no_data_set(tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "cannot be read as a data set" in sentence(tmp_path / "empty")


def test_the_commit_of_a_copied_folder_is_held_against_the_pinned_one(tmp_path: Path) -> None:
    """`hf download --local-dir` writes the commit as the first line of one .metadata file a downloaded file."""
    folder = repository(tmp_path / "AIME2025")
    assert "does not say which commit" in aime(folder, revision=COMMIT).provenance.notes[0]
    notes = folder / ".cache" / "huggingface" / "download"
    notes.mkdir(parents=True)
    (notes / "README.md.metadata").write_text(f"{COMMIT}\n5a0c\n1700000000.0\n")
    assert aime(folder, revision=COMMIT).provenance.notes == ()
    assert COMMIT in aime(folder).provenance.source
    assert f"holds commit {COMMIT}, {KEY}.revision wants {OTHER}" in sentence(folder, revision=OTHER)


@pytest.mark.parametrize(
    ("error", "said"),
    [
        (TimeoutError(), "(TimeoutError)"),
        (ValueError(" \n "), "(ValueError)"),
        (OSError("no route\nand more"), "(OSError: no route)"),
        (RuntimeError("x" * 999), f"(RuntimeError: {'x' * 200})"),
    ],
)
def test_a_failure_without_a_message_is_named_by_its_type(error: Exception, said: str) -> None:
    assert f"did not give it {said}. On a machine with internet" in explain_offline("a/b", COMMIT, KEY, error)


# ----------------------------------------------------------------------- the hub itself, in processes of their own


class Hub(BaseHTTPRequestHandler):
    """What huggingface_hub asks for: a revision's commit, its tree, and its files. `main` is COMMIT."""

    root: Path

    def do_HEAD(self) -> None:
        self.do_GET()

    def do_GET(self) -> None:
        path = self.path.split("?")[0]
        api, files = "/api/datasets/opencompass/AIME2025", "/datasets/opencompass/AIME2025/resolve/"
        names = sorted(p.name for p in self.root.iterdir())
        if path in (f"{api}/revision/main", f"{api}/revision/{COMMIT}"):
            siblings = [{"rfilename": name} for name in names]
            self.reply(json.dumps({"id": "opencompass/AIME2025", "sha": COMMIT, "siblings": siblings}).encode())
        elif path.startswith(f"{api}/tree/"):
            tree = [{"type": "file", "oid": "1" * 40, "size": (self.root / n).stat().st_size, "path": n} for n in names]
            self.reply(json.dumps(tree).encode())
        elif path.startswith(files):
            self.reply((self.root / path.rsplit("/", 1)[-1]).read_bytes())
        else:
            kind = "RevisionNotFound" if path.startswith(f"{api}/revision/") else "RepoNotFound"
            self.reply(b"{}", 404, kind)

    def reply(self, body: bytes, status: int = 200, error: str | None = None) -> None:
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        self.send_header("ETag", f'"{abs(hash(body)):040x}"')
        self.send_header("X-Repo-Commit", COMMIT)
        if error:
            self.send_header("X-Error-Code", error)
        self.end_headers()
        if self.command == "GET":
            self.wfile.write(body)

    def log_message(self, *args: Any) -> None:
        """Not on standard error."""


@pytest.fixture
def hub(tmp_path: Path) -> Iterator[str]:
    handler = type("ThisHub", (Hub,), {"root": repository(tmp_path / "served")})
    server = ThreadingHTTPServer(("127.0.0.1", 0), handler)
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    yield f"http://127.0.0.1:{server.server_address[1]}"
    server.shutdown()
    server.server_close()
    thread.join()


def elsewhere(home: Path, endpoint: str, *settings: dict[str, Any], offline: bool = False) -> list[str]:
    """Reads in a fresh process: huggingface_hub takes its endpoint and cache from the environment when imported."""
    program = """
import json, sys
from nemo_tapo.config.sections import DatasetConfig
from nemo_tapo.datasets.read import read_dataset
for settings in json.loads(sys.argv[1]):
    try:
        found = read_dataset(DatasetConfig(**settings), "aime25", "KEY")
        print(len(found.rows), found.provenance.source, *found.provenance.notes)
    except ValueError as error:
        print(error)
"""
    base = {"hub": "opencompass/AIME2025", "configs": PARTS, "split": "test", "question": "question"}
    environment = {**os.environ, "HF_HOME": str(home), "HF_ENDPOINT": endpoint, "HF_HUB_OFFLINE": str(int(offline))}
    argument = json.dumps([{**base, **each} for each in settings])
    done = subprocess.run(
        [sys.executable, "-c", program, argument], capture_output=True, text=True, env=environment, timeout=120
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_by_name_from_a_hub_then_from_its_cache(tmp_path: Path, hub: str) -> None:
    home = tmp_path / "home"
    main = {"revision": "main"}
    pinned, newest, absent, unknown, unpinned = elsewhere(
        home, hub, {"revision": COMMIT}, main, {"revision": "v9"}, {"hub": "no/such", **main}, {}
    )
    source = f"opencompass/AIME2025 at {COMMIT}, AIME2025-I + AIME2025-II, test"
    assert pinned == f"30 {source}"
    assert newest == f"30 {source} KEY.revision: 'main' is {COMMIT} today and may move; write that to pin it."
    assert absent == "KEY.revision: 'opencompass/AIME2025' has no revision 'v9'."
    assert unknown.endswith("has no data set 'no/such', or it is a private one (hf auth login).")
    assert unpinned.endswith(f"Write KEY.revision={COMMIT}, the newest today, or 'main'.")
    # the commit is on this machine now: no network is needed, and the branch is known as it was
    pinned, newest, other = elsewhere(
        home, NOWHERE, {"revision": COMMIT}, main, {"hub": "openai/gsm8k", **main}, offline=True
    )
    assert pinned == f"30 {source}"
    assert newest.startswith(f"30 {source} KEY: ")
    assert f"'main' was {COMMIT} when it was fetched" in newest
    assert "hf download openai/gsm8k --repo-type dataset --revision main --local-dir data/gsm8k" in other


def test_offline_says_what_to_bring_and_where_to_put_it(tmp_path: Path) -> None:
    """At once: an unreachable hub is asked one time."""
    pinned, unpinned = elsewhere(tmp_path, NOWHERE, {"revision": COMMIT}, {})
    assert "'opencompass/AIME2025' is not on this machine" in pinned
    assert (
        f"hf download opencompass/AIME2025 --repo-type dataset --revision {COMMIT} --local-dir data/AIME2025" in pinned
    )
    assert "KEY.hub=data/AIME2025" in pinned and "KEY.hub=null KEY.path=FILE" in pinned
    assert "KEY.revision is missing" in unpinned and "40 hexadecimal digits" in unpinned


def test_a_name_that_is_none() -> None:
    assert "is neither a folder nor the name of a data set (owner/name)" in sentence("AIME2025")
    assert "is neither a folder" in sentence("./nothing/here")
