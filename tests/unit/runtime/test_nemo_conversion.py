"""Which conversion of a model to Megatron's format a run on NeMo-RL starts from, and who makes it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.runtime.nemo_rl import conversion
from nemo_tapo.runtime.nemo_rl.conversion import (
    VARIABLE,
    choose_conversion,
    find_root,
    is_complete,
    name_conversion,
    record_conversion,
    use_conversion,
)

# What NeMo-RL's first worker does (models/megatron/setup.py, v0.7.0 and main): a conversion is found by the path alone.
NEMO_RL = """
import os, pathlib, shutil
def setup(model, force=False):
    place = pathlib.Path(os.environ["NRL_MEGATRON_CHECKPOINT_DIR"], "model_" + model.replace("/", "_"), "iter_0000000")
    made = force or not place.exists()
    if made:
        place.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(pathlib.Path(model, "model.safetensors"), place / "weights")
        (place / "run_config.yaml").touch()
    return made, (place / "weights").read_bytes()[-4:]
"""


@pytest.fixture(autouse=True)
def root(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv(VARIABLE, str(tmp_path / "megatron"))
    monkeypatch.delenv("HF_HOME", raising=False)
    return tmp_path / "megatron"


def write_model(folder: Path, weights: bytes, time: int) -> None:
    """A model of one tensor of four bytes, last changed at `time`, in seconds."""
    folder.mkdir(exist_ok=True)
    (folder / "config.json").write_text('{"model_type": "qwen3"}')
    header = json.dumps({"w": {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]}}).encode()
    file = folder / "model.safetensors"
    file.write_bytes(len(header).to_bytes(8, "little") + header + weights)
    os.utime(file, (time, time))


def policy(model: Path, **megatron: Any) -> dict[str, Any]:
    return {"model_name": str(model), "megatron_cfg": {"enabled": True, **megatron}}


def nemo_rl_setup(model: Path, force: bool = False) -> tuple[bool, bytes]:
    names: dict[str, Any] = {}
    exec(NEMO_RL, names)
    made, weights = names["setup"](str(model), force)
    return made, weights


def start(model: Path, output: Path, resumed: bool = False, **megatron: Any) -> tuple[bool, bytes]:
    """What NemoRLRuntime.start does: whether the model was converted, and the weights that the workers load."""
    section = policy(model, **megatron)
    folder = choose_conversion(section, output, resumed, has_reference=True)
    with use_conversion(folder, section, lambda text: None):
        loaded = nemo_rl_setup(model, bool(megatron.get("force_reconvert_from_hf")))
    record_conversion(folder, output)
    return loaded


def test_a_model_made_anew_in_its_folder_is_what_is_trained(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"old!", time=1000)
    assert start(model, tmp_path / "a") == (True, b"old!")
    assert start(model, tmp_path / "b") == (False, b"old!")  # one conversion serves all runs
    write_model(model, b"new!", time=2000)
    assert start(model, tmp_path / "c") == (True, b"new!")


def test_a_resumed_run_keeps_the_conversion_that_it_began_with(tmp_path: Path, root: Path) -> None:
    """Its reference model may not change; where that conversion is gone, it says so."""
    model, output = tmp_path / "cold", tmp_path / "run"
    write_model(model, b"old!", time=1000)
    start(model, output)
    write_model(model, b"new!", time=2000)
    assert start(model, output, resumed=True) == (False, b"old!")
    assert start(model, output, resumed=False) == (True, b"new!")  # a new run in the same folder
    assert start(model, output, resumed=True) == (False, b"new!")

    write_model(model, b"two!", time=3000)
    for folder in root.glob("cold-*/"):
        (folder / "complete").unlink()
    with pytest.raises(ValueError, match=r"cold has changed since this run began, and .* is gone: put the former"):
        choose_conversion(policy(model), output, resumed=True, has_reference=True)
    present = choose_conversion(policy(model), output, resumed=False, has_reference=True)
    assert choose_conversion(policy(model), output, resumed=True, has_reference=False) == present


def test_a_model_moved_aside_and_back_is_not_converted_again(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"old!", time=1000)
    start(model, tmp_path / "a")
    model.rename(tmp_path / "aside")
    (tmp_path / "aside").rename(model)
    assert start(model, tmp_path / "b") == (False, b"old!")


def test_what_tells_two_models_apart(tmp_path: Path) -> None:
    """The weights' time, size and header, the configuration, the name, NeMo-RL's overrides of the configuration."""
    model = tmp_path / "m"
    write_model(model, b"1234", time=1000)
    names = [name_conversion(str(model), {}), name_conversion(str(model), {"rope_theta": 1e6})]
    write_model(model, b"1234", time=1001)
    names.append(name_conversion(str(model), {}))
    (model / "config.json").write_text('{"model_type": "llama"}')
    names.append(name_conversion(str(model), {}))
    file = model / "model.safetensors"
    file.write_bytes(file.read_bytes().replace(b'"w"', b'"v"'))
    os.utime(file, (1001, 1001))
    names.append(name_conversion(str(model), {}))
    (model / "tokenizer.json").write_text("{}")  # not converted
    assert name_conversion(str(model), {}) == names[-1]
    (tmp_path / "same").symlink_to(model)
    names.append(name_conversion(str(tmp_path / "same"), {}))
    assert len(set(names)) == 6
    assert all(name.startswith("m-") for name in names[:5]) and names[5].startswith("same-")


def test_simultaneous_runs_convert_once(tmp_path: Path, root: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"w000", time=1000)
    program = f"""{NEMO_RL}
