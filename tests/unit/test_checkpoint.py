"""Atomic checkpoints: kill at any write, damage any file, fill the disk."""

from __future__ import annotations

import asyncio
import errno
import json
import os
import signal
import subprocess
import sys
import textwrap
from pathlib import Path

import pytest

from nemo_tapo import checkpoint
from nemo_tapo.utils import files
from nemo_tapo.utils.errors import DiskFull


async def write_files(path: Path) -> None:
    (path / "model.safetensors").write_bytes(b"weights")
    (path / "sub").mkdir()
    (path / "sub" / "more.bin").write_bytes(b"more")


def save(folder: Path, step: int, keep: int = 2) -> Path:
    return asyncio.run(checkpoint.save_checkpoint(folder, {"step": step, "fingerprint": {}}, write_files, keep))


def test_saves_keeps_the_newest_and_reads_back(tmp_path: Path) -> None:
    for step in (1, 2, 3):
        save(tmp_path, step)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["step-000002", "step-000003"]
    found = checkpoint.find_latest(tmp_path, pytest.fail)
    assert found is not None
    assert found.step == 3
    assert json.loads((found.path / "manifest.json").read_text()).keys() == {
        "model.safetensors",
        "state.json",
        "sub/more.bin",
    }


def test_none_without_any(tmp_path: Path) -> None:
    assert checkpoint.find_latest(tmp_path / "nothing", pytest.fail) is None


@pytest.mark.parametrize("name", ["model.safetensors", "sub/more.bin", "state.json", "manifest.json"])
@pytest.mark.parametrize("how", ["flip", "cut", "remove"])
def test_a_damaged_checkpoint_is_named_and_passed_over(tmp_path: Path, name: str, how: str) -> None:
    save(tmp_path, 1)
    file = save(tmp_path, 2) / name
    data = bytearray(file.read_bytes())
    if how == "remove":
        file.unlink()
    elif how == "cut":
        file.write_bytes(data[:-1] if name != "manifest.json" else data[:5])
    else:
        data[len(data) // 2] ^= 1
        file.write_bytes(data)
    warnings: list[str] = []
    found = checkpoint.find_latest(tmp_path, warnings.append)
    assert found is not None
    assert found.step == 1
    assert len(warnings) == 1
    assert "step-000002" in warnings[0]
    assert "falling back" in warnings[0]


def test_all_damaged_does_not_start_over(tmp_path: Path) -> None:
    (save(tmp_path, 1) / "model.safetensors").unlink()
    with pytest.raises(ValueError, match="every checkpoint"):
        checkpoint.find_latest(tmp_path, lambda text: None)


def test_full_disk_keeps_the_last_good_one_and_says_so(tmp_path: Path) -> None:
    save(tmp_path, 1)

    async def full(path: Path) -> None:
        (path / "half").write_bytes(b"x")
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    with pytest.raises(DiskFull, match="last good checkpoint is kept"):
        asyncio.run(checkpoint.save_checkpoint(tmp_path, {"step": 2}, full, 2))
    assert [p.name for p in tmp_path.iterdir()] == ["step-000001"]


def test_sigkill_at_every_write_leaves_a_good_checkpoint(tmp_path: Path) -> None:
    """A child saves step 1, then is killed at its n-th file operation while saving step 2, for n = 1, 2, ..."""
    child = textwrap.dedent("""
        import asyncio, os, signal, sys
        from pathlib import Path
        from nemo_tapo import checkpoint
        folder, fatal = Path(sys.argv[1]), int(sys.argv[2])
        async def write(path):
            (path / "model").write_bytes(b"x" * 5000)
        asyncio.run(checkpoint.save_checkpoint(folder, {"step": 1, "fingerprint": {}}, write, 1))
        count = 0
        def hook(event, args):
            global count
            watched = ("open", "os.rename", "os.mkdir", "os.remove", "os.rmdir", "shutil.rmtree")
            if event in watched and str(folder) in str(args):
                count += 1
                if count == fatal:
                    os.kill(os.getpid(), signal.SIGKILL)
        sys.addaudithook(hook)
        asyncio.run(checkpoint.save_checkpoint(folder, {"step": 2, "fingerprint": {}}, write, 1))
    """)
    killed = 0
    for fatal in range(1, 60):
        folder = tmp_path / str(fatal)
        done = subprocess.run([sys.executable, "-c", child, str(folder), str(fatal)], check=False)
        found = checkpoint.find_latest(folder, lambda text: None)
        assert found is not None
        assert found.step in (1, 2)
        if done.returncode == 0:
            assert found.step == 2
            break
        assert done.returncode == -signal.SIGKILL
        killed += 1
    assert killed > 5
    assert done.returncode == 0  # the last round ran past every operation


def test_refuses_to_start_with_too_little_disk(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="GiB free"):
        files.require_free_disk(tmp_path, 1e9)


def test_an_output_that_cannot_be_a_folder_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    for output in (tmp_path / "file", tmp_path / "file" / "run"):
        with pytest.raises(ValueError, match="cannot be a folder for results"):
            files.require_free_disk(output, 0)
