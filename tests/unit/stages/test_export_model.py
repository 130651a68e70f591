"""`nemo-tapo export`: what is written, what is checked, what is refused, and the upload to a server on loopback."""

from __future__ import annotations

import asyncio
import base64
import json
import os
import re
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, ClassVar

import pytest
import torch
import yaml
from safetensors.torch import load_file, save_file

from nemo_tapo.checkpoint import save_checkpoint
from nemo_tapo.config.run_config import RunConfig, to_yaml
from nemo_tapo.evaluation import results
from nemo_tapo.utils.code_version import describe_code, record_code
from tests.helpers.command import nemo_tapo

ROOT = Path(__file__).parents[3]
MEASURED = {"pass@1": 0.5, "pass@1/interval95": [0.4, 0.6], "first@1": 0.5, "first@1/interval95": [0.4, 0.6]}


@pytest.fixture
def run(tmp_path: Path) -> Path:
    """The folder of a finished run of the tiny model: what the stages leave, in fp32 as the trainer writes it."""
    folder = tmp_path / "run"
    (folder / "hf").mkdir(parents=True)
    base = ROOT / "assets" / "tiny-base"
    for file in base.iterdir():
        shutil.copyfile(file, folder / "hf" / file.name)
    weights = {name: tensor.float() for name, tensor in load_file(base / "model.safetensors").items()}
    save_file(weights, folder / "hf" / "model.safetensors", metadata={"format": "pt"})
    (folder / "hf" / "README.md").write_text("---\nlicense: mit\n---\n# the base\n")

    async def write(path: Path) -> None:
        shutil.copyfile(folder / "hf" / "model.safetensors", path / "model.safetensors")

    asyncio.run(save_checkpoint(folder / "checkpoints", {"step": 4, "fingerprint": {"steps": 4}}, write, keep=1))
    cfg = RunConfig.model_validate({"steps": 4, "output": folder, "model": {"path": base}})
    (folder / "config.yaml").write_text(to_yaml(cfg))
    sets = {
        "train": {"source": "owner/problems at 12ab, main, train", "licence": "MIT", "rows": 9, "usable": 8},
        "own": {"source": f"{folder}/mine.jsonl", "licence": None, "rows": 3, "usable": 3},
    }
    (folder / "data.json").write_text(json.dumps(sets))
    results.store_result(folder, "after", {"model": str(folder / "hf"), "benchmarks": {"aime24": MEASURED}})
    record_code(folder, "train")
    return folder


def export(run: Path, to: Path, *more: str) -> Any:
    return nemo_tapo("export", str(run), "--to", str(to), *more)


def test_the_folder_is_the_model_and_its_card_says_what_the_run_knows(run: Path, tmp_path: Path) -> None:
    done = export(run, tmp_path / "out")
    assert done.returncode == 0, done.stderr
    assert "853,376 parameters" in done.stdout
    out = tmp_path / "out"
    assert {p.name for p in out.iterdir()} == {p.name for p in (run / "hf").iterdir()}
    assert (
        json.loads((out / "config.json").read_text())["dtype"] == "float32"
    )  # loaders follow it; the base is bfloat16
    assert (out / "model.safetensors").read_bytes() == (run / "hf" / "model.safetensors").read_bytes()
    card = (out / "README.md").read_text()
    _, head, body = card.split("---\n", 2)
    assert yaml.safe_load(head) == {
        "library_name": "transformers", "pipeline_tag": "text-generation", "license": "mit",
        "datasets": ["owner/problems"], "tags": ["nemo-tapo", "reinforcement-learning"],
    }  # fmt: skip
    for said in (
        "`tiny-base` trained with TAPO",
        "The base model's licence is mit.",
        "| train | owner/problems at 12ab, main, train | MIT | 9 | 8 |",
        "| own | mine.jsonl | not stated | 3 | 3 |",
        "| after | 50.00 (40.00 to 60.00) |",
        "| updates | 4 |",
        "clip_low: 0.2",
        f"commit {describe_code()['commit']}",
    ):
        assert said in body, said
    assert str(tmp_path) not in card and str(ROOT) not in card


def test_base_and_licence_can_be_named(run: Path, tmp_path: Path) -> None:
    assert export(run, tmp_path / "out", "--base", "Qwen/Qwen3-0.6B", "--licence", "apache-2.0").returncode == 0
    head = yaml.safe_load((tmp_path / "out" / "README.md").read_text().split("---\n")[1])
    assert (head["base_model"], head["license"]) == ("Qwen/Qwen3-0.6B", "apache-2.0")


def damage(folder: Path, how: str) -> None:
    weights = folder / "hf" / "model.safetensors"
    tensors = load_file(weights)
    name = "model.layers.1.mlp.up_proj.weight"
    match how:
        case "not finished":
            shutil.rmtree(folder / "hf")
        case "one bit":
            tensors[name].view(torch.int32)[0, 0] ^= 1
            save_file(tensors, weights)
        case "not a number":
            tensors[name][0, 0] = torch.nan
            save_file(tensors, weights)
        case "a tensor less":
            del tensors[name]
            save_file(tensors, weights)
        case "cut off":
            weights.write_bytes(weights.read_bytes()[:-100])
        case "checkpoint":
            with (folder / "checkpoints" / "step-000004" / "model.safetensors").open("ab") as file:
                file.write(b"x")
        case "no template":
            (folder / "hf" / "chat_template.jinja").unlink()
        case "no config":
            (folder / "config.yaml").unlink()