import sys, time
from pathlib import Path
from nemo_tapo.runtime.nemo_rl import conversion
conversion.POLL = 0.05
policy = {policy(model)!r}
folder = conversion.choose_conversion(policy, Path({str(tmp_path)!r}, sys.argv[1]), False, False)
with conversion.use_conversion(folder, policy, lambda text: print(text, flush=True)):
    made, weights = setup({str(model)!r})
    time.sleep(1.0 if made else 0)
print("made" if made else "found", weights.decode())
"""
    together = [
        subprocess.Popen([sys.executable, "-c", program, name], stdout=subprocess.PIPE, text=True) for name in "abc"
    ]
    ends = sorted(process.communicate(timeout=60)[0].splitlines()[-1] for process in together)
    assert ends == ["found w000", "found w000", "made w000"]
    assert [folder.name for folder in root.glob("cold-*/")] == [name_conversion(str(model), {})]


def test_what_a_killed_conversion_left_is_removed(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"good", time=1000)
    folder = choose_conversion(policy(model), tmp_path, False, False)
    assert folder is not None
    half = folder / ("model_" + str(model).replace("/", "_")) / "iter_0000000"
    half.mkdir(parents=True)
    (half / "weights").write_bytes(b"half")
    assert start(model, tmp_path / "a") == (True, b"good")


def test_a_setup_that_fails_leaves_no_complete_conversion(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"good", time=1000)
    folder = choose_conversion(policy(model), tmp_path, False, False)
    assert folder is not None

    def fail_after_converting() -> None:
        with use_conversion(folder, policy(model), lambda text: None):
            nemo_rl_setup(model)
            raise RuntimeError("out of memory")

    with pytest.raises(RuntimeError, match="out of memory"):
        fail_after_converting()
    assert not is_complete(folder)
    with use_conversion(folder, policy(model), lambda text: None):
        pass  # a worker that converts nothing, as on a CPU
    assert not is_complete(folder)


def test_a_conversion_may_be_forced(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    write_model(model, b"good", time=1000)
    assert start(model, tmp_path / "a") == (True, b"good")
    assert start(model, tmp_path / "b", force_reconvert_from_hf=True) == (True, b"good")
    assert start(model, tmp_path / "c") == (False, b"good")


def test_nothing_is_done_where_nemo_rl_converts_nothing(tmp_path: Path, root: Path) -> None:
    for section in (
        {"model_name": "a/b", "dtensor_cfg": {"enabled": True}, "megatron_cfg": {"enabled": False}},
        {"model_name": "a/b", "megatron_cfg": {"enabled": True}, "pretrained_checkpoint": {"path": "/x"}},
    ):
        assert choose_conversion(section, tmp_path, False, True) is None
        with use_conversion(None, section, lambda text: None):
            assert os.environ[VARIABLE] == str(root)
    assert not root.exists()


def test_the_workers_variable_is_set_in_the_block_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A second runtime of the process would else convert into a folder in that of the first."""
    model = tmp_path / "cold"
    write_model(model, b"good", time=1000)
    monkeypatch.delenv(VARIABLE)
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    folder = choose_conversion(policy(model), tmp_path, False, False)
    assert folder == tmp_path / "hub" / "nemo_rl" / name_conversion(str(model), {})
    with use_conversion(folder, policy(model), lambda text: None):
        assert os.environ[VARIABLE] == str(folder)
    assert VARIABLE not in os.environ


def test_the_root_is_where_nemo_rl_would_convert_to(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", "/hub")
    assert find_root() == tmp_path / "megatron"
    monkeypatch.setenv(VARIABLE, " ")
    assert find_root() == Path("/hub/nemo_rl")
    monkeypatch.setenv("HF_HOME", "")
    assert find_root() == tmp_path / ".cache" / "huggingface" / "nemo_rl"


def test_a_model_of_the_hub_is_told_by_its_commit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Offline, from the cache; the layout is the Hub's."""
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    repository, names = tmp_path / "hub" / "models--acme--tiny", []
    for commit in ("1" * 40, "2" * 40):
        (repository / "refs").mkdir(parents=True, exist_ok=True)
        (repository / "refs" / "main").write_text(commit)
        (repository / "snapshots" / commit).mkdir(parents=True)
        (repository / "snapshots" / commit / "config.json").write_text("{}")
        assert conversion.find_revision("acme/tiny") == commit
        names.append(name_conversion("acme/tiny", {}))
    assert names[0] != names[1] and names[0].startswith("tiny-")
    with pytest.raises(ValueError, match=r"policy.model_name = acme/none is no folder on this node, and the Hugging"):
        name_conversion("acme/none", {})


def test_a_model_that_is_not_mounted_is_one_sentence(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"/lost/model is no folder on this node.*mount the folder into the container"):
        choose_conversion(policy(Path("/lost/model")), tmp_path, False, False)


def test_a_root_that_cannot_be_written_is_one_sentence(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model, file = tmp_path / "cold", tmp_path / "file"
    write_model(model, b"good", time=1000)
    file.touch()
    monkeypatch.setenv(VARIABLE, str(file / "megatron"))
    with pytest.raises(ValueError, match=f"cannot be written .*: set {VARIABLE} to a folder that all nodes see"):
        start(model, tmp_path / "a")
