"""Files that a run reads again, damaged between two starts: mended and told, or refused with what to remove.

Each kind was found by tools/chaos.py. The same command, after what it asked for, ends with the same weights.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.helpers.command import nemo_tapo

CONFIG = Path(__file__).parents[3] / "examples" / "configs" / "tapo-tiny-1n0g.yaml"
SMALL = (
    "runtime=scripted", "steps=2", "parts=[coldstart,before,train]", "rollout.max_tokens=300", "tapo.max_tokens=700",
    "model.max_length=3000", "rollout.queries_per_step=2", "task.arithmetic.train_queries=24", "coldstart.queries=6",
    "coldstart.epochs=1", "evaluation.problems=4", "evaluation.runs=1", "evaluation.synthesis_queries=0",
    "checkpoint.every=1", "checkpoint.min_free_gib=0",
)  # fmt: skip
RESULTS = ("hf/model.safetensors", "coldstart/hf/model.safetensors", "evaluation.json", "metrics.jsonl")


def run(output: Path) -> tuple[int, str]:
    done = nemo_tapo("run", "--config", str(CONFIG), *SMALL, f"output={output}")
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> Path:
    output = tmp_path_factory.mktemp("whole") / "run"
    assert run(output)[0] == 0
    return output


def flip(at: float) -> Callable[[Path], object]:
    """One bit, at this share of the file."""

    def damage(file: Path) -> None:
        data = bytearray(file.read_bytes())
        data[int(at * len(data))] ^= 1
        file.write_bytes(data)

    return damage


def flip_in(word: str) -> Callable[[Path], object]:
    """A bit of a letter: the line is JSON still, and says something else."""
    return lambda file: file.write_text(file.read_text().replace(word, word[:-1] + chr(ord(word[-1]) ^ 1), 1))


def empty(file: Path) -> None:
    file.write_bytes(b"")


def no_text(file: Path) -> None:
    file.write_bytes(b"\xff\xfe" + file.read_bytes())


MODEL, TRAINED = "coldstart/hf/model.safetensors", "coldstart/trained.json"
MENDED: dict[str, tuple[str, Callable[[Path], object], str]] = {
    "model, a bit": (MODEL, flip(0.9), "model.safetensors has another sha256 than when it was written; it is written"),
    "model, cut": (MODEL, empty, "model.safetensors has 0 bytes instead of "),
    "model, gone": (MODEL, Path.unlink, "model.safetensors is missing; it is written anew"),
    "trained.json, gone": (TRAINED, Path.unlink, "it has no trained.json; it is written anew"),
    "trained.json, empty": (TRAINED, empty, "its trained.json is damaged; it is written anew"),
    "config.yaml": ("config.yaml", no_text, ""),
    "manifest, another object": ("checkpoints/step-000002/manifest.json", lambda f: f.write_text("{}"), "falling back"),
    "manifest, no object": ("checkpoints/step-000002/manifest.json", lambda f: f.write_text("[1]"), "falling back"),
}


@pytest.mark.parametrize("name", MENDED)
def test_it_is_told_and_mended(whole: Path, tmp_path: Path, name: str) -> None:
    file, damage, sentence = MENDED[name]
    output = shutil.copytree(whole, tmp_path / "run")
    damage(output / file)
    code, told = run(output)
    assert code == 0, told
    assert sentence in told
    require_same(whole, output)


def require_same(whole: Path, output: Path) -> None:
    for result in RESULTS:
        found, expected = ((folder / result).read_bytes() for folder in (output, whole))
        if result == "metrics.jsonl":
            found, expected = (text.count(b"\n") for text in (found, expected))  # it has times
        if result == "evaluation.json":
            found, expected = (text.replace(bytes(f), b"") for text, f in ((found, output), (expected, whole)))
        assert found == expected, result


SAMPLES, ANSWERS = "coldstart/samples/train.jsonl", "coldstart/corrections/corrections.jsonl"
DATA = "coldstart/data.jsonl"
REFUSED: dict[str, tuple[str, Callable[[Path], object], str, str]] = {  # the last: what the sentence says to remove
    "sample, another word": ("evaluation/before/arithmetic.jsonl", flip_in("arithmetic"), "remove that line", "line 1"),
    "cold start's sample": (SAMPLES, flip_in("outcome"), "its query is sampled again", "line 1"),
    "correction": (ANSWERS, flip_in("accepted"), "its pair is asked for again", "line 1"),
    "settings, empty": ("evaluation/before/settings.json", empty, "is damaged; remove the folder", "evaluation/before"),
    "settings, gone": ("coldstart/samples/settings.json", Path.unlink, "but no settings.json", "coldstart/samples"),
    "evaluation.json": ("evaluation.json", empty, "evaluation.json is damaged; remove it", "evaluation.json"),
    "data, a bit": (DATA, flip_in("prompt"), "is not as it was written: remove", DATA),
    "statistics": ("coldstart/statistics.json", empty, "is damaged; remove", DATA),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_it_is_refused_and_what_to_remove_is_said(whole: Path, tmp_path: Path, name: str) -> None:
    file, damage, sentence, removed = REFUSED[name]
    output = shutil.copytree(whole, tmp_path / "run")
    if "coldstart" in file:  # read again as long as there is no model
        for folder in ("hf", "checkpoints"):
            shutil.rmtree(output / "coldstart" / folder)
        if file in (SAMPLES, ANSWERS) or "samples" in file:
            (output / "coldstart" / "data.jsonl").unlink()
    damage(output / file)
    code, told = run(output)
    assert code == 2, told
    assert sentence in told and removed in told
    if removed.startswith("line"):
        lines = (output / file).read_bytes().splitlines(keepends=True)
        (output / file).write_bytes(b"".join(lines[1:]))
    elif (output / removed).is_dir():
        shutil.rmtree(output / removed)
    else:
        (output / removed).unlink()
    code, told = run(output)
    assert code == 0, told
    require_same(whole, output)


def test_data_of_the_users_own_is_taken_as_it_is(whole: Path, tmp_path: Path) -> None:
    output = shutil.copytree(whole, tmp_path / "run")
    shutil.rmtree(output / "coldstart" / "hf")
    shutil.rmtree(output / "coldstart" / "checkpoints")
    (output / "coldstart" / "statistics.json").unlink()
    data = output / "coldstart" / "data.jsonl"
    data.write_text("".join(data.read_text().splitlines(keepends=True)[:-1]))
    assert nemo_tapo("coldstart", "--config", str(CONFIG), *SMALL, f"output={output / 'coldstart'}").returncode == 0
    listed = json.loads((output / "coldstart" / "trained.json").read_text())["files"]
    assert listed.keys() == {"model.safetensors", "scripted"}


@pytest.mark.parametrize("name", ["config.yaml", "metrics.jsonl", "trajectories.jsonl", "evaluation.json"])
@pytest.mark.parametrize("content", ["[" * 20_000, 'a: "b', '{"a": 1}\n{"a": 2}\n'])
def test_what_is_no_record_is_left_out_or_named(whole: Path, tmp_path: Path, name: str, content: str) -> None:
    output = tmp_path / "run"
    shutil.copytree(whole, output)
    (output / name).write_text(content)
    done = nemo_tapo("show", str(output))
    assert "Traceback" not in done.stderr and done.returncode in (0, 2), done.stderr
    if done.returncode == 2:
        assert name in done.stderr