@pytest.mark.parametrize(
    ("how", "sentence"),
    [
        ("not finished", "is not at its end: it has checkpoints up to step-000004 and no model yet"),
        ("one bit", r"differs from .*step-000004 in 'model.layers.1.mlp.up_proj.weight'"),
        ("not a number", "'model.layers.1.mlp.up_proj.weight' has values that are not finite"),
        ("a tensor less", "'model.layers.1.mlp.up_proj.weight' is in one of them only"),
        ("cut off", "model.safetensors is damaged"),
        ("checkpoint", r"last checkpoint .* is damaged \(model.safetensors has .* bytes instead of"),
        ("no template", "its tokenizer has no chat template"),
        ("no config", "is no folder of a run: it has no config.yaml"),
    ],
)
def test_half_finished_and_damaged_runs_are_a_sentence(run: Path, tmp_path: Path, how: str, sentence: str) -> None:
    damage(run, how)
    done = export(run, tmp_path / "out")
    assert done.returncode == 2 and re.search(sentence, done.stderr), done.stderr
    assert "Traceback" not in done.stderr
    assert not (tmp_path / "out").exists() and not (tmp_path / "tmp-out").exists()


def test_nothing_is_overwritten(run: Path, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "mine").touch()
    done = export(run, tmp_path / "out")
    assert done.returncode == 2 and "is there already: choose another folder" in done.stderr
    assert export(tmp_path / "nothing", tmp_path / "other").returncode == 2


class Hub(BaseHTTPRequestHandler):
    """As much of the Hub's interface as one upload of small files needs; it keeps what it was sent."""

    created: ClassVar[list[dict[str, Any]]]
    files: ClassVar[dict[str, bytes]]
    tokens: ClassVar[set[str | None]]
    refuse: ClassVar[bool]

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.tokens.add(self.headers.get("Authorization"))
        if self.refuse:
            self.answer(403, {"error": "You may not write here"})
        elif self.path == "/api/repos/create":
            self.created.append(json.loads(body))
            self.answer(200, {"url": f"{self.address()}/me/model", "id": "me/model", "name": "me/model"})
        elif self.path == "/api/validate-yaml":
            self.answer(200, {"errors": [], "warnings": []})
        elif "/preupload/" in self.path:
            asked = json.loads(body)["files"]
            self.answer(
                200, {"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]}
            )
        elif "/commit/" in self.path:
            for line in body.decode().splitlines():
                entry = json.loads(line)
                if entry["key"] == "file":
                    self.files[entry["value"]["path"]] = base64.b64decode(entry["value"]["content"])
            self.answer(
                200, {"success": True, "commitOid": "c0ffee", "commitUrl": f"{self.address()}/me/model/commit/c0ffee"}
            )
        else:
            self.answer(404, {"error": self.path})

    def do_GET(self) -> None:
        self.answer(404, {"error": self.path})

    def address(self) -> str:
        return f"http://{self.headers['Host']}"

    def answer(self, code: int, value: Any) -> None:
        content = json.dumps(value).encode()
        self.send_response(code)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(content)))
        self.end_headers()
        self.wfile.write(content)

    def log_message(self, *arguments: Any) -> None:
        pass


@pytest.fixture
def hub() -> Iterator[str]:
    pytest.importorskip("huggingface_hub")
    Hub.created, Hub.files, Hub.tokens, Hub.refuse = [], {}, set(), False
    server = ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def push(run: Path, to: Path, endpoint: str, *more: str) -> subprocess.CompletedProcess[str]:
    """A process of its own: the library reads the server's address when it is imported."""
    own = {"HF_ENDPOINT": endpoint, "HF_TOKEN": "hf_secret", "HF_HUB_OFFLINE": "0", "HF_HUB_DISABLE_TELEMETRY": "1"}
    command = [sys.executable, "-m", "nemo_tapo.cli", "export", str(run), "--to", str(to), "--push", "me/model", *more]
    return subprocess.run(command, env=os.environ | own, capture_output=True, text=True, timeout=240, check=False)


def test_push_uploads_the_folder(run: Path, tmp_path: Path, hub: str) -> None:
    done = push(run, tmp_path / "out", hub)
    assert done.returncode == 0, done.stderr
    assert f"pushed to {hub}/me/model/commit/c0ffee" in done.stdout
    (made,) = Hub.created
    assert made["name"] == "model" and (made.get("visibility") == "private" or made.get("private") is True)
    assert Hub.files == {p.name: p.read_bytes() for p in (tmp_path / "out").iterdir()}
    assert Hub.tokens == {"Bearer hf_secret"} and "hf_secret" not in done.stdout + done.stderr


def test_a_refused_upload_is_a_sentence_and_leaves_the_folder(run: Path, tmp_path: Path, hub: str) -> None:
    Hub.refuse = True
    done = push(run, tmp_path / "out", hub)
    assert done.returncode == 3 and "the Hub refused me/model" in done.stderr and "Traceback" not in done.stderr
    assert f"The model is in {tmp_path / 'out'}" in done.stderr and (tmp_path / "out" / "README.md").is_file()
    done = nemo_tapo("export", str(run), "--to", str(tmp_path / "more"), "--push", "model")
    assert done.returncode == 2 and "a repository is named owner/name" in done.stderr
