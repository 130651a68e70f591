"""The folder in which a result is built: nothing of others is removed for it."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path

from nemo_tapo.utils.files import make_building_folder


def test_only_what_a_dead_command_left_is_removed(tmp_path: Path) -> None:
    ended = subprocess.Popen(["true"])
    ended.wait()
    names = (f".model.{ended.pid}.part", f".model.{os.getppid()}.part", ".model.fp16.123456789.part", ".model.own.part")
    for name in names:
        (tmp_path / name).mkdir()
    made = make_building_folder(tmp_path / "model")
    assert {p.name for p in tmp_path.iterdir()} == {made.name, *names[1:]}
