"""Where NeMo-RL converts a model to, and that it finds the conversion again by the model's path alone."""

from __future__ import annotations

import ast
import os
from pathlib import Path
from typing import Any

import pytest

from nemo_tapo.runtime.nemo_rl.conversion import VARIABLE, WRITTEN_LAST, find_root

pytestmark = pytest.mark.nemo_rl
SOURCE = Path(os.environ.get("NEMO_RL_SRC", "."))


def read_function(file: str, name: str, **globals_: Any) -> Any:
    """One function of NeMo-RL's source: its module imports what only a worker on a GPU has."""
    tree = ast.parse((SOURCE / file).read_text())
    (found,) = (node for node in tree.body if isinstance(node, ast.FunctionDef) and node.name == name)
    names: dict[str, Any] = {"os": os, "PolicyConfig": dict, **globals_}
    exec(compile(ast.Module([found], type_ignores=[]), file, "exec"), names)
    return names[name]


@pytest.mark.parametrize("values", [{VARIABLE: "/m", "HF_HOME": "/h"}, {VARIABLE: " ", "HF_HOME": "/h"}, {}])
def test_the_root_is_nemo_rls(values: dict[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    for name in (VARIABLE, "HF_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    theirs = read_function("nemo_rl/models/policy/utils.py", "get_megatron_checkpoint_dir")
    assert theirs() == str(find_root())


def test_the_conversion_is_below_the_variable_and_named_by_the_path(tmp_path: Path) -> None:
    model = tmp_path / "cold"
    model.mkdir()
    find = read_function(
        "nemo_rl/models/megatron/setup.py",
        "validate_model_paths",
        get_megatron_checkpoint_dir=lambda: str(tmp_path / "root"),
        _get_hf_config_overrides_hash=lambda overrides: "hash",
    )
    name, place, there = find({"model_name": str(model)})
    assert (name, there) == (str(model), False)
    assert Path(place).parent == tmp_path / "root"
    (Path(place) / "iter_0000000").mkdir(parents=True)
    (model / "model.safetensors").write_bytes(b"made anew")
    assert find({"model_name": str(model)}) == (str(model), place, True)


def test_what_a_worker_reads_of_the_conversion() -> None:
    text = (SOURCE / "nemo_rl" / "models" / "megatron" / "setup.py").read_text()
    assert f'pretrained_path, "iter_0000000", "{WRITTEN_LAST}"' in text
    assert 'config["megatron_cfg"].get("force_reconvert_from_hf", False)' in text
